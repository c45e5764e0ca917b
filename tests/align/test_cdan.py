"""What a conditional critic looks at, against loops and pytorch-adapt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align import multilinear, multilinear_random


def test_all_products() -> None:
    f, g = normal(0, 5, 4), normal(1, 5, 3).softmax(1)
    slow = torch.stack([torch.stack([a * b for a in row for b in other]) for row, other in zip(f, g, strict=True)])
    assert torch.equal(multilinear(f, g), slow)
    # Inner products of outer products are products of inner products.
    assert torch.allclose(multilinear(f, g) @ multilinear(f, g).mT, (f @ f.mT) * (g @ g.mT), rtol=1e-12)


def test_random_products_beside_pytorch_adapt() -> None:
    f, g = normal(0, 5, 4), normal(1, 5, 3).softmax(1)
    other = theirs("pytorch_adapt.layers", "RandomizedDotProduct", [4, 3], 7)
    left, right = normal(2, 4, 7), normal(3, 3, 7)
    other.rand_mat0, other.rand_mat1 = left, right
    same(
        lambda f: multilinear_random(f, g, left, right).square().sum(),
        lambda f: other(f, g).square().sum(),
        f,
    )


def test_random_products_have_the_inner_products_of_all() -> None:
    f, g = normal(0, 3, 4), normal(1, 3, 2).softmax(1)
    left, right = normal(2, 4, 200_000), normal(3, 2, 200_000)
    h, whole = multilinear_random(f, g, left, right), multilinear(f, g)
    assert torch.allclose(h @ h.mT, whole @ whole.mT, atol=0.1)


def test_modes_agree() -> None:
    f, g, left, right = normal(0, 5, 4), normal(1, 5, 3).softmax(1), normal(2, 4, 7), normal(3, 3, 7)
    torch.compiler.reset()
    cases: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]
    cases = [(multilinear, (f, g)), (multilinear_random, (f, g, left, right))]
    for fn, arguments in cases:
        compiled = torch.compile(fn, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(*arguments), fn(*arguments), rtol=1e-12)
        mapped = torch.func.vmap(fn)(*(torch.stack([x, 2 * x]) for x in arguments))
        assert torch.allclose(mapped[0], fn(*arguments), rtol=1e-12)


def test_what_they_refuse() -> None:
    f, g = torch.zeros(2, 4), torch.zeros(2, 3)
    with pytest.raises(TransferError, match=r"multilinear: wanted features \(n, d\) and predictions \(n, c\), got"):
        multilinear(torch.zeros(2, 4, 1, 1), g)
    with pytest.raises(TransferError, match=r"the same rows, got features \(2, 4\).*predictions \(3, 3\)"):
        multilinear(f, torch.zeros(3, 3))
    with pytest.raises(TransferError, match=r"matrices \(d, k\) and \(c, k\), got .*right \(3, 6\)"):
        multilinear_random(f, g, torch.zeros(4, 5), torch.zeros(3, 6))
