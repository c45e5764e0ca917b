"""What the domain distances refuse, in words, and the dtype they compute in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ttransfer import align
from ttransfer._errors import TransferError
from ttransfer.align._check import features, row_labels, rows_of

DISTANCES = [align.mmd, align.mmd_unbiased, align.mmd_linear, align.coral]


@pytest.mark.parametrize(
    ("source", "target", "dtype"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_dtype(source: torch.dtype, target: torch.dtype, dtype: torch.dtype) -> None:
    pair = features("distance", torch.zeros(2, 3, dtype=source), torch.zeros(4, 3, dtype=target), rows=1)
    assert [x.dtype for x in pair] == [dtype, dtype]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2), r"source \(4, 3, 2, 2\) float32 .*pool the map first"),
        (torch.zeros(4, 3), torch.zeros(4, 3, 2), r"target \(4, 3, 2\) float32; pool the map first"),
        (torch.zeros(4), torch.zeros(4), r"wanted features \(n, d\), got source \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 5), r"one width d, got source \(4, 3\) float32 and target \(4, 5\) float32"),
        (torch.zeros(4, 3), torch.zeros(4, 3).long(), r"wanted floating features.*target \(4, 3\) int64"),
        (torch.zeros(4, 3), torch.zeros(0, 3), r"wanted at least \d rows in each domain.*target \(0, 3\)"),
    ],
)
def test_refused(distance: Callable[..., Tensor], source: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(TransferError, match=rf"{distance.__name__}: .*{message}"):
        distance(source, target)


@pytest.mark.parametrize("distance", [align.mmd_unbiased, align.mmd_linear, align.coral])
def test_one_row_is_too_few_for_an_unbiased_estimate(distance: Callable[..., Tensor]) -> None:
    with pytest.raises(TransferError, match=r"wanted at least 2 rows in each domain, got source \(1, 3\)"):
        distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(TransferError, match=r"target \(1, 3\)"):
        distance(torch.zeros(4, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(3).long(), torch.zeros(4, 1).long()])
def test_labels_are_refused(labels: Tensor) -> None:
    with pytest.raises(TransferError, match=r"loss: wanted labels \(n,\) .*, got features \(4, 2\) float32 and labels"):
        row_labels("loss", torch.zeros(4, 2), labels)


def test_rows_of() -> None:
    assert rows_of("loss", torch.zeros(4, 2).bfloat16()).dtype == torch.float32
    for bad in (torch.zeros(4), torch.zeros(4, 2, 3, 3), torch.zeros(4, 2).long(), torch.zeros(0, 2)):
        with pytest.raises(TransferError, match=r"loss: wanted floating features \(n, d\), got"):
            rows_of("loss", bad)
