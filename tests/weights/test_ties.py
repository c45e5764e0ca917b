"""TIES: trimmed, elected, averaged among those that agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import pool, ties, ties_thresholds


def net(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    new = {name: x.detach() for name, x in made.state_dict().items()}
    return {**new, "1.running_var": torch.rand_like(new["1.running_var"]) + 0.1}


SRC = pool(base=net(0), x=net(1), y=net(2), z=net(3))
LIKE = net(4)
TUNED = ("x", "y", "z")


def slow(least: Callable[[str, list[float]], float], scale: float) -> Any:
    """The three steps of the paper, one number at a time, without a gradient."""

    def formula(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new: dict[str, Tensor] = {}
        for name in (key.removeprefix("base/") for key in src if key.startswith("base/")):
            start = src[f"base/{name}"]
            if not start.is_floating_point():
                new[name] = start
                continue
            if "running" in name:
                new[name] = torch.stack([src[f"{who}/{name}"].detach() for who in TUNED]).mean(0)
                continue
            vectors = []
            for who in TUNED:
                change = (src[f"{who}/{name}"] - start).flatten().tolist()
                limit = least(who, change)
                vectors.append([x if abs(x) >= limit else 0.0 for x in change])
            result = []
            for column in zip(*vectors, strict=True):
                positive, negative = sum(x for x in column if x > 0), sum(-x for x in column if x < 0)
                agreed = (
                    [x for x in column if (x > 0 if positive > negative else x < 0)] if positive != negative else []
                )
                result.append(sum(agreed) / len(agreed) if agreed else 0.0)
            new[name] = start.detach() + scale * torch.tensor(result, dtype=start.dtype).reshape(start.shape)
        return new

    return formula


def of_each(density: float) -> Callable[[str, list[float]], float]:
    return lambda who, change: sorted(map(abs, change), reverse=True)[max(1, round(density * len(change))) - 1]


def of_all(density: float) -> Callable[[str, list[float]], float]:
    """The paper's way: the threshold is that of the whole vector."""

    def least(who: str, change: list[float]) -> float:
        names = [key.removeprefix("base/") for key in SRC if key.startswith("base/")]
        names = [name for name in names if SRC[f"base/{name}"].is_floating_point() and "running" not in name]
        whole = [x for name in names for x in (SRC[f"{who}/{name}"] - SRC[f"base/{name}"]).flatten().tolist()]
        return of_each(density)(who, whole)

    return least


TRIALS = (
    weight_map_trial(
        ties(0.5, scale=0.7),
        SRC,
        LIKE,
        reference=slow(of_each(0.5), 0.7),
        examples=4,
        name="ties",
    ),
    weight_map_trial(
        ties(1.0, scale=0.5),
        SRC,
        LIKE,
        reference=slow(lambda who, change: 0.0, 0.5),
        examples=4,
        name="untrimmed",
    ),
    weight_map_trial(
        # Numbers are drawn with three digits: none lies on the threshold.
        ties(thresholds=dict.fromkeys(TUNED, torch.tensor(0.4003, dtype=torch.float64)), scale=0.5),
        SRC,
        LIKE,
        reference=slow(lambda who, change: 0.4003, 0.5),
        examples=4,
        name="thresholds",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 1.0])
def test_whole_task_vectors_are_trimmed_as_in_the_paper(density: float) -> None:
    thresholds = ties_thresholds(SRC, density)
    for who in TUNED:
        assert thresholds[who].item() == pytest.approx(of_all(density)(who, []), abs=0)
    found, wanted = ties(thresholds=thresholds).apply(SRC, {}), slow(of_all(density), 1.0)(SRC, {})
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=1e-12)


def test_a_tie_elects_nobody() -> None:
    start, up, down = ({"w": torch.tensor(x)} for x in ([0.0, 0.0], [1.0, 2.0], [-1.0, 1.0]))
    assert ties(1.0).apply(pool(base=start, up=up, down=down), {})["w"].tolist() == [0.0, 1.5]


def test_one_task_vector_is_trimmed_alone() -> None:
    start, tuned = {"w": torch.zeros(10)}, {"w": torch.arange(-4.0, 6.0)}
    new = ties(0.3).apply(pool(base=start, a=tuned), {})["w"]
    assert new.tolist() == [-4.0, 0, 0, 0, 0, 0, 0, 0, 4.0, 5.0]
    assert ties(0.001).apply(pool(base=start, a=tuned), {})["w"].count_nonzero() == 1
    assert ties().apply(pool(base={"w": torch.zeros(0)}, a={"w": torch.ones(0)}), {})["w"].shape == (0,)


def test_plan() -> None:
    plan = ties().plan(SRC, LIKE)
    assert plan.made["0.weight"].how == "base and 3 task vectors, 0.2 of each kept, signs elected"
    assert plan.unused["base/1.running_var"] == "statistics are averaged over those that were tuned"
    some = ties(thresholds={"y": 0.1}).plan(SRC, LIKE)
    assert some.made["0.weight"].sources == ("base/0.weight", "y/0.weight")
    assert "trimmed to thresholds" in some.made["0.weight"].how


def test_refusals() -> None:
    for density in (0.0, 1.1, -1.0):
        with pytest.raises(TransferError, match="ties: density must be above 0 and at most 1"):
            ties(density)
        with pytest.raises(TransferError, match="ties_thresholds: density must be above 0 and at most 1"):
            ties_thresholds(SRC, density)
    with pytest.raises(TransferError, match="ties: the pool has no 'w'"):
        ties(thresholds={"w": 1.0}).apply(SRC, {})
    with pytest.raises(TransferError, match="ties_thresholds: there is no tensor of real numbers"):
        ties_thresholds(pool(base={"n": torch.tensor(1)}, a={"n": torch.tensor(1)}))


def test_what_is_no_number_stays_none() -> None:
    zeros, nan = torch.zeros(4), float("nan")
    both = pool(base={"w": zeros}, a={"w": torch.arange(4.0)}, b={"w": torch.tensor([nan, 1.0, 5.0, 6.0])})
    assert ties(0.5).apply(both, {})["w"].isnan().tolist() == [True, False, False, False]


def test_other_numbers_compile_too() -> None:
    """A plan spells its numbers, and a graph may not know them."""
    both = pool(base={"w": torch.zeros(9)}, a={"w": torch.arange(9.0)})
    compiled = torch.compile(lambda src, density: ties(density).apply(src, {}), fullgraph=True, backend="aot_eager")
    for density in (0.2, 0.3, 0.5):
        torch.testing.assert_close(compiled(both, density), ties(density).apply(both, {}))


def test_a_density_is_a_number() -> None:
    with pytest.raises(TransferError, match="ties: wanted a number for 'density', got NoneType"):
        ties(None)  # type: ignore[arg-type]
