"""What merging maps have in common: who takes part, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.core._types import Params
from ttransfer.weights import (
    average,
    chain,
    dare,
    fisher,
    karcher,
    model_stock,
    pool,
    regmean,
    slerp,
    task_arithmetic,
    ties,
    wise_ft,
)
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


def member(dtype: torch.dtype, at: float) -> Params:
    return {"w": torch.full((2,), at, dtype=dtype), "bn.running_var": torch.tensor([at], dtype=dtype)}


HALF, SINGLE = torch.float16, torch.float32


@pytest.mark.parametrize("first", [HALF, SINGLE])
@pytest.mark.parametrize("merge", [task_arithmetic(0.5), ties(0.5), model_stock(), slerp(0.5, tuned="a")])
def test_where_dtypes_differ_the_base_has_its_own(merge: WeightMap, first: torch.dtype) -> None:
    new = merge.apply(pool(base=member(first, 1.0), a=member(HALF, 2.0), b=member(SINGLE, 3.0)), {})
    wanted = merge.apply(pool(base=member(SINGLE, 1.0), a=member(SINGLE, 2.0), b=member(SINGLE, 3.0)), {})
    assert {x.dtype for x in new.values()} == {first}
    for name, x in new.items():
        torch.testing.assert_close(x.float(), wanted[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("merge", [average(), average([1.0, 2.0]), karcher()])
def test_where_dtypes_differ_one_holds_all(merge: WeightMap) -> None:
    both = pool(a=member(HALF, 2.0), b=member(SINGLE, 3.0))
    assert {x.dtype for x in merge.apply(both, {}).values()} == {SINGLE}
    assert merge.plan(both, {}).made["w"].how.endswith(", float16 and float32 -> float32")


def test_the_mean_of_statistics_is_rounded_once() -> None:
    src = pool(base=member(SINGLE, 1.0), a=member(HALF, 1.0), b=member(HALF, 1.0 + 2**-10))
    plan = task_arithmetic().plan(src, {})
    assert plan.made["bn.running_var"].how == "mean: a statistic, float16 -> float32"
    assert task_arithmetic().apply(src, {})["bn.running_var"].item() == 1.0 + 2**-11


def test_dropping_keeps_dtypes_and_drops_in_the_wider() -> None:
    src = pool(base=member(SINGLE, 1.0), a=member(HALF, 2.0))
    new = dare(0.5).apply(src, {})
    assert {name: x.dtype for name, x in new.items()} == {name: x.dtype for name, x in src.items()}
    assert chain(dare(0.5), ties(1.0)).apply(src, {})["w"].dtype == SINGLE


def test_a_compiled_graph_mixes_dtypes() -> None:
    src = pool(a=member(HALF, 2.0), b=member(SINGLE, 3.0))
    compiled = torch.compile(lambda at: average().apply(at, {}), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(src), average().apply(src, {}))


def test_complex_and_real_are_not_merged() -> None:
    both = pool(a={"w": torch.ones(2)}, b={"w": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(TransferError, match=r"'w' is \(2,\) float32 in 'a' and \(2,\) complex64 in 'b'"):
        average().apply(both, {})


@pytest.mark.parametrize(
    "merge", [task_arithmetic({"base": 1.0, "a": 1.0}), ties(thresholds={"base": 1.0}), slerp(tuned="base")]
)
def test_the_base_is_not_tuned_from_itself(merge: WeightMap) -> None:
    with pytest.raises(TransferError, match="'base' is the base, and cannot be among those that were tuned from it"):
        merge.plan(pool(base=net(0), a=net(1)), {})


SQUARES = pool({who: {"w": torch.rand(3, 3)} for who in ("base", "a")})
GRAMS = pool({who: {"w": torch.eye(3) * (1 + i)} for i, who in enumerate(("base", "a"))})


@pytest.mark.parametrize(
    "make",
    [
        lambda at: wise_ft(at, tuned="a"),
        lambda at: slerp(at, tuned="a"),
        lambda at: average([at, 1.0]),
        lambda at: task_arithmetic({"a": at}),
        lambda at: karcher({"a": at, "base": 1.0}),
        lambda at: fisher(SQUARES, weights=[at, 1.0], floor=at),
        lambda at: regmean(GRAMS, alpha=at, ridge=at),
        dare,
        lambda at: ties(at, scale=at),
    ],
    ids=["wise_ft", "slerp", "average", "task_arithmetic", "karcher", "fisher", "regmean", "dare", "ties"],
)
def test_other_numbers_compile_too(make: Any) -> None:
    torch.compiler.reset()  # it counts the graphs of a function over all tests
    compiled = torch.compile(lambda src, at: make(at).apply(src, {}), fullgraph=True, backend="aot_eager")
    for at in (0.2, 0.3, 0.5):
        torch.testing.assert_close(compiled(SQUARES, at), make(at).apply(SQUARES, {}))
