"""`sliced_wasserstein` against transport as a linear programme, and POT."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._sliced import sliced_wasserstein
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    """Rows repeated until both domains have as many, sorted along each line, and paired."""
    both = math.lcm(len(source), len(target))

    def along(rows: Tensor, line: Tensor) -> list[Tensor]:
        return sorted([(x * line).sum() / line.norm() for x in rows] * (both // len(rows)))

    found = []
    for line in directions.detach().T:
        s, t = (
            sorted([(x * line).sum() / line.norm() for x in rows] * (both // len(rows))) for rows in (source, target)
        )
        found.append(torch.stack([(a - b) ** 2 for a, b in zip(s, t, strict=True)]).mean())
    return torch.stack(found).mean()


EXAMPLE = (torch.randn(4, 3), torch.randn(5, 3), torch.randn(3, 2))
TRIALS = (
    loss_trial(
        sliced_wasserstein,
        EXAMPLE,
        reference=slow,
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("rows", [(6, 6), (5, 7), (4, 6), (1, 9)])
def test_pot_has_the_root(rows: tuple[int, int]) -> None:
    s, t, lines = torch.randn(rows[0], 3), torch.randn(rows[1], 3) + 1, torch.randn(3, 8).double()
    other = theirs("ot", "sliced_wasserstein_distance", s.double(), t.double(), projections=lines / lines.norm(dim=0))
    assert sliced_wasserstein(s.double(), t.double(), lines).item() == pytest.approx(other.item() ** 2, rel=1e-9)


def test_pytorch_adapt() -> None:
    s, t = torch.randn(6, 3), torch.randn(6, 3)
    other = theirs("pytorch_adapt.layers", "SlicedWasserstein", m=5)
    torch.manual_seed(0)
    found = other(s, t)
    torch.manual_seed(0)
    assert sliced_wasserstein(s, t, torch.randn(3, 128)).item() == pytest.approx(found.item(), rel=1e-5)


def test_equal_domains_and_ties() -> None:
    x, lines = torch.randn(5, 3).double(), torch.randn(3, 4).double()
    assert sliced_wasserstein(x, x.flip(0), lines) == 0
    assert sliced_wasserstein(x, x.repeat(3, 1), lines).item() == pytest.approx(0, abs=1e-25)
    many = vmap(sliced_wasserstein, (None, None, 0))(x, 2 * x, torch.stack([lines, lines[:, [0, 0, 0, 0]]]))
    same(lambda x: sliced_wasserstein(x, 2 * x, lines), lambda x: slow(x, 2 * x, lines), x)
    assert many[1].item() == pytest.approx(slow(x, 2 * x, lines[:, :1]).item(), rel=1e-10)


def test_other_directions_are_refused() -> None:
    for lines in (torch.zeros(4, 2), torch.zeros(3), torch.zeros(3, 2).long()):
        with pytest.raises(TransferError, match=r"sliced_wasserstein: wanted directions \(d, k\), got source \(2, 3\)"):
            sliced_wasserstein(torch.zeros(2, 3), torch.zeros(2, 3), lines)
