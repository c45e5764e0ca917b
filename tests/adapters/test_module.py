"""A module as an adapter is the module at its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import vectors
from tests.support.sharded import gap
from tests.support.steps import refused, run, small_step
from ttransfer.adapters._module import module
from ttransfer.testing._adapters import adapter_trial
from ttransfer.testing._law import judge


def critic(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 1))


class Scaled(nn.Module):
    """With a buffer and a frozen parameter."""

    by: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.shift = nn.Parameter(torch.tensor([2.0]), requires_grad=False)
        self.register_buffer("by", torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.by + self.shift


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_module(dtype: torch.dtype) -> None:
    net, x = critic(), torch.randn(5, 4, dtype=dtype)
    adapter = module(net)
    params = adapter.init(torch.Generator(), torch.empty(8, 4, device="meta", dtype=dtype))
    assert {p.dtype for p in params.values()} == {dtype}
    torch.testing.assert_close(dict(params), {k: p.detach().to(dtype) for k, p in net.named_parameters()})
    torch.testing.assert_close(adapter.apply(params, x), functional_call(net, params, x), rtol=0, atol=0)


def test_buffers_and_frozen_parameters_are_constants() -> None:
    net, x = Scaled(), torch.randn(5, 4, dtype=torch.float64)
    adapter = module(net)
    params = adapter.init(torch.Generator(), x.to("meta"))
    assert sorted(params) == ["head.bias", "head.weight"]
    torch.testing.assert_close(adapter.apply(params, x), net.double()(x), rtol=1e-12, atol=0)


def test_laws() -> None:
    assert not judge(adapter_trial(module(critic), torch.empty(8, 4), name="module")).failed


def test_as_a_critic_in_every_mode() -> None:
    reads = "student(source)", "student(target)"
    step = small_step({"t": tt.terms.dann(*reads, critic=module(lambda: critic(3)))})
    batches = [vectors(seed) for seed in range(3)]
    wanted = run(step, step.init(batches[0]), *batches)
    compiled = tt.compile(step, backend="aot_eager")
    assert worst(run(compiled, compiled.init(batches[0]), *batches), wanted) < 1e-12
    members = tt.ensemble(step, 2).init(batches[0])
    assert not torch.equal(*members.trainable["terms"]["t"]["0.weight"])
    assert gap(step, batches) < 1e-12


def test_what_is_refused() -> None:
    bad: Any = "linear"
    refused(lambda: module(bad), "module: wanted an nn.Module", "'linear'")
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    refused(lambda: module(norm), "module: '1' is BatchNorm1d", "nn.LayerNorm", "critic:fn")
    refused(lambda: module(nn.InstanceNorm1d(4, track_running_stats=True)), "'InstanceNorm1d' is InstanceNorm1d")
    refused(lambda: module(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))), "it drops at random", "critic:fn")
