"""A layer starts as torch's own, drawn from a generator; what is no map is refused in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.adapters._layer import start_layer, want_map


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "make"),
    [((3, 5), lambda bias: nn.Linear(5, 3, bias=bias)), ((4, 2, 3, 3), lambda bias: nn.Conv2d(2, 4, 3, bias=bias))],
)
def test_it_starts_as_torchs_own(shape: tuple[int, ...], make: Callable[[bool], nn.Module], bias: bool) -> None:
    params = start_layer(torch.Generator().manual_seed(7), shape, torch.float32, bias)
    torch.manual_seed(7)
    torch.testing.assert_close(params, dict(make(bias).state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_in_float32_at_least(dtype: torch.dtype) -> None:
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in start_layer(torch.Generator(), (2, 2), dtype).values()} == {wanted}


def test_what_is_no_map() -> None:
    want_map("it", torch.zeros(2, 3, 4, 4), 3)
    for x in (torch.zeros(2, 3), torch.zeros(2, 0, 4, 4), torch.zeros(2, 3, 4, 4).long()):
        with pytest.raises(TransferError, match=r"it: wanted a map \(n, c, h, w\) of floating numbers, got \(2, "):
            want_map("it", x)
    with pytest.raises(TransferError, match=r"it: wanted c = 5, as at init, got \(2, 3, 4, 4\)"):
        want_map("it", torch.zeros(2, 3, 4, 4), 5)
