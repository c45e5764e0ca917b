"""`label_smoothing` against torch's and a slow loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value, vmap

from ttransfer._errors import TransferError
from ttransfer.losses._label_smoothing import label_smoothing
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for z, y in zip(logits, labels, strict=True):
        log_p = z.log_softmax(0)
        for j in range(len(z)):
            wanted = smoothing / len(z) + (1 - smoothing) * float(j == y)
            total = total - wanted * log_p[j]
    return total / len(logits)


MAPS = (torch.randn(3, 4, 2, 2), torch.randint(0, 4, (3, 2, 2), generator=torch.Generator().manual_seed(0)))
TRIALS = (
    loss_trial(label_smoothing, reference=slow),
    loss_trial(label_smoothing, MAPS, name="label_smoothing of maps", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 3, 3)])
def test_torch_agrees(shape: tuple[int, ...], smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (shape[0], *shape[2:]), generator=generator)
    got = grad_and_value(lambda z: label_smoothing(z, labels, smoothing=smoothing))(logits)
    expected = grad_and_value(lambda z: F.cross_entropy(z, labels, label_smoothing=smoothing))(logits)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-14)


def test_the_convention_of_the_other_classes() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, epsilon = torch.tensor([0, 4, 2]), 0.1
    wanted = torch.full((3, 5), epsilon / 4, dtype=torch.float64)
    wanted[range(3), labels] = 1 - epsilon
    theirs = -(wanted * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(label_smoothing(logits, labels, smoothing=epsilon * 5 / 4), theirs)
    assert not torch.allclose(label_smoothing(logits, labels, smoothing=epsilon), theirs, rtol=1e-3)


def test_smoothings_map() -> None:
    logits, labels = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 4, 2])
    got = vmap(lambda e: label_smoothing(logits, labels, smoothing=e))(torch.tensor([0.1, 0.3], dtype=torch.float64))
    torch.testing.assert_close(got, torch.stack([slow(logits, labels, e) for e in (0.1, 0.3)]))


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"label_smoothing: wanted labels of whole numbers"):
        label_smoothing(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(TransferError, match=r"label_smoothing: wanted one label for each row"):
        label_smoothing(torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(IndexError, match=r"out of bounds"):  # not ignored in one part and counted in the other
        label_smoothing(torch.zeros(4, 3), torch.full((4,), -100))
