"""What a loss takes, found by calling it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer.testing import loss_trial
from ttransfer.testing._infer import sample


def warns(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), teacher.detach().softmax(1))  # torch warns of "mean"


def two_and_two(source: Tensor, target: Tensor) -> Tensor:
    if len(source) < 3:
        raise ValueError("three rows, please")
    return (source.mean() - target.mean()).square()


def as_given(features: Tensor, labels: Tensor) -> Tensor:
    one_hot = torch.eye(3, dtype=features.dtype)[labels]
    return (features.mT @ one_hot).square().mean() + 0 * features.reshape(6, -1).sum()


def per_row(margins: Tensor) -> Tensor:
    if margins.ndim != 1:
        raise ValueError("one number a row")
    return margins.square().mean()


def attention_transfer(fs: Tensor, ft: Tensor) -> Tensor:
    a, b = (F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (fs[..., None], ft[..., None]))
    return (a - b).square().mean()


def test_a_reading_under_which_nothing_matters_is_passed_over() -> None:
    assert loss_trial(attention_transfer).taken == "fs: features (n, d, 3, 2), ft: features (n, d, 3, 2)"
    assert loss_trial(F.mse_loss).taken == "input: logits (n, c), target: logits (n, c)"


def test_a_warning_is_no_refusal_and_a_refusal_is_no_failure() -> None:
    assert loss_trial(warns).taken == "student: logits (n, c), teacher: logits (n, c)"
    assert loss_trial(two_and_two).taken.endswith("; at least 3 rows")


def test_an_example_may_have_the_only_number_of_rows() -> None:
    example = (torch.randn(6, 4), torch.arange(6) % 3)
    trial = loss_trial(as_given, example)
    assert trial.taken == "features: features (n, 4), labels: labels (n); n = 6 always"
    assert not {"single-row", "splits-over-rows", "repeat-invariant"} & {law.name for law in trial.asked}


def test_one_number_a_row_and_stacked_teachers() -> None:
    def stacked(student: Tensor, teachers: Tensor) -> Tensor:
        return (student - teachers.detach().mean(0)).square().mean()

    assert loss_trial(per_row).taken == "margins: features (n)"
    trial = loss_trial(stacked, (torch.randn(4, 5), torch.randn(3, 4, 5)))
    assert trial.taken == "student: logits (n, 5), teachers: features (3, n, 5)"
    assert trial.subject.tags.detaches == ("teachers",)


def test_samples_fit_their_arguments() -> None:
    trial = loss_trial(F.cross_entropy)
    logits, labels = (sample(a, trial.subject.tags, False, 0, 2) for a in trial.subject.arguments)
    assert (logits.shape, labels.tolist()) == ((2, 3), [0, 1])
