"""`consistency` and `uda` against their formulas in slow loops, and how far TLlib's formulas are off."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.steps import refused, run, small_step
from ttransfer.align._consistency import consistency, uda
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    total = student.new_zeros(())
    for s, t in zip(student, teacher.detach(), strict=True):
        for j in range(len(s)):
            total = total + (s[j].exp() / s.exp().sum() - t[j].exp() / t.exp().sum()) ** 2
    return total / student.numel()


def slow_uda(strong: Tensor, weak: Tensor, threshold: float = 0.8, temperature: float = 0.4) -> Tensor:
    total = strong.new_zeros(())
    for s, w in zip(strong, weak.detach(), strict=True):
        if w.softmax(0).max() > threshold:
            sharp = (w / temperature).softmax(0)
            for j in range(len(s)):
                total = total + sharp[j] * ((w / temperature).log_softmax(0)[j] - s.log_softmax(0)[j])
    return total / len(strong)


VIEWS = {"strong": torch.randn(4, 3), "weak": torch.randn(4, 3)}
TRIALS = (
    loss_trial(
        consistency,
        reference=slow_consistency,
        limits={"opposite": lambda fn: (fn(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]])), 1)},
        examples=4,
    ),
    loss_trial(
        functools.partial(uda, threshold=0.5),
        VIEWS,
        reference=functools.partial(slow_uda, threshold=0.5),
        limits={"nobody is sure": lambda fn: (fn(torch.randn(3, 2), torch.zeros(3, 2)), 0)},
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_without_sharpening_and_threshold_it_is_the_divergence() -> None:
    strong, weak = 3 * torch.randn(2, 6, 4, dtype=torch.float64)
    wanted = F.kl_div(strong.log_softmax(1), weak.softmax(1), reduction="batchmean")
    torch.testing.assert_close(uda(strong, weak, threshold=0.0, temperature=1.0), wanted, rtol=1e-12, atol=0)
    fix = tt.align.fixmatch(strong, weak, threshold=0.5)
    torch.testing.assert_close(uda(strong, weak, threshold=0.5, temperature=1e-4), fix, rtol=1e-9, atol=0)


def tllib_uda(strong: Tensor, weak: Tensor, threshold: float, temperature: float) -> Tensor:
    """What TLlib's StrongWeakConsistencyLoss computes, written from what it does."""
    kept = weak.softmax(1).amax(1) > threshold
    rows = F.kl_div((strong / temperature).log_softmax(1), weak.softmax(1), reduction="none").sum(1)
    return (rows * kept).sum() / max(int(kept.sum()), 1)


def test_tllibs_is_another_loss() -> None:
    weak = torch.tensor([[3.0, 0.0], [0.1, 0.0]], dtype=torch.float64)
    # A student that predicts what the sharpened teacher does has nothing to learn; TLlib's pulls it to be less sure.
    found = uda(weak / 0.4, weak)
    theirs, slope = tllib_uda(weak / 0.4, weak, 0.8, 0.4), torch.func.grad(tllib_uda)(weak / 0.4, weak, 0.8, 0.4)
    assert found < 1e-15
    assert torch.func.grad(uda)(weak / 0.4, weak).abs().max() < 1e-15
    assert theirs > 0.4
    assert slope[0, 0] > 0.1


def test_a_mean_teacher_is_read_as_a_net() -> None:
    term = tt.term(consistency, "student(target)", "mean(target)")
    task = tt.term(F.cross_entropy, "student(source)", "source.y")
    step = small_step(
        {"task": task, "consistency": term},
        {"student": tt.functional(mlp(1))},
        ema={"mean": tt.ema("student", 0.9)},
    )
    batch = vectors(0)
    state, logs = step(step.init(batch), batch)
    assert logs["consistency"] == 0
    state, logs = run(step, state, batch)
    assert logs["consistency"] > 0


def test_what_is_refused() -> None:
    refused(lambda: consistency(torch.zeros(4, 3), torch.zeros(3, 3)), "consistency: wanted logits of one shape")
    refused(lambda: uda(torch.zeros(4, 3), torch.zeros(3, 3)), "uda: wanted logits of one shape", "weak")
