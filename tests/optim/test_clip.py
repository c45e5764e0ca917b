"""`optim.clip_by_norm` against `torch.nn.utils.clip_grad_norm_`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer import optim


def clip(grads: Any, most: float) -> Any:
    opt = optim.clip_by_norm(most)
    return opt.update(grads, opt.init(grads), grads, optim.hyper_at(opt))[0]


def reference(grads: Any, most: float) -> Any:
    params = tree.map(torch.zeros_like, grads)
    for p, g in zip(tree.leaves(params), tree.leaves(grads), strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(tree.leaves(params), most)
    return tree.map(lambda p: p.grad, params)


@pytest.mark.parametrize("most", [1e-3, 0.5, 1.0, 3.0, 100.0])
def test_equals_torch(most: float, problem: Any, same: Callable[..., None]) -> None:
    same(clip(problem(), most), reference(problem(), most))


@pytest.mark.parametrize("most", [0.5, 100.0])
def test_of_several_dtypes(most: float) -> None:
    grads = {"a": torch.linspace(-3, 2, 7), "b": torch.linspace(1, 2, 5).bfloat16(), "c": torch.tensor(2.0).double()}
    got = clip(grads, most)
    assert tree.map(lambda g: g.dtype, got) == {"a": torch.float32, "b": torch.float32, "c": torch.float64}
    exact = tree.map(Tensor.double, grads)
    torch.testing.assert_close(tree.map(Tensor.double, got), reference(exact, most), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_of_no_gradient_is_finite_and_so_is_its_derivative(scale: float) -> None:
    def total(grads: dict[str, Tensor]) -> Tensor:
        return clip(grads, 1.0)["w"].sum()

    grads = {"w": torch.full((3,), scale, dtype=torch.float64), "v": torch.zeros((), dtype=torch.float64)}
    assert clip(grads, 1.0)["w"].tolist() == [scale] * 3
    assert torch.func.grad(total)(grads)["w"].tolist() == [1.0] * 3


def test_before_an_optimizer_equals_torch(problem: Any, train: Any, oracle: Any, same: Callable[..., None]) -> None:
    want = oracle(lambda p: torch.optim.SGD(p.values(), 0.05, momentum=0.9), problem(), 25, clip=0.7)
    same(train(optim.chain(optim.clip_by_norm(0.7), optim.sgd(0.05, momentum=0.9)), problem(), 25), want)
