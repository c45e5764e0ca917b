"""`kd` against the paper's formula in slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.utils._pytree import tree_map

from tests.support.peers import same, tapped, theirs
from ttransfer._claims import claims_of
from ttransfer._errors import TransferError
from ttransfer.losses import kd

SHAPES = [(1, 2), (5, 7), (4, 3, 6), (2, 5, 3, 2)]


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, dtype=torch.float64, generator=generator) * 3
    return student, teacher


def slow(student: Tensor, teacher: Tensor, temperature: float) -> float:
    def rows(x: Tensor) -> list[list[float]]:
        return np.moveaxis(x.numpy(), 1, -1).reshape(-1, x.shape[1]).tolist()

    def softened(row: list[float]) -> list[float]:
        odds = [math.exp(z / temperature) for z in row]
        return [o / sum(odds) for o in odds]

    total = 0.0
    for s, t in zip(rows(student), rows(teacher), strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(softened(t), softened(s), strict=True))
    return temperature**2 * total / len(rows(student))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_value(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = pair(shape)
    expected = slow(student, teacher, temperature)
    assert kd(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_default_temperature_is_4() -> None:
    student, teacher = pair((5, 7))
    assert kd(student, teacher).item() == pytest.approx(slow(student, teacher, 4.0), rel=1e-12)


Fn = Callable[..., Any]


def compiled(fn: Fn) -> Fn:
    torch.compiler.reset()
    return torch.compile(fn, backend="aot_eager", fullgraph=True)


def mapped(fn: Fn) -> Fn:
    return lambda *xs: tree_map(lambda y: y[0], vmap(fn)(*(torch.stack([x, 2 * x]) for x in xs)))


MODES: dict[str, Callable[[Fn], Fn]] = {
    "compiled": compiled,
    "vmapped": mapped,
    "compiled vmapped": lambda fn: compiled(mapped(fn)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_modes_agree(mode: str, shape: tuple[int, ...]) -> None:
    inputs = (*pair(shape), torch.tensor(3.0, dtype=torch.float64))

    def loss(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
        return kd(student, teacher, temperature=temperature)

    both = grad_and_value(loss, argnums=(0, 2))
    torch.testing.assert_close(MODES[mode](both)(*inputs), both(*inputs), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient(shape: tuple[int, ...]) -> None:
    student, teacher = pair(shape)
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, t: kd(s, teacher, temperature=t), (student.requires_grad_(), temperature), atol=1e-8
    )


def test_temperatures_map() -> None:
    student, teacher = pair((5, 7))
    temperatures = torch.tensor([1.0, 2.0, 8.0], dtype=torch.float64)
    got = vmap(lambda t: kd(student, teacher, temperature=t))(temperatures)
    assert got.tolist() == pytest.approx([slow(student, teacher, t) for t in (1.0, 2.0, 8.0)], rel=1e-12)


def test_float64_temperature_keeps_float32() -> None:
    student, teacher = (x.float() for x in pair((5, 7)))
    temperatures = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert kd(student, teacher, temperature=temperatures[0]).dtype == torch.float32


def test_teacher_gets_no_gradient() -> None:
    student, teacher = pair((5, 7))
    assert grad(kd, 1)(student, teacher).count_nonzero() == 0
    assert grad(kd, 0)(student, teacher).count_nonzero() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_and_flat_at_equality(shape: tuple[int, ...]) -> None:
    student, _ = pair(shape)
    assert kd(student, student).item() == 0
    assert grad(kd)(student, student).abs().max() < 1e-15


def test_one_class_is_zero() -> None:
    assert kd(*pair((5, 1))).item() == 0


def test_not_negative() -> None:
    for seed in range(20):
        assert kd(*pair((3, 4), seed)).item() > 0


def test_shift_of_a_row_changes_nothing() -> None:
    student, teacher = pair((5, 7))
    shift = torch.arange(5, dtype=torch.float64)[:, None]
    assert torch.allclose(kd(student + shift, teacher - shift), kd(student, teacher), rtol=1e-12)


def test_rows_permute() -> None:
    student, teacher = pair((5, 7))
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(kd(student[order], teacher[order]), kd(student, teacher), rtol=1e-12)
    assert not torch.allclose(kd(student[order], teacher), kd(student, teacher), rtol=1e-3)


def test_high_temperature_is_half_the_squared_difference() -> None:
    student, teacher = pair((5, 7))
    gap = student - teacher
    gap = gap - gap.mean(1, keepdim=True)
    assert kd(student, teacher, temperature=1e5).item() == pytest.approx(0.5 * gap.square().mean().item(), rel=1e-4)


def test_claims_a_mean_over_rows() -> None:
    student, teacher = pair((5, 7, 2))
    known = claims_of(kd)
    assert not known.coupled
    assert known.count is not None
    parts = [(student[:2], teacher[:2]), (student[2:], teacher[2:])]
    whole = sum(float(known.count(*p)) * kd(*p) for p in parts) / float(known.count(student, teacher))
    assert torch.allclose(torch.as_tensor(whole), kd(student, teacher), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_confident_logits_are_finite(dtype: torch.dtype, temperature: float) -> None:
    student = torch.tensor([[1e3, -1e3, 0.0], [0.0, 0.0, 1e3]], dtype=dtype)
    teacher = student.flip(1)
    loss = kd(student, teacher, temperature=temperature)
    slope = grad(lambda s: kd(s, teacher, temperature=temperature))(student)
    assert loss.dtype == slope.dtype == dtype
    assert loss.isfinite()
    assert slope.isfinite().all()
    # KL is the gap of the teacher's winner: 1000 in the first row, 1000 in the second.
    assert loss.item() == pytest.approx(1e3 * temperature, rel=1e-2)


def test_errors_name_shapes_and_dtypes() -> None:
    with pytest.raises(TransferError, match=r"kd: .*student \(4, 10\) float32 and teacher \(4, 9\) float64"):
        kd(torch.zeros(4, 10), torch.zeros(4, 9, dtype=torch.float64))
    with pytest.raises(TransferError, match=r"wanted logits \(n, classes, \.\.\.\).*student \(4,\)"):
        kd(torch.zeros(4), torch.zeros(4))
    with pytest.raises(TransferError, match=r"not labels.*teacher \(4, 10\) int64"):
        kd(torch.zeros(4, 10), torch.zeros(4, 10, dtype=torch.int64))


def test_beside_others() -> None:
    student, teacher = pair((5, 7))
    labels = torch.tensor([0, 6, 2, 3, 1])
    same(kd, theirs("modelopt.torch.distill", "LogitsDistillationLoss", 4.0, "batchmean"), student, teacher)
    io = {f"{side}_module_{end}": x for side in ("student", "teacher") for end, x in (("path", "x"), ("io", "output"))}
    other = theirs("torchdistill.losses.mid_level", "KDLoss", **io, temperature=4.0, alpha=0.5, beta=1.0)

    def alone(s: Tensor, t: Tensor) -> Tensor:
        return other(tapped(x=s), tapped(x=t), labels) - 0.5 * torch.nn.functional.cross_entropy(s, labels)

    same(kd, alone, student, teacher)
    bare = theirs("torchdistill.losses.mid_level", "KDLoss", **io, temperature=4.0, alpha=0.0)
    assert kd(student, teacher).item() == pytest.approx(
        16 * bare(tapped(x=student), tapped(x=teacher)).item(), rel=1e-9
    )
