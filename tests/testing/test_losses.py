"""Every loss of the library on trial, with what it claims and a slow formula beside it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from tests.support.trials import all_trials
from ttransfer._claims import claims_of
from ttransfer.testing import LawBroken, Tags, Trial, check_loss, judge, loss_trial, parametrize_with_checks, strategies

HELD = {"gradcheck": "the bandwidth is the batch's own and held constant, as the papers' code has it"}
METRIC = Tags(zero_at_equality=True, non_negative=True, symmetric=True, rotation_invariant=True, coupled=True)


def slow_kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher.detach(), strict=True):
        p, log_q = (t / temperature).softmax(0), (s / temperature).log_softmax(0)
        total = total + sum((a * (a.log() - b) for a, b in zip(p, log_q, strict=True) if a > 0), torch.tensor(0.0))
    return temperature**2 * total / len(student)


def slow_entropy(logits: Tensor) -> Tensor:
    rows = [-sum((p * p.log() for p in row.softmax(0) if p > 0), torch.tensor(0.0)) for row in logits]
    return torch.stack([torch.as_tensor(row) for row in rows]).mean()


def slow_coral(source: Tensor, target: Tensor) -> Tensor:
    def covariance(x: Tensor) -> Tensor:
        mean = x.mean(0)
        return sum((torch.outer(row - mean, row - mean) for row in x), torch.zeros(())) / (len(x) - 1)

    return (covariance(source) - covariance(target)).square().sum() / (4 * source.shape[1] ** 2)


def slow_mmd(source: Tensor, target: Tensor) -> Tensor:
    pooled = torch.cat([source, target]).detach()
    pairs = [(a - b).square().sum() for a, b in itertools.permutations(pooled, 2)]
    variance = torch.stack(pairs).mean() if bool(torch.stack(pairs).any()) else torch.ones((), dtype=source.dtype)

    def mean(xs: Tensor, ys: Tensor) -> Tensor:
        cells = [
            sum((-(x - y).square().sum() / (2 * c * variance)).exp() for c in (0.125, 0.25, 0.5, 1.0, 2.0))
            for x, y in itertools.product(xs, ys)
        ]
        return torch.stack([torch.as_tensor(cell) for cell in cells]).mean()

    return mean(source, source) + mean(target, target) - 2 * mean(source, target)


def hot(loss: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    s, t = torch.tensor([[1.0, -1.0, 3.0]]).double(), torch.tensor([[0.5, 2.0, 0.0]]).double()
    gap = (s - s.mean()) - (t - t.mean())
    return functools.partial(loss, temperature=1e4)(s, t), gap.square().mean() / 2


TRIALS = (
    loss_trial(
        tt.losses.kd,
        tags=Tags(
            zero_at_equality=True, non_negative=True, shift_invariant=True, class_symmetric=True, double_backward=True
        ),
        reference=slow_kd,
        limits={"hot": hot},
    ),
    loss_trial(
        functools.partial(tt.losses.kd, temperature=1.0),
        tags=Tags(zero_at_equality=True, non_negative=True, shift_invariant=True),
        reference=functools.partial(slow_kd, temperature=1.0),
        name="kd at 1",
    ),
    loss_trial(
        tt.losses.kd,
        (torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)),
        tags=Tags(zero_at_equality=True, non_negative=True),
        name="kd of maps",
    ),
    loss_trial(
        tt.losses.entropy,
        tags=Tags(
            non_negative=True, shift_invariant=True, class_symmetric=True, row_symmetric=True, double_backward=True
        ),
        reference=slow_entropy,
        limits={
            "uniform": lambda fn: (fn(torch.zeros(2, 5)), math.log(5)),
            "sure": lambda fn: (fn(torch.eye(3) * 1e3), 0),
        },
    ),
    loss_trial(
        tt.align.mmd,
        tags=METRIC._replace(scale_invariant=True),
        reference=slow_mmd,
        limits={"far apart": lambda fn: (fn(torch.zeros(2, 1), torch.full((2, 1), 9.0), bandwidth=0.1), 10)},
        expected_failed_checks=HELD,
    ),
    loss_trial(tt.align.coral, tags=METRIC._replace(double_backward=True), reference=slow_coral),
    loss_trial(
        tt.align.domain_adversarial,
        tags=Tags(non_negative=True, coupled=None),
        limits={"unsure": lambda fn: (fn(torch.zeros(2), torch.zeros(3)), math.log(2))},
    ),
    loss_trial(F.cross_entropy, tags=Tags(non_negative=True, shift_invariant=True, ignore_index=-100)),
    loss_trial(F.mse_loss, tags=Tags(symmetric=None, non_negative=True, repeat_invariant=True, coupled=False)),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


# On trial as functions of tensors, which their tests make of them: they take lists of domains, or a net.
WRAPPED = {tt.align.fishr, tt.align.vat, tt.align.vrex}
# They take functions of parameters, or give only those a gradient: their tests hold them to autograd in every mode.
BY_HAND = {tt.align.gradient_penalty, tt.align.iga, tt.align.mldg}


def test_every_loss_of_the_library_is_on_trial() -> None:
    public = {fn for module in (tt.losses, tt.align) for fn in map(vars(module).get, module.__all__)}
    trials = all_trials()
    tried = {getattr(trial.subject.fn, "func", trial.subject.fn) for trial in trials}
    assert {fn for fn in public - tried if claims_of(fn).own} == WRAPPED | BY_HAND
    compared = {getattr(t.subject.fn, "func", t.subject.fn) for t in trials if t.subject.reference is not None}
    losses = {getattr(tt.losses, name) for name in tt.losses.__all__}
    assert {fn for fn in losses - compared if claims_of(fn).own} == set()


def test_a_strategy_of_the_users_own_is_all_that_is_drawn() -> None:
    seen: list[Tensor] = []

    def odd(features: Tensor) -> Tensor:
        seen.append(features)
        return features.square().mean()

    own = strategies.features((2, 3), family="moderate").map(lambda x: (x + 100,))
    assert not judge(loss_trial(odd, own), only=["scalar", "is-finite", "gradcheck"]).failed
    assert all(x.abs().min() > 50 for x in seen if x.dtype == torch.float64 and x.ndim == 2)


def test_a_report_and_a_failure() -> None:
    def undeclared(student: Tensor, teacher: Tensor) -> Tensor:
        return tt.losses.kd(student, teacher)

    report = check_loss(undeclared)
    assert {"shift-invariant", "zero-at-equality"} <= set(report.seems)
    assert not report.failed
    with pytest.raises(LawBroken, match=r"kd obeys .* fails 1") as found:
        check_loss(tt.losses.kd, tags=Tags(symmetric=True))
    assert [o.law.name for o in found.value.report.failed] == ["symmetric"]


def test_modules_and_partials_are_losses() -> None:
    assert loss_trial(torch.nn.KLDivLoss(reduction="batchmean", log_target=True)).name == "KLDivLoss"
    assert loss_trial(functools.partial(tt.losses.kd, temperature=2.0)).name == "kd"


def test_a_module_with_tensors_of_its_own_follows_its_inputs_dtype() -> None:
    own_weights = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    example = (torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert not check_loss(own_weights, example, tags=Tags(shift_invariant=True, non_negative=True)).failed


def test_a_reference_that_says_nothing_is_no_reference() -> None:
    def nowhere(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).sum() * math.nan

    (outcome,) = judge(loss_trial(tt.losses.kd, reference=nowhere), only=["reference"]).failed
    assert "nothing was compared" in outcome.found


def test_a_strategy_must_draw_what_the_loss_takes() -> None:
    trial: Trial = loss_trial(tt.losses.kd, st.just((torch.zeros(2, 2), torch.zeros(3, 2))))
    (outcome,) = judge(trial, only=["scalar"]).failed
    assert "it raised TransferError: kd" in outcome.found
