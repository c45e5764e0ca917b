"""`cs_kd` against `kd` and a slow loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._cs_kd import cs_kd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor, labels: Tensor, partners: Tensor) -> Tensor:
    total, pairs = torch.zeros((), dtype=student.dtype), 0
    for s, t, a, b in zip(student, teacher.detach(), labels.tolist(), partners.tolist(), strict=True):
        if a == b:
            pairs += 1
            log_p, log_q = (t / 4).log_softmax(0), (s / 4).log_softmax(0)
            for p, q in zip(log_p, log_q, strict=True):
                total = total + 16 * p.exp() * (p - q)
    return total / max(pairs, 1) + 0 * student.sum()


PAIRS = (torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 0, 2]))
TRIALS = (loss_trial(cs_kd, PAIRS, reference=slow),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator) * 2
    return student, teacher, torch.randint(0, 5, (6,), generator=generator)


def test_pairs_make_it_kd_which_the_authors_have() -> None:
    student, teacher, labels = case()
    got = grad_and_value(cs_kd)(student, teacher, labels, labels)
    torch.testing.assert_close(got, grad_and_value(kd)(student, teacher), rtol=1e-11, atol=1e-14)
    code = F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="sum") * 16 / 6
    torch.testing.assert_close(got[1], code, rtol=1e-10, atol=0)


def test_rows_without_a_partner_count_nothing() -> None:
    student, teacher, labels = case()
    partners = labels.clone()
    partners[2:] += 1
    got = cs_kd(student, teacher, labels, partners)
    torch.testing.assert_close(got, kd(student[:2], teacher[:2]), rtol=1e-12, atol=0)
    assert cs_kd(student, teacher, labels, labels + 1).item() == 0
    assert grad(cs_kd)(student, teacher, labels, labels + 1).count_nonzero() == 0


def test_errors() -> None:
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TransferError, match=r"cs_kd: wanted a partner's label for each label"):
        cs_kd(x, x, y, y[:3])
    with pytest.raises(TransferError, match=r"cs_kd: wanted one label for each row"):
        cs_kd(x, x, y[:3], y[:3])
