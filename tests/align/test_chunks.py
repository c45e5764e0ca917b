"""Double sums by blocks: in every mode, and with little memory."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ttransfer._errors import TransferError
from ttransfer.align import mmd, mmd_unbiased


def test_modes() -> None:
    s, t, width = torch.randn(2, 5, 3).double(), torch.randn(2, 7, 3).double(), torch.tensor([1.0, 2.0]).double()

    def whole(s: Tensor, t: Tensor, width: Tensor) -> Tensor:
        return mmd(s, t, bandwidth=width)

    def by_chunks(s: Tensor, t: Tensor, width: Tensor) -> Tensor:
        return mmd(s, t, bandwidth=width, chunk=3)

    wanted = vmap(grad_and_value(whole, argnums=(0, 1, 2)))(s, t, width)
    many = vmap(grad_and_value(by_chunks, argnums=(0, 1, 2)))
    for run in (many, torch.compile(many, backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(run(s, t, width), wanted, rtol=1e-10, atol=1e-12)


def test_no_second_derivative() -> None:
    x, y = torch.randn(4, 2), torch.randn(3, 2)
    slope = torch.func.grad(lambda x: mmd(x, y, bandwidth=1.0, chunk=2))
    assert torch.func.grad(lambda x: slope(x).sum())(x).count_nonzero() == 0


class Peak(TorchDispatchMode):
    """Bytes of all tensors that are alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._count(x.numel() * x.element_size())
                weakref.finalize(x, self._count, -x.numel() * x.element_size())
        return out

    def _count(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def peak(rows: int, chunk: int | None) -> int:
    s, t = torch.randn(rows, 4, requires_grad=True), torch.randn(rows, 4)
    with Peak() as seen:
        torch.autograd.grad(mmd(s, t, bandwidth=1.0, chunk=chunk), s)
    return seen.most


def test_memory_grows_with_the_rows() -> None:
    assert peak(800, None) / peak(400, None) > 3.9
    assert peak(800, 20) / peak(400, 20) < 2.1
    assert peak(800, 20) < peak(800, None) / 15


def test_many_rows_in_float32() -> None:
    s, t = torch.randn(1500, 4), torch.randn(1500, 4) + 0.1
    here = torch.func.grad_and_value(functools.partial(mmd_unbiased, bandwidth=1.0, chunk=400))(s, t)
    there = torch.func.grad_and_value(functools.partial(mmd_unbiased, bandwidth=1.0))(s.double(), t.double())
    assert abs(here[1].item() - there[1].item()) < 1e-5
    assert ((here[0] - there[0]).norm() / there[0].norm()).item() < 1e-4


def test_no_rows_at_a_time_are_refused() -> None:
    with pytest.raises(TransferError, match="mmd: wanted a whole number of at least 1 for chunk, got 0"):
        mmd(torch.zeros(4, 3), torch.zeros(4, 3), chunk=0)
