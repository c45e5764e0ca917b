"""Interpolation along the arc."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import pool, slerp


def net(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {"w": drawn(3, 4), "b": drawn(3), "bn.running_var": drawn(3).abs() + 0.1, "n": torch.tensor(seed)}


SRC = pool(base=net(0), tuned=net(1))


def slow(t: float) -> Any:
    """The textbook's formula, with the arc cosine, which has no gradient here."""

    def formula(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new = {"n": src["base/n"]}
        for name in ("w", "b", "bn.running_var"):
            a, b = (src[f"{who}/{name}"].detach().flatten().tolist() for who in ("base", "tuned"))
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            omega = math.acos(dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
            one, two = math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)
            if "running" in name:
                one, two = 1 - t, t
            new[name] = torch.tensor([one * x + two * y for x, y in zip(a, b, strict=True)], dtype=torch.float64)
            new[name] = new[name].reshape(src[f"base/{name}"].shape)
        return new

    return formula


TRIALS = (weight_map_trial(slerp(0.3), SRC, net(2), reference=slow(0.3), examples=4, name="slerp"),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def arc(a: list[float], b: list[float], t: float | Tensor = 0.5, dtype: torch.dtype = torch.float64) -> Tensor:
    x, y = (torch.tensor(side, dtype=dtype) for side in (a, b))
    return slerp(t).apply(pool(base={"w": x}, tuned={"w": y}), {})["w"]


def test_length_is_kept() -> None:
    for t in (0.0, 0.2, 0.5, 1.0):
        assert arc([3.0, 0.0], [0.0, 3.0], t).norm().item() == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize("apart", [1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 0.0])
def test_nearly_parallel_is_exact(apart: float) -> None:
    """The result lies on the arc whatever the angle: arc cosines lose half of the digits here."""
    found = arc([1.0, 0.0], [math.cos(apart), math.sin(apart)], 0.25)
    wanted = [math.cos(apart / 4), math.sin(apart / 4)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-15)


def test_where_there_is_no_arc_the_line_is_taken() -> None:
    assert arc([2.0, 0.0], [4.0, 0.0], 0.25).tolist() == [2.5, 0.0]
    assert arc([1.0, 0.0], [-1.0, 0.0], 0.25).tolist() == [0.5, 0.0]
    assert arc([0.0, 0.0], [1.0, 1.0], 0.25).tolist() == [0.25, 0.25]
    assert arc([0.0, 0.0], [0.0, 0.0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("b", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.3, 0.4]])
def test_gradients_are_finite(b: list[float]) -> None:
    def value(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return slerp(t).apply(pool(base={"w": a}, tuned={"w": b}), {})["w"].sum()

    given = torch.tensor([1.0, 0.0]), torch.tensor(b), torch.tensor(0.3)
    for slope in torch.func.grad(value, argnums=(0, 1, 2))(*given):
        assert slope.isfinite().all()


def test_half_precision() -> None:
    found = arc([1.0, 0.0], [0.0, 1.0], dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == pytest.approx([0.5**0.5] * 2, abs=4e-3)
