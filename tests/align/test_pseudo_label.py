"""`pseudo_label` and `fixmatch` against their formulas in slow loops."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.steps import refused, small_step
from ttransfer.align._pseudo_label import fixmatch, pseudo_label
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(strong: Tensor, weak: Tensor, threshold: float) -> Tensor:
    total = strong.new_zeros(())
    for s, w in zip(strong, weak.detach(), strict=True):
        q = [float(x) for x in w.softmax(0)]
        best = max(range(len(q)), key=q.__getitem__)
        if q[best] >= threshold:
            total = total - (s[best] - s.logsumexp(0))
    return total / len(strong)


TRIALS = (
    loss_trial(
        pseudo_label,
        reference=lambda logits: slow(logits, logits, 0.0),
        limits={
            "sure": lambda fn: (fn(torch.tensor([[0.0, 1e3]])), 0),
            "no idea": lambda fn: (fn(torch.zeros(3, 4)), torch.tensor(4.0).log()),
        },
        examples=4,
    ),
    loss_trial(
        functools.partial(fixmatch, threshold=0.6),
        {"strong": torch.randn(4, 3), "weak": torch.randn(4, 3)},
        reference=lambda strong, weak: slow(strong, weak, 0.6),
        limits={"nobody is sure": lambda fn: (fn(torch.randn(3, 2), torch.zeros(3, 2)), 0)},
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_the_threshold_may_be_reached_and_the_mean_is_over_all() -> None:
    strong, weak = torch.randn(6, 3, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.float64)
    weak[2, 1] = 9.0
    for threshold in (0.0, 0.5, 0.95, 1.0):
        torch.testing.assert_close(
            fixmatch(strong, weak, threshold=threshold), slow(strong, weak, threshold), rtol=1e-12, atol=0
        )
    sure = torch.tensor([[200.0, 0.0]])
    assert fixmatch(torch.zeros(1, 2), sure, threshold=1.0) > 0.69
    assert torch.func.grad(pseudo_label)(sure).count_nonzero() == 0


def test_maps_are_rows_of_positions() -> None:
    strong, weak = torch.randn(2, 3, 4, 5, 2, dtype=torch.float64)
    flat = [x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (strong, weak)]
    torch.testing.assert_close(
        fixmatch(strong, weak, threshold=0.4), fixmatch(*flat, threshold=0.4), rtol=1e-12, atol=0
    )


def test_two_views_in_a_step() -> None:
    one = vectors(0)
    batch = {"weak": {"x": one["target"]["x"]}, "strong": {"x": one["target"]["x"] + 0.1}}
    term = tt.term(fixmatch, "student(strong)", "student(weak)", threshold=0.3)
    step = small_step({"fix": term}, {"student": tt.functional(mlp(1))})
    _, logs = step(step.init(batch), batch)
    weak, strong = (mlp(1)(batch[name]["x"]) for name in ("weak", "strong"))
    torch.testing.assert_close(logs["fix"], slow(strong, weak, 0.3).detach(), rtol=1e-9, atol=0)
    assert "fix.threshold" in logs


def test_what_is_refused() -> None:
    refused(lambda: fixmatch(torch.zeros(4, 3), torch.zeros(3, 3)), "fixmatch: wanted logits of one shape", "strong")
    refused(lambda: pseudo_label(torch.zeros(4)), "pseudo_label: wanted logits (n, classes, ...)")
    refused(lambda: fixmatch(torch.zeros(4, 3), torch.zeros(4, 2)), "fixmatch: wanted logits of the same classes")
