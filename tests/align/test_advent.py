"""`self_information` against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same
from ttransfer._errors import TransferError
from ttransfer.align import self_information


def slow(logits: Tensor) -> Tensor:
    out = []
    for row in logits.movedim(1, -1).flatten(0, -2):
        p = row.exp() / row.exp().sum()
        out.append(torch.stack([-x * x.log() for x in p]))
    return torch.stack(out)


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3, 2)])
def test_the_loop(shape: tuple[int, ...]) -> None:
    z = normal(0, *shape) * 3
    same(lambda z: (self_information(z).movedim(1, -1).flatten(0, -2) ** 2).sum(), lambda z: (slow(z) ** 2).sum(), z)
    code = self_information(z, variant="code")
    assert torch.allclose(code * math.log(shape[1]), self_information(z), rtol=1e-12)
    assert self_information(0 * z, variant="code").sum(1).allclose(torch.ones((), dtype=torch.float64))
    assert self_information(z).shape == z.shape


def test_modes_agree() -> None:
    z = normal(0, 2, 4, 3, 2)
    torch.compiler.reset()
    compiled = torch.compile(self_information, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(z), self_information(z), rtol=1e-12)
    assert torch.allclose(torch.func.vmap(self_information)(torch.stack([z, 2 * z]))[1], self_information(2 * z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e3, -1e3]], dtype=dtype)
    assert self_information(z).count_nonzero() == 0
    assert torch.func.grad(lambda z: self_information(z).sum())(z).isfinite().all()


def test_what_it_refuses() -> None:
    with pytest.raises(TransferError, match="self_information: wanted logits"):
        self_information(torch.zeros(3))
    with pytest.raises(TransferError, match="self_information: wanted variant"):
        self_information(torch.zeros(3, 2), variant="other")  # pyright: ignore[reportArgumentType]
