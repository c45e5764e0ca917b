"""`topk_kd` and `save_topk` against `kd` with all logits written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._topk import save_topk, topk_kd
from ttransfer.testing import loss_trial, parametrize_with_checks, strategies


def written_out(values: Tensor, indices: Tensor, classes: int) -> Tensor:
    rows = []
    for row, at in zip(values.detach(), indices.tolist(), strict=True):
        logits = [row[-1]] * classes
        for value, j in zip(row[:-1], at, strict=True):
            logits[j] = value
        rows.append(torch.stack(logits))
    return torch.stack(rows)


def slow(student: Tensor, values: Tensor, indices: Tensor, temperature: float = 4.0) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, written_out(values, indices, student.shape[1]), strict=True):
        log_p, log_q = (t.to(s.dtype) / temperature).log_softmax(0), (s / temperature).log_softmax(0)
        for p, q in zip(log_p, log_q, strict=True):
            total = total + temperature**2 * p.exp() * (p - q)
    return total / len(student)


@claims(
    coupled=False,
    non_negative=True,
    shift_invariant=True,
    double_backward=True,
    not_stationary="the classes that are not saved are even",
)
def saved_kd(student: Tensor, teacher: Tensor) -> Tensor:
    """What is saved is of two classes."""
    return topk_kd(student, *save_topk(teacher.detach(), 2))


def case(rows: int = 4, classes: int = 5) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return student * 2, teacher * 3


def drawn(family: str) -> st.SearchStrategy[tuple[Tensor, ...]]:
    logits = strategies.logits((4, 5), family=family)
    return st.tuples(logits, logits).map(lambda both: (both[0], *save_topk(both[1], 2)))


TRIALS = (
    loss_trial(topk_kd, drawn("moderate") | drawn("confident"), reference=slow),
    loss_trial(saved_kd, (torch.randn(4, 5), torch.randn(4, 5))),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("k", [1, 3, 4, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_kd_with_the_logits_written_out(k: int, temperature: float) -> None:
    student, teacher = case()
    values, indices = save_topk(teacher, k)
    full = written_out(values, indices, 5)
    got = grad_and_value(lambda s: topk_kd(s, values, indices, temperature=temperature))(student)
    expected = grad_and_value(lambda s: kd(s, full, temperature=temperature))(student)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [4, 5])
def test_of_all_but_one_nothing_is_lost(k: int) -> None:
    student, teacher = case()
    torch.testing.assert_close(topk_kd(student, *save_topk(teacher, k)), kd(student, teacher), rtol=1e-10, atol=0)


def test_what_is_saved() -> None:
    _, teacher = case()
    values, indices = save_topk(teacher, 2)
    p = teacher.softmax(1)
    for row in range(4):
        order = sorted(range(5), key=lambda j: -teacher[row, j].item())
        assert indices[row].tolist() == order[:2]
        assert values[row, :2].tolist() == [teacher[row, j].item() for j in order[:2]]
        left = [math.exp(teacher[row, j].item()) for j in order[2:]]
        assert values[row, 2].item() == pytest.approx(math.log(sum(left) / 3), rel=1e-12)
    # At a temperature of 1 the saved classes have the probabilities that they had.
    got = written_out(values, indices, 5).softmax(1)
    torch.testing.assert_close(got.gather(1, indices), p.gather(1, indices), rtol=1e-11, atol=0)


def test_half_precision_is_enough_and_the_dtype_is_the_students() -> None:
    student, teacher = (x.float() for x in case(4, 1000))
    values, indices = save_topk(teacher, 10)
    exact = topk_kd(student, values, indices)
    half = topk_kd(student, values.half(), indices.int())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=1e-3)


def test_saved_probabilities_are_softened_twice() -> None:
    """e2eAIOK saves probabilities and takes them for logits."""
    _, teacher = case(4, 100)
    p = teacher.softmax(1)

    def entropy(x: Tensor) -> float:
        return -(x * x.log()).sum(1).mean().item()

    assert entropy((p / 4).softmax(1)) > 0.9999 * math.log(100)
    assert entropy((written_out(*save_topk(teacher, 20), 100) / 4).softmax(1)) < 0.99 * math.log(100)


def test_sure_teachers_and_modes() -> None:
    student = torch.tensor([[1e3, -1e3, 0.0, 0.0]])
    values, indices = save_topk(student.flip(1), 2)
    assert values.isfinite().all()
    slope, value = grad_and_value(topk_kd)(student, values, indices)
    assert value.isfinite()
    assert slope.isfinite().all()
    assert grad(topk_kd, 1)(student, values, indices).count_nonzero() == 0
    both = vmap(save_topk, in_dims=(0, None))(torch.stack([student, -student]), 2)
    torch.testing.assert_close(both[0][0], save_topk(student, 2)[0])
    compiled = torch.compile(lambda z: save_topk(z, 2), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(student), save_topk(student, 2))


def test_errors() -> None:
    x = torch.zeros(4, 5)
    for k in (0, 6):
        with pytest.raises(TransferError, match=rf"save_topk: wanted logits .* k={k}"):
            save_topk(x, k)
    values, indices = save_topk(x, 2)
    with pytest.raises(TransferError, match=r"topk_kd: wanted a student .* see save_topk"):
        topk_kd(x, values[:, :2], indices)
    with pytest.raises(TransferError, match=r"topk_kd: wanted a student .* see save_topk"):
        topk_kd(x, values, indices.float())
    with pytest.raises(TransferError, match=r"topk_kd: wanted a student .* see save_topk"):
        topk_kd(x[:, :1], values, indices)
