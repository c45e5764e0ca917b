"""Potentials, values and plans of entropic transport, against POT."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from tests.support.peers import theirs
from ttransfer.align._transport import dual_value, plan, potentials


def cost(n: int, m: int) -> Tensor:
    return torch.cdist(torch.randn(n, 3).double(), torch.randn(m, 3).double() + 1).square()


def uniform(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


@pytest.mark.parametrize("size", [(5, 7), (4, 4), (1, 3)])
def test_plan(size: tuple[int, int]) -> None:
    c = cost(*size)
    other = theirs("ot", "sinkhorn", *map(uniform, size), c, 2.0, stopThr=1e-15, numItermax=10000)
    assert torch.allclose(plan(c, 2.0, 300), other, rtol=1e-9, atol=1e-12)
    few = plan(c, 2.0, 3)
    assert torch.allclose(few.sum(0), uniform(size[1]), rtol=1e-12)


def test_value_and_its_slope() -> None:
    c, epsilon = cost(5, 7).requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    f, g = potentials(c, epsilon, 300)
    value = dual_value(c, f, g, epsilon)
    pi = plan(c, epsilon, 300)
    entropy = (pi * (35 * pi).log()).sum()
    assert value.item() == pytest.approx(((pi * c).sum() + epsilon * entropy).item(), rel=1e-10)
    by_cost, by_epsilon = torch.autograd.grad(value, (c, epsilon))
    assert torch.allclose(by_cost, pi, rtol=1e-8)
    assert by_epsilon.item() == pytest.approx(entropy.item(), rel=1e-8)


def test_a_batch_to_itself() -> None:
    x = torch.randn(6, 2).double()
    c = torch.cdist(x, x).square()
    f, g = potentials(c, 0.5, 50)
    assert torch.allclose(f, g, rtol=1e-12)
    one, other = potentials(c, 2.0, 300), potentials(c, 2.0, 300, together=False)
    assert torch.allclose(one[0][:, None] + one[1], other[0][:, None] + other[1], rtol=1e-8)


def test_modes() -> None:
    costs, heats = torch.stack([cost(4, 5), cost(4, 5)]), torch.tensor([0.5, 2.0])
    crossed = vmap(vmap(plan, (0, None, None)), (None, 0, None))
    for run in (crossed, torch.compile(crossed, backend="aot_eager", fullgraph=True)):
        found = run(costs, heats, 30)
        for i, heat in enumerate(heats):
            for j, one in enumerate(costs):
                assert torch.allclose(found[i, j], plan(one, heat.item(), 30), rtol=1e-10)
    torch.library.opcheck(torch.ops.ttransfer.transport_potentials.default, (costs[0], heats[0].double(), 5, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cold_and_far(dtype: torch.dtype) -> None:
    c = torch.tensor([[0.0, 1e6], [1e6, 0.0]], dtype=dtype)
    assert torch.allclose(plan(c, 1e-3, 50), torch.eye(2, dtype=dtype) / 2)
    same = torch.full((3, 4), 7.0, dtype=dtype)
    assert torch.allclose(plan(same, 1e-3, 5), torch.full((3, 4), 1 / 12, dtype=dtype))
