"""`optim.add_weight_decay`: the gradient of an L2 penalty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ttransfer.core._tree as tree
from ttransfer import optim


def test_is_the_gradient_of_half_the_squared_norm(problem: Any, same: Callable[..., None]) -> None:
    params = problem()
    opt = optim.add_weight_decay(0.3)
    grads = tree.map(torch.cos, params)
    got, state = opt.update(grads, opt.init(params), params, optim.hyper_at(opt))
    penalty = torch.func.grad(lambda p: sum(0.5 * 0.3 * x.square().sum() for x in tree.leaves(p)))(params)
    same(got, tree.map(torch.add, grads, penalty))
    assert state == {}


def test_before_sgd_is_its_own_weight_decay(problem: Any, train: Any, same: Callable[..., None]) -> None:
    chained = optim.chain(add=optim.add_weight_decay(0.3), sgd=optim.sgd(0.05, momentum=0.9))
    same(train(chained, problem(), 20), train(optim.sgd(0.05, momentum=0.9, weight_decay=0.3), problem(), 20))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("of_grads", [torch.bfloat16, torch.float64])
def test_works_in_the_wide_dtype_of_the_parameter(dtype: torch.dtype, of_grads: torch.dtype) -> None:
    params, grads = {"w": torch.tensor([3.0], dtype=dtype)}, {"w": torch.tensor([1.0], dtype=of_grads)}
    opt = optim.add_weight_decay(1 / 3)
    got, _ = opt.update(grads, opt.init(params), params, optim.hyper_at(opt))
    torch.testing.assert_close(got["w"], torch.tensor([2.0]), rtol=1e-6, atol=0)
