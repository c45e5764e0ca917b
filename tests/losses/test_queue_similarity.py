"""`queue_similarity` and `token_similarity` against their formulas in slow loops."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.losses._queue_similarity import queue_similarity, token_similarity
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(
    student: Tensor, teacher: Tensor, queue: Tensor, temperature: float = 0.07, teacher_temperature: float = 0.07
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student, teacher.detach(), strict=True):
        logs = []
        for x, tau in ((s, temperature), (t, teacher_temperature)):
            scores = [(x * key.detach()).sum() / x.norm() / key.detach().norm() / tau for key in queue]
            logs.append([score - torch.stack(scores).logsumexp(0) for score in scores])
        total = total + sum(b.exp() * (b - a) for a, b in zip(*logs, strict=True))
    return total / len(student)


def slow_tokens(student: Tensor, teacher: Tensor, **temperatures: float) -> Tensor:
    rows = [slow(s, t, t, **temperatures) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(rows).mean()


PAIR = (torch.randn(4, 3), torch.randn(4, 3))
UNLIKE = {"temperature": 0.5, "teacher_temperature": 0.2}
SHARPER = Tags(zero_at_equality=False, not_stationary="the teacher is sharper than the student")
TRIALS = (
    loss_trial(queue_similarity, (*PAIR, torch.randn(7, 3)), reference=slow, examples=8),
    loss_trial(
        functools.partial(queue_similarity, **UNLIKE),
        (*PAIR, torch.randn(7, 3)),
        tags=SHARPER,
        reference=functools.partial(slow, **UNLIKE),
        name="queue_similarity, sharper",
        examples=8,
    ),
    loss_trial(token_similarity, (torch.randn(4, 5, 3), torch.randn(4, 5, 3)), reference=slow_tokens, examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_a_student_that_sees_nothing_is_as_far_as_the_teacher_is_sure() -> None:
    queue = torch.eye(4)
    value = queue_similarity(torch.ones(1, 4), queue[:1], queue, temperature=1.0, teacher_temperature=0.01)
    assert value.item() == pytest.approx(math.log(4), rel=1e-5)


def test_an_image_of_one_token_says_nothing() -> None:
    assert token_similarity(torch.randn(4, 1, 3), torch.randn(4, 1, 3)).item() == 0


def test_what_is_refused() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(TransferError, match=r"queue_similarity: wanted embeddings \(n, d\) and a queue \(k, d\)"):
        queue_similarity(x, x, torch.zeros(7, 2))
    with pytest.raises(TransferError, match="queue_similarity: wanted tensors of one shape"):
        queue_similarity(x, x[:, :2], x)
    with pytest.raises(TransferError, match=r"token_similarity: wanted tokens \(n, tokens, d\)"):
        token_similarity(torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2))
