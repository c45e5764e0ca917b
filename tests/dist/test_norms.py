"""Batch normalisation over the rows of all ranks is that of all rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ttransfer.dist._norms import compiles, synchronise
from ttransfer.dist._ranks import Ranks
from ttransfer.testing._threads import run_ranks

KINDS = {
    "rows": (lambda: nn.BatchNorm1d(3), (7, 3)),
    "sequences": (lambda: nn.BatchNorm1d(3, momentum=None), (7, 3, 4)),
    "maps": (lambda: nn.BatchNorm2d(3, eps=1e-3, momentum=0.3), (7, 3, 2, 2)),
    "plain": (lambda: nn.BatchNorm2d(3, affine=False), (7, 3, 2, 2)),
    "no memory": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (7, 3, 2, 2)),
}
CUTS = (0, 2, 6, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_values_gradients_and_memory(kind: str) -> None:
    make, shape = KINDS[kind]
    x = 5.0 + torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(shape, dtype=torch.float64)
    whole = make().double().train()
    given = x.clone().requires_grad_()
    out = whole(given)
    (wanted,) = torch.autograd.grad((out * weight).sum(), given)

    norms = [make().double().train() for _ in range(3)]

    def work(ranks: Ranks) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        norm = norms[ranks.rank]
        assert synchronise(norm, ranks.group) == [type(norm).__name__]
        rows = slice(CUTS[ranks.rank], CUTS[ranks.rank + 1])

        def loss(x: Tensor) -> tuple[Tensor, Any]:
            value, buffers = run(norm, x)
            return (value * weight[rows]).sum(), (value, buffers)

        grad, (value, buffers) = torch.func.grad(loss, has_aux=True)(x[rows])
        return value, grad, buffers

    found = run_ranks(3, work)
    torch.testing.assert_close(torch.cat([value for value, _, _ in found]), out.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([grad for _, grad, _ in found]), wanted, rtol=0, atol=1e-12)
    for _, _, buffers in found:
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, rtol=0, atol=1e-12)


def run(norm: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    given = {**dict(norm.named_parameters()), **{name: b.clone() for name, b in norm.named_buffers()}}
    value = torch.func.functional_call(norm, given, (x,))
    return value, {name: given[name] for name, _ in norm.named_buffers()}


def test_a_large_mean_does_not_cancel() -> None:
    x = 1e4 + torch.randn(8, 2)
    whole = nn.BatchNorm1d(2).double().train()(x.double())

    def work(ranks: Ranks) -> Tensor:
        norm = nn.BatchNorm1d(2).train()
        synchronise(norm, ranks.group)
        return run(norm, x[4 * ranks.rank : 4 * ranks.rank + 4])[0]

    torch.testing.assert_close(torch.cat(run_ranks(2, work)).double(), whole, rtol=0, atol=2e-3)


def test_members() -> None:
    x = torch.randn(3, 6, 2, dtype=torch.float64)

    norms = [nn.BatchNorm1d(2, track_running_stats=False).double().train() for _ in range(3)]

    def work(ranks: Ranks) -> Tensor:
        norm = norms[ranks.rank]
        synchronise(norm, ranks.group)
        own = x[:, 3 * ranks.rank : 3 * ranks.rank + 3]
        return torch.func.vmap(torch.func.grad(lambda x: norm(x).pow(3).sum()))(own)

    def alone(x: Tensor) -> Tensor:
        return norms[2](x).pow(3).sum()

    wanted = torch.stack([torch.func.grad(alone)(one) for one in x])
    torch.testing.assert_close(torch.cat(run_ranks(2, work), 1), wanted, rtol=0, atol=1e-11)


def test_a_norm_in_eval_mode_is_left_alone() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.LayerNorm(2))
    (names,) = run_ranks(1, lambda ranks: synchronise(net, ranks.group))
    assert names == []


def test_what_the_compiler_can_trace_is_tried() -> None:
    found = compiles(members=False)
    if torch.__version__ >= "2.15":
        assert found
