"""What merging maps have in common: who takes part, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.weights import average, fisher, karcher, pool, task_arithmetic
from ttransfer.weights._merging import numbers, party, statistic


def net(at: float, **other: Tensor) -> dict[str, Tensor]:
    return {"w": torch.full((2, 3), float(at)), "n": torch.tensor(int(at)), **other}


def test_who_takes_part() -> None:
    three = pool(c=net(3), base=net(0), a=net(1))
    assert party("map", three).names == ("c", "base", "a")
    who = party("map", three, base="base")
    assert (who.names, who.tensors) == (("c", "a"), ("w", "n"))
    assert who.of("w") == ("base/w", "c/w", "a/w")
    assert party("map", three, names=("c",)).of("n") == ("c/n",)
    assert party("map", three, names=("a", "c")).names == ("c", "a")


@pytest.mark.parametrize("weights", [[2.0, 0.5], torch.tensor([2.0, 0.5]), {"a": 0.5, "c": 2.0}])
def test_numbers_go_by_the_order_of_the_pool(weights: Any) -> None:
    three = pool(c=net(3), base=net(0), a=net(1))
    assert task_arithmetic(weights).apply(three, {})["w"].unique().tolist() == [6.5]
    both = {name: x for name, x in three.items() if not name.startswith("base/")}
    for map in (average(weights), karcher(weights), fisher({}, weights=weights)):
        new = map.apply(both, {})
        torch.testing.assert_close(new["w"], torch.full((2, 3), (2 * 3 + 0.5 * 1) / 2.5))
        assert new["n"].item() == 3


@pytest.mark.parametrize(
    ("src", "message"),
    [
        (pool(a=net(0), b={"w": torch.ones(2, 3)}), "average: 'a' has 'n', one of 1 tensors that 'b' has not"),
        (pool(a={"w": torch.ones(2, 3)}, b=net(0)), "average: 'b' has 'n', one of 1 tensors that 'a' has not"),
        (
            pool(a=net(0), b=net(0) | {"w": torch.ones(3, 2)}),
            r"average: 'w' is \(2, 3\) float32 in 'a' and \(3, 2\) float32 in 'b'; make them fit first",
        ),
        (pool(a=net(0), b=net(0) | {"n": torch.tensor(0.0)}), r"'n' is \(\) int64 in 'a' and \(\) float32 in 'b'"),
        ({"w": torch.ones(1)}, "average: 'w' is of no checkpoint"),
        ({}, "average: wanted at least 1 checkpoints, got none"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_checkpoints_that_differ_are_refused(src: dict[str, Tensor], message: str, dry: bool) -> None:
    with pytest.raises(TransferError, match=message):
        (average().plan if dry else average().apply)(src, {})


def test_names_are_looked_up() -> None:
    with pytest.raises(TransferError, match="task_arithmetic: the pool has no 'base'; there are: a, b"):
        task_arithmetic().apply(pool(a=net(0), b=net(1)), {})
    with pytest.raises(TransferError, match="average: the pool has no 'aa'"):
        average({"aa": 1.0}).apply(pool(a=net(0), b=net(1)), {})
    with pytest.raises(TransferError, match="wanted at least 1 checkpoints beside the base, got none"):
        task_arithmetic().apply(pool(base=net(0)), {})


def test_weights_come_in_all_forms() -> None:
    x = torch.zeros(1, dtype=torch.float64)
    for weights in ([1.0, 2.0], torch.tensor([1.0, 2.0]), {"b": 2, "a": torch.tensor(1.0)}, (torch.tensor(1), 2.0)):
        found = numbers("map", weights, ("a", "b"), x)
        assert found.tolist() == [1, 2]
        assert found.dtype == torch.float64
    assert numbers("map", 3.0, ("a", "b"), x).tolist() == [3, 3]
    assert numbers("map", torch.tensor(3.0), ("a", "b"), x).tolist() == [3, 3]
    for wrong in ([1.0], torch.ones(3), torch.ones(2, 1), []):
        with pytest.raises(TransferError, match="map: 2 checkpoints want 2 numbers, got"):
            numbers("map", wrong, ("a", "b"), x)


def test_only_counts_of_batch_norm_are_statistics() -> None:
    assert [statistic(name) for name in ("bn.running_mean", "running_var", "bn.weight", "my_running_var")] == [
        True,
        True,
        False,
        False,
    ]


def test_tied_weights_stay_one() -> None:
    def tied(at: float) -> dict[str, Tensor]:
        x = torch.full((2, 2), float(at))
        return {"embed": x, "head": x, "other": x.clone()}

    new = average().apply(pool(a=tied(1), b=tied(2)), {})
    assert new["embed"] is new["head"]
    assert new["embed"] is not new["other"]
