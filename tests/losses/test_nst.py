"""`nst` against the paper's double sums over channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.losses._nst import nst
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    def channels(image: Tensor) -> list[Tensor]:
        vectors = list(image.flatten(1))
        return [v / v.norm() if v.norm() > 0 else v for v in vectors]

    def kernel(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
        return torch.stack(
            [sum((a * b for a, b in zip(x, y, strict=True)), x.new_zeros(())) ** 2 for x in xs for y in ys]
        )

    values = []
    for image, other in zip(student, teacher, strict=True):
        s, t = channels(image), channels(other)
        values.append(kernel(s, s).mean() + kernel(t, t).mean() - 2 * kernel(s, t).mean())
    return torch.stack(values).mean()


LEFT, RIGHT = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
TRIALS = (
    loss_trial(
        nst,
        (torch.randn(4, 2, 2, 3), torch.randn(4, 2, 2, 3)),
        reference=slow,
        limits={"orthogonal": lambda fn: (fn(LEFT, RIGHT), 2.0)},
        name="nst of more places than channels",
        examples=8,
    ),
    loss_trial(
        nst,
        (torch.randn(4, 4, 1, 2), torch.randn(4, 4, 1, 2)),
        reference=slow,
        name="nst of more channels than places",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("side", [2, 6])
@pytest.mark.parametrize("channels", [5, 12])
def test_beside_zhijian(side: int, channels: int) -> None:
    other = theirs("zhijian.models.kd.loss.nst", "NST")
    same(nst, other, torch.randn(3, 5, side, side), torch.randn(3, channels, side, side))


def test_the_order_of_channels_does_not_matter() -> None:
    student, teacher = torch.randn(2, 3, 5, 4, 4, dtype=torch.float64)
    assert torch.allclose(nst(student.flip(1), teacher), nst(student, teacher), rtol=1e-12)


def test_other_places_are_refused() -> None:
    with pytest.raises(TransferError, match=r"nst: .*same height and width"):
        nst(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
