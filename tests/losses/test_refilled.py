"""`refilled` and `refilled_local` against their formulas in slow loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._refilled import refilled, refilled_local
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, margin: float = 0.2) -> Tensor:
    s, t = ([row / row.norm() if row.any() else row for row in x] for x in (student, teacher.detach()))

    def gap(x: list[Tensor], a: int, p: int, q: int) -> Tensor:
        return (x[a] - x[q]).norm() - (x[a] - x[p]).norm()

    found = []
    for a, p, q in itertools.permutations(range(len(labels)), 3):
        if labels[a] == labels[p] and labels[a] != labels[q] and 1e-12 < gap(s, a, p, q) <= margin:
            yes = (gap(t, a, p, q) / temperature).sigmoid()
            says = (gap(s, a, p, q) / temperature).sigmoid()
            found.append(yes * (yes / says).log() + (1 - yes) * ((1 - yes) / (1 - says)).log())
    return torch.stack(found).mean() if found else torch.zeros((), dtype=torch.float64)


def slow_local(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    there = sorted(set(labels.tolist()))
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student, teacher.detach(), strict=True):
        log_p, log_q = ((x[there] / temperature).log_softmax(0) for x in (t, s))
        total = total + sum(a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True))
    return total / len(student)


LABELS = torch.tensor([0, 1, 0, 2])
TRIALS = (
    loss_trial(
        functools.partial(refilled, temperature=0.5, margin=1.9),
        (torch.randn(4, 3), torch.randn(4, 3), LABELS),
        reference=functools.partial(slow, temperature=0.5, margin=1.9),
        examples=8,
    ),
    loss_trial(
        refilled_local,
        (torch.randn(4, 5), torch.randn(4, 5), LABELS),
        reference=slow_local,
        limits={"one class": lambda fn: (fn(torch.eye(3), torch.ones(3, 3), torch.tensor([1, 1, 1])), 0)},
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """zhijian's stages are written for a GPU."""
    monkeypatch.setattr(Tensor, "cuda", lambda self, *_: self)


@pytest.mark.usefixtures("on_the_cpu")
def test_triplets_beside_zhijian() -> None:
    pytest.importorskip("pytorch_metric_learning")
    other = theirs("zhijian.models.kd.loss.refilled", "Refilled_stage1", 4.0)
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(24, 5), torch.randn(24, 7), torch.randint(4, (24,))
    assert refilled(student, teacher, labels) > 0
    same(
        lambda s, t: refilled(s, t, labels),
        lambda s, t: other(s, t, labels) / 500,  # 1000, over twice the triplets
        student,
        teacher,
    )


@pytest.mark.usefixtures("on_the_cpu")
def test_local_classes_beside_zhijian() -> None:
    pytest.importorskip("pytorch_metric_learning")
    other = theirs("zhijian.models.kd.loss.refilled", "Refilled_stage2", 2.0)
    student, teacher, labels = torch.randn(6, 9), torch.randn(6, 9), torch.tensor([0, 3, 3, 8, 0, 5])
    same(
        lambda s, t: refilled_local(s, t, labels),
        lambda s, t: other(s, t.detach(), 9, labels),
        student,
        teacher,
    )


def test_a_batch_without_triplets_is_zero() -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    value = refilled(student, teacher, torch.arange(4))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.count_nonzero() == 0


def test_classes_not_in_the_batch_get_no_gradient() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    slope = torch.func.grad(refilled_local)(student, teacher, LABELS)
    assert slope[:, :3].count_nonzero() == 12
    assert slope[:, 3:].count_nonzero() == 0


def test_the_example_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    near = math.sqrt(2 - 2 / math.sqrt(1.01))
    coins = [1 / (1 + math.exp(math.sqrt(2))), 0.5]
    says = 1 / (1 + math.exp(-near))
    wanted = sum(p * math.log(p / says) + (1 - p) * math.log((1 - p) / (1 - says)) for p in coins) / 2
    value = refilled(student, teacher, torch.tensor([0, 0, 1]), temperature=1.0)
    assert value.item() == pytest.approx(wanted, rel=1e-5)


def test_what_is_refused() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(TransferError, match="refilled: wanted one class for each row"):
        refilled(x, x, LABELS[:3])
    with pytest.raises(TransferError, match="refilled: wanted one class for each row"):
        refilled(x, x, LABELS.float())
    with pytest.raises(TransferError, match="refilled_local: wanted one label for each row"):
        refilled_local(x, x, LABELS[:3])
    maps = torch.zeros(4, 3, 2)
    with pytest.raises(TransferError, match=r"refilled_local: wanted logits \(n, classes\)"):
        refilled_local(maps, maps, LABELS[:, None].expand(4, 2))
