"""`homm` against the moment tensors, entry by entry, and what each order sees."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.games import normal
from tests.support.steps import refused
from ttransfer.align._coral import coral
from ttransfer.align._homm import homm
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor, order: int = 3, variant: str = "paper") -> Tensor:
    def moment(rows: Tensor, which: tuple[int, ...]) -> Tensor:
        about = rows.mean(0) if variant == "code" else 0 * rows[0]
        return torch.stack([torch.stack([row[k] - about[k] for k in which]).prod() for row in rows]).mean()

    entries = list(itertools.product(range(source.shape[1]), repeat=order))
    return torch.stack([(moment(source, i) - moment(target, i)) ** 2 for i in entries]).mean()


EXAMPLE = torch.randn(4, 3), torch.randn(5, 3)
code: dict[str, Any] = {"order": 4, "variant": "code"}
TRIALS = (
    loss_trial(homm, EXAMPLE, reference=slow, examples=4),
    loss_trial(
        functools.partial(homm, **code),
        EXAMPLE,
        reference=functools.partial(slow, **code),
        name="homm as in code",
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_all_orders(order: int, variant: Any) -> None:
    s, t = normal(0, 6, 3), 2 * normal(1, 4, 3) + 1
    wanted = slow(s, t, order, variant)
    torch.testing.assert_close(homm(s, t, order=order, variant=variant), wanted, rtol=1e-9, atol=0)


def test_the_first_is_the_means_and_the_second_of_the_code_coral() -> None:
    s, t = normal(0, 6, 4), 2 * normal(1, 6, 4) + 1
    torch.testing.assert_close(homm(s, t, order=1), (s.mean(0) - t.mean(0)).square().mean(), rtol=1e-9, atol=0)
    second = homm(s, t, order=2, variant="code")
    torch.testing.assert_close(second, 4 * (5 / 6) ** 2 * coral(s, t), rtol=1e-9, atol=0)
    torch.testing.assert_close(homm(s + 3, t - 5, variant="code"), homm(s, t, variant="code"), rtol=1e-9, atol=0)


def test_the_third_sees_a_skew_and_the_fourth_a_tail() -> None:
    skew = torch.tensor([[-1.0], [-1.0], [2.0]]).double()
    tail, none = torch.tensor([[-2.0], [0.0], [0.0], [0.0], [0.0], [0.0], [0.0], [2.0]]), torch.tensor([[-1.0], [1.0]])
    assert [round(homm(skew, -skew, order=p).item(), 12) for p in (1, 2, 3, 4)] == [0, 0, 16, 0]
    assert [round(homm(tail, none, order=p).item(), 6) for p in (1, 2, 3, 4)] == [0, 0, 0, 9]


def test_one_row_and_half_precision() -> None:
    one = torch.randn(1, 3)
    assert homm(one, one + 1, variant="code") == 0
    s, t = torch.randn(64, 8).bfloat16(), (2 * torch.randn(96, 8) + 1).bfloat16()
    assert homm(s, t).item() == pytest.approx(homm(s.double(), t.double()).item(), rel=4e-3)


def test_what_is_refused() -> None:
    s, t = EXAMPLE
    refused(lambda: homm(s, t, order=0), "homm: wanted a whole number of at least 1 for order", "got 0")
    refused(lambda: homm(s, t, order=1, variant="code"), "of at least 2 for order", "got 1")
    other: Any = "other"
    refused(lambda: homm(s, t, variant=other), "homm: wanted variant", "'other'")
