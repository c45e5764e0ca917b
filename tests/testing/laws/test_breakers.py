"""Every law of losses: a loss that breaks it is told so, in words; and its twin is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from ttransfer.testing import Tags, judge, loss_trial
from ttransfer.testing._losses import GROUPS


class Breaker(NamedTuple):
    """A loss that breaks a law, one that does not, and what is said of the first."""

    breaks: Callable[..., Any]
    obeys: Callable[..., Any]
    says: str
    tags: Tags = Tags()
    more: Mapping[str, Any] = {}


def two_means(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher.detach()).square().mean()


def counting() -> Callable[[Tensor, Tensor], Tensor]:
    calls: list[int] = []

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        calls.append(1)
        return two_means(student, teacher) * (1 + len(calls) / 1000)

    return loss


def in_place(student: Tensor, teacher: Tensor) -> Tensor:
    student -= teacher.detach()
    return student.square().mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return -(teacher.detach().softmax(1) * student.log_softmax(1)).sum(1).mean()


def unsafe_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return -(teacher.detach().softmax(1) * student.softmax(1).log()).sum(1).mean()


class Reversed(torch.autograd.Function):
    """The identity whose gradient is reversed; it knows no vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


def spread(features: Tensor) -> Tensor:
    return (features - features.mean(0)).square().sum(1).mean()


def branch(features: Tensor) -> Tensor:
    return features.mean() if features.sum() > 0 else features.square().mean()


def rows_in_line(features: Tensor, labels: Tensor) -> Tensor:
    return (features[:1] - features).square().mean() + 0 * labels.sum()


def spread_of_labelled(features: Tensor, labels: Tensor) -> Tensor:
    return spread(features) + 0 * labels.sum()


def cancelling(features: Tensor) -> Tensor:
    return (features.square().mean() + 1024.0) - 1024.0


def mean_square(features: Tensor) -> Tensor:
    return features.square().mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=-1)


def cross_entropy_over_all(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / len(labels)


def off_by_one(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, (labels - 1).clamp_min(0))


def difference(source: Tensor, target: Tensor) -> Tensor:
    return (source.mean(0) - target.mean(0)).square().sum()


def rough(student: Tensor, teacher: Tensor) -> Tensor:
    return two_means(student + 1e5, teacher + 1e5)


def norm(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher.detach()).square().sum(1).sqrt().mean()


BREAKERS = {
    "scalar": Breaker(lambda student, teacher: (student - teacher.detach()).square(), two_means, "no 0-d tensor"),
    "is-finite": Breaker(lambda features: features.log().mean(), spread, "the value is"),
    "dtype": Breaker(lambda features: features.float().square().mean(), spread, "float64 gave torch.float32"),
    "deterministic": Breaker(counting(), two_means, "two calls gave"),
    "inputs-untouched": Breaker(in_place, two_means, "it changed student"),
    "device-of-inputs": Breaker(lambda features: (features * torch.ones(1)).square().mean(), spread, "default device"),
    "gradient": Breaker(
        lambda student, teacher: (student.detach() - teacher.detach()).square().mean(), two_means, "no gradient"
    ),
    "gradcheck": Breaker(
        lambda features: (features / features.detach().norm()).sum() + features.sum(),
        spread,
        "the value rises",
    ),
    "detached": Breaker(lambda student, teacher: (student - teacher).square().mean(), two_means, "teacher gets"),
    "every-argument": Breaker(
        lambda logits, labels: logits.square().mean() + 0 * labels.sum(), cross_entropy, "whatever labels is"
    ),
    "double-backward": Breaker(
        lambda features: Reversed.apply(features).square().mean(), spread, "derivative is", Tags(double_backward=True)
    ),
    "stationary": Breaker(
        lambda student, teacher: soft_cross_entropy(student / 2, teacher), soft_cross_entropy, "is not zero"
    ),
    "lowest-at-equality": Breaker(
        lambda student, teacher: -two_means(student, teacher), two_means, "here and at equality"
    ),
    "zero-at-equality": Breaker(soft_cross_entropy, two_means, "at equality it is", Tags(zero_at_equality=True)),
    "non-negative": Breaker(lambda features: features.mean(), spread, "it is -", Tags(non_negative=True)),
    "symmetric": Breaker(soft_cross_entropy, two_means, "the other it is", Tags(symmetric=True)),
    "row-symmetric": Breaker(rows_in_line, spread_of_labelled, "rows changed"),
    "class-symmetric": Breaker(off_by_one, cross_entropy, "numbered anew", Tags(class_symmetric=True)),
    "shift-invariant": Breaker(two_means, soft_cross_entropy, "added to each row", Tags(shift_invariant=True)),
    "scale-invariant": Breaker(
        difference,
        lambda source, target: difference(source, target) / (source.square().mean() + target.square().mean() + 1e-30),
        "by 3",
        Tags(scale_invariant=True),
    ),
    "rotation-invariant": Breaker(
        lambda source, target: (source.mean(0) - target.mean(0)).abs().sum(),
        difference,
        "a rotation",
        Tags(rotation_invariant=True),
    ),
    "repeat-invariant": Breaker(
        lambda features: features.square().sum(), spread, "twice over", Tags(repeat_invariant=True)
    ),
    "single-row": Breaker(lambda features: features.var(0).mean(), spread, "is nan", Tags(min_batch=1)),
    "hard-inputs": Breaker(unsafe_cross_entropy, soft_cross_entropy, "1000"),
    "equal-sides": Breaker(norm, two_means, "gradient of student is not finite"),
    "bfloat16": Breaker(cancelling, mean_square, "in bfloat16"),
    "float32": Breaker(rough, two_means, "in float32 and in float64"),
    "strides": Breaker(lambda features: features.view(-1).square().mean(), spread, "not contiguous"),
    "splits-over-rows": Breaker(spread, mean_square, "its first row", Tags(coupled=False)),
    "ignores-labels": Breaker(cross_entropy_over_all, cross_entropy, "ignored last row", Tags(ignore_index=-1)),
    "reference": Breaker(
        lambda student, teacher: 2 * two_means(student, teacher),
        two_means,
        "its reference",
        more={"reference": two_means},
    ),
    "reference-gradient": Breaker(
        lambda student, teacher: two_means(Reversed.apply(student), teacher),
        two_means,
        "gradients of student differ",
        more={"reference": two_means},
    ),
    "limit-far-apart": Breaker(
        lambda student, teacher: two_means(student, teacher) / 2,
        two_means,
        "should be 4.0",
        more={"limits": {"far apart": lambda fn: (fn(torch.ones(1, 2), -torch.ones(1, 2)), 4.0)}},
    ),
    "one-graph": Breaker(branch, spread, "it does not compile"),
    "vmap": Breaker(branch, spread, "it raised"),
    "compiled-vmap": Breaker(branch, spread, "it raised"),
}


@pytest.mark.parametrize("law", BREAKERS)
def test_a_breaker_is_found_and_told(law: str) -> None:
    one = BREAKERS[law]
    trial = loss_trial(one.breaks, tags=one.tags, name="loss", **one.more)
    (outcome,) = judge(trial, only=[law]).outcomes
    assert outcome.status == "broken"
    assert one.says in outcome.found
    assert outcome.law.cause


@pytest.mark.parametrize("law", BREAKERS)
def test_its_twin_obeys(law: str) -> None:
    one = BREAKERS[law]
    (outcome,) = judge(loss_trial(one.obeys, tags=one.tags, name="loss", **one.more), only=[law]).outcomes
    assert outcome.status in ("obeyed", "seems"), outcome.found


def test_every_law_has_its_breaker() -> None:
    laws = {law.name for group in GROUPS for law in group.LAWS}
    assert laws == {name for name in BREAKERS if not name.startswith("limit-")}


def test_the_smallest_input_is_told() -> None:
    trial = loss_trial(tt.losses.kd, tags=Tags(symmetric=True))
    (outcome,) = judge(trial, only=["symmetric"]).failed
    assert "student = [[0.0, 0.0]]" in outcome.found  # one row, two classes, zeros wherever zeros will do
