"""Task vectors: added up, subtracted, and dropped at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import chain, dare, pool, task_arithmetic, ties


def net(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(1, 9, 2), nn.BatchNorm2d(9), nn.Linear(3, 9)).double()
    new = {name: x.detach() for name, x in made.state_dict().items()}
    return {**new, "1.running_var": torch.rand_like(new["1.running_var"]) + 0.1}


SRC = pool(base=net(0), x=net(1), y=net(2))
LIKE = net(3)
LAMBDA = {"x": 0.3, "y": -0.7}


def slow(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    new = {}
    for name in (key.removeprefix("base/") for key in src if key.startswith("base/")):
        start, x, y = (src[f"{who}/{name}"] for who in ("base", "x", "y"))
        if not start.is_floating_point():
            new[name] = start
        elif "running" in name:
            new[name] = (x + y) / 2
        else:
            new[name] = start + LAMBDA["x"] * (x - start) + LAMBDA["y"] * (y - start)
    return new


TRIALS = (
    weight_map_trial(task_arithmetic(LAMBDA), SRC, LIKE, reference=slow, examples=4, name="sum"),
    weight_map_trial(
        task_arithmetic(torch.tensor([0.3, -0.7], dtype=torch.float64)),
        SRC,
        LIKE,
        reference=slow,
        examples=4,
        name="tensor",
    ),
    weight_map_trial(dare(0.2, seed=3), SRC, {}, verbatim=False, examples=4, name="dare"),
    weight_map_trial(
        chain(dare(0.2), task_arithmetic(0.4)),
        SRC,
        LIKE,
        examples=4,
        name="dare and sum",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_scales() -> None:
    nothing = task_arithmetic(0.0).apply(SRC, {})
    whole = task_arithmetic({"x": 1.0}).apply(SRC, {})
    back = task_arithmetic({"x": -1.0}).apply(pool(base=net(0), x=net(1)), {})
    for name, start in net(0).items():
        if "running" not in name:
            assert torch.equal(nothing[name], start)
            torch.testing.assert_close(whole[name], net(1)[name] if start.is_floating_point() else start)
            if start.is_floating_point():
                torch.testing.assert_close(back[name], 2 * start - net(1)[name])
    plan = task_arithmetic({"x": 1.0}).plan(SRC, {})
    assert plan.made["0.weight"].sources == ("base/0.weight", "x/0.weight")
    assert plan.made["0.weight"].how == "base and 1 task vectors"
    assert plan.made["1.running_var"].how == "mean: a statistic"
    assert plan.unused["y/0.weight"] == "not among those that are merged"


def test_scale_is_learned_through() -> None:
    def value(scale: Tensor) -> Tensor:
        return task_arithmetic(scale).apply(SRC, {})["0.weight"].sin().sum()

    at = torch.tensor([0.3, 0.6], dtype=torch.float64)
    slope = torch.func.grad(value)(at)
    for i in range(2):
        step = 1e-6 * torch.eye(2, dtype=torch.float64)[i]
        assert abs((value(at + step) - value(at - step)).item() / 2e-6 - slope[i].item()) < 1e-7


def test_dare_keeps_the_expectation() -> None:
    drop, size = 0.9, 200_000
    src = pool(base={"w": torch.zeros(size)}, a={"w": torch.ones(size)}, b={"w": torch.ones(size)})
    new = dare(drop, seed=1).apply(src, {})
    kept = {name: new[f"{name}/w"] > 0 for name in "ab"}
    for name in "ab":
        assert new[f"{name}/w"].unique().tolist() == pytest.approx([0, 10])
        share = kept[name].double().mean().item()
        assert abs(share - 0.1) < 5 * (0.1 * 0.9 / size) ** 0.5
        assert abs(new[f"{name}/w"].mean().item() - 1) < 0.05
    # Members, tensors and seeds draw by themselves.
    both = (kept["a"] & kept["b"]).double().mean().item()
    assert abs(both - 0.01) < 5 * (0.01 / size) ** 0.5
    other = dare(drop, seed=2).apply(src, {})["a/w"] > 0
    assert abs((kept["a"] & other).double().mean().item() - 0.01) < 5 * (0.01 / size) ** 0.5
    assert torch.equal(dare(drop, seed=1).apply(src, {})["a/w"], new["a/w"])


def test_dare_passes_on_what_is_no_task_vector() -> None:
    new = dare(0.5).apply(SRC, {})
    assert list(new) == list(SRC)
    for name, x in SRC.items():
        if name.startswith("base/") or "running" in name or "tracked" in name:
            assert new[name] is x
    assert torch.equal(
        dare(0.0).apply(SRC, {})["x/0.bias"], SRC["base/0.bias"] + (SRC["x/0.bias"] - SRC["base/0.bias"])
    )
    merged = chain(dare(0.5), ties(0.5)).plan(SRC, LIKE)
    assert merged.made["0.weight"].how.startswith("0.5 of the task vector dropped, seed 0; base and 2 task vectors")


def test_refusals() -> None:
    for drop in (-0.1, 1.0, 1.5):
        with pytest.raises(TransferError, match="dare: drop must be from 0 up to but not 1"):
            dare(drop)
    with pytest.raises(TransferError, match="task_arithmetic: 2 checkpoints want 2 numbers, got"):
        task_arithmetic([1.0]).apply(SRC, {})
    with pytest.raises(TransferError, match="dare: the pool has no 'start'"):
        dare(base="start").apply(SRC, {})
