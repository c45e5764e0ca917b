"""Model stock: as far towards the mean as the angle says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import model_stock, pool


def net(seed: int, at: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return at + torch.rand(shape, generator=generator, dtype=torch.float64)

    return {"w": drawn(6, 5), "b": drawn(20), "bn.running_mean": drawn(3), "n": torch.tensor(seed)}


# What was tuned is positive throughout, and stays so in the trial: the task vectors then point the same way.
SRC = pool(base=net(0, -2.0), x=net(1, 1.0), y=net(2, 1.0), z=net(3, 1.0))


def slow(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Angles of pairs, one after the other, without a gradient."""
    new = {"n": src["base/n"], "bn.running_mean": sum(src[f"{who}/bn.running_mean"].detach() for who in "xyz") / 3}
    for name in ("w", "b"):
        start = src[f"base/{name}"].flatten().tolist()
        tuned = [src[f"{who}/{name}"].flatten().tolist() for who in "xyz"]
        vectors = [[x - s for x, s in zip(one, start, strict=True)] for one in tuned]
        cosines = []
        for a, b in itertools.combinations(vectors, 2):
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            cosines.append(dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
        cosine = sum(cosines) / len(cosines)
        t = 3 * cosine / (1 + 2 * cosine)
        mean = [sum(column) / 3 for column in zip(*tuned, strict=True)]
        values = [t * m + (1 - t) * s for m, s in zip(mean, start, strict=True)]
        new[name] = torch.tensor(values, dtype=torch.float64).reshape(src[f"base/{name}"].shape)
    return new


TRIALS = (weight_map_trial(model_stock(), SRC, net(4, 0.0), reference=slow, examples=4, name="stock"),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def stock(*tuned: list[float]) -> list[float]:
    members = {f"m{i}": {"w": torch.tensor(x, dtype=torch.float64)} for i, x in enumerate(tuned)}
    return model_stock().apply(pool({"base": {"w": torch.zeros(2, dtype=torch.float64)}, **members}), {})["w"].tolist()


def test_geometry() -> None:
    """The paper's point: the foot of the perpendicular from the shell's centre, so that the two chords are upright."""
    a, b = torch.tensor([1.0, 0.2], dtype=torch.float64), torch.tensor([0.2, 1.0], dtype=torch.float64)
    foot = torch.tensor(stock(a.tolist(), b.tolist()), dtype=torch.float64)
    cosine = (a @ b / (a.norm() * b.norm())).item()
    t = 2 * cosine / (1 + cosine)
    torch.testing.assert_close(foot, t * (a + b) / 2, rtol=0, atol=1e-12)


def test_limits() -> None:
    assert stock([1.0, 2.0], [1.0, 2.0]) == pytest.approx([1, 2], abs=1e-12)
    assert stock([1.0, 0.0], [0.0, 1.0]) == [0.0, 0.0]
    assert stock([1.0, 0.0], [-1.0, 0.0]) == [0.0, 0.0]
    assert stock([1.0, 0.0], [-1.0, 0.1], [-1.0, 0.1]) == [0.0, 0.0]
    assert stock([0.0, 0.0], [1.0, 1.0]) == [0.0, 0.0]


def test_gradient_is_finite_at_the_base() -> None:
    def value(x: Tensor) -> Tensor:
        return model_stock().apply(pool(base={"w": torch.zeros(2)}, a={"w": x}, b={"w": torch.ones(2)}), {})["w"].sum()

    assert torch.func.grad(value)(torch.zeros(2)).isfinite().all()


def test_one_is_too_few() -> None:
    with pytest.raises(TransferError, match="model_stock: wanted at least 2 checkpoints beside the base, got 'a'"):
        model_stock().apply(pool(base={"w": torch.ones(1)}, a={"w": torch.ones(1)}), {})
