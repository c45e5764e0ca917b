"""Pools: what tied weights in one must become."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ttransfer.core._maps import WeightMap
from ttransfer.weights import chain


def tied(seed: int) -> nn.Module:
    """A table of embeddings that is the head too; a state dict has it under two names, in a tensor for each."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    net.add_module("table", nn.Embedding(9, 6))
    net.add_module("between", nn.Linear(6, 6))
    net.add_module("head", nn.Linear(6, 9, bias=False))
    net.get_submodule("head").weight = net.get_submodule("table").weight
    return net


def assert_tied(merge: WeightMap, src: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """The two names of a net of `tied` are one tensor of these numbers, in every mode; and the plan says so."""
    new = merge.apply(src, {})
    assert new["table.weight"] is new["head.weight"]
    told = [plan.made["table.weight"].how for plan in (merge.plan(src, {}), chain(chain(), merge).plan(src, {}))]
    assert set(told) == {merge.plan(src, {}).made["head.weight"].how}

    def value(at: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        result = merge.apply(at, {})
        return result["table.weight"].sum(), result

    compiled = torch.compile(lambda at: merge.apply(at, {}), fullgraph=True, backend="aot_eager")
    for other in (new, torch.func.grad(value, has_aux=True)(dict(src))[1], compiled(dict(src))):
        torch.testing.assert_close(dict(other), dict(wanted))
