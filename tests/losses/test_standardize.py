"""`standardize` and `standardized_kd` against slow loops and torchdistill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from tests.support import peers
from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._dkd import dkd
from ttransfer.losses._standardize import standardize, standardized_kd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_standardize(row: Tensor) -> Tensor:
    mean = sum(row, 0 * row[0]) / len(row)
    variance = sum(((z - mean) ** 2 for z in row), 0 * row[0]) / (len(row) - 1)
    if variance.item() < 1e-24:
        return 0 * row
    return (row - mean) / (variance.sqrt() + 1e-7)


def slow(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher.detach(), strict=True):
        log_p = (slow_standardize(t) / temperature).log_softmax(0)
        log_q = (slow_standardize(s) / temperature).log_softmax(0)
        for a, b in zip(log_p, log_q, strict=True):
            total = total + temperature**2 * a.exp() * (a - b)
    return total / len(student)


MAPS = (torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2))
TRIALS = (
    loss_trial(standardized_kd, reference=slow),
    loss_trial(standardized_kd, MAPS, name="standardized_kd of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator) * 2
    return student, teacher, torch.randint(0, 5, (6,), generator=generator)


def torchdistill(**given: Any) -> Any:
    paths = {f"{side}_module_{end}": "x" for side in ("student", "teacher") for end in ("path", "io")}
    return peers.theirs("torchdistill.losses.mid_level", "LogitStdKDLoss", **paths, **given)


def theirs(peer: Any, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    return peer({"x": {"x": student}}, {"x": {"x": teacher}}, labels)


def test_torchdistill_agrees() -> None:
    student, teacher, labels = case()
    with_labels, without = (
        torchdistill(temperature=2.0, alpha=1e-12, beta=1.0),
        torchdistill(temperature=2.0, alpha=0.0),
    )
    torch.testing.assert_close(standardize(student), without.standardize(student), rtol=1e-12, atol=0)
    got = grad_and_value(standardized_kd)(student, teacher)
    expected = grad_and_value(lambda s: theirs(with_labels, s, teacher, labels))(student)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    # Without labels it drops T².
    torch.testing.assert_close(got[1], 4 * theirs(without, student, teacher), rtol=1e-9, atol=0)


def test_rows_of_equal_logits_are_flat_here_and_steep_there() -> None:
    _, teacher, _ = case()
    even = torch.zeros_like(teacher)
    assert grad(standardized_kd)(even, teacher).count_nonzero() == 0
    assert grad(standardized_kd)(even + 0.1, teacher).count_nonzero() == 0
    peer = torchdistill(temperature=2.0, alpha=0.0)
    assert grad(lambda s: theirs(peer, s, teacher))(even).abs().max() > 1e5


def test_a_row_may_have_a_scale_and_a_shift_of_its_own() -> None:
    student, teacher, _ = case()
    scale, shift = torch.tensor([[0.5], [1.0], [3.0], [9.0], [20.0], [0.1]]).double(), torch.arange(6.0)[:, None]
    got = standardized_kd(student * scale + shift, teacher)
    torch.testing.assert_close(got, standardized_kd(student, teacher), rtol=1e-5, atol=0)


def test_it_goes_before_other_losses() -> None:
    student, teacher, labels = case()
    s, t = standardize(student), standardize(teacher)
    assert s.mean(1).abs().max() < 1e-12
    torch.testing.assert_close(s.std(1), torch.ones(6, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(kd(s, t, temperature=2.0), standardized_kd(student, teacher), rtol=1e-12, atol=0)
    assert grad(lambda x: dkd(standardize(x), t, labels, temperature=2.0))(student).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_and_the_shape_stay(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5).to(dtype) * 1e3
    assert (standardize(x).dtype, standardize(x).shape) == (dtype, x.shape)
    assert grad(lambda x: standardize(x)[:, 0].sum())(x).isfinite().all()
    compiled = torch.compile(standardize, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), standardize(x))
    torch.testing.assert_close(vmap(standardize)(torch.stack([x, 2 * x]))[0], standardize(x))


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"standardize: wanted at least two classes, got logits \(4, 1\)"):
        standardize(torch.zeros(4, 1))
    with pytest.raises(TransferError, match=r"standardized_kd: wanted tensors of one shape"):
        standardized_kd(torch.zeros(4, 3), torch.zeros(4, 2))
