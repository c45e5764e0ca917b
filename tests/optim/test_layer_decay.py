"""`optim.layer_decay` against torch's parameter groups with a rate each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer import TransferError, optim

LAYERS = [r"terms.*", r"student\.fc.*", ".*"]


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_equals_torchs_groups_with_smaller_rates(
    rule: str, problem: Any, train: Any, oracle: Any, same: Callable[..., None]
) -> None:
    def depth(name: str) -> int:
        return next(len(LAYERS) - 1 - i for i, pattern in enumerate(LAYERS) if tree.matches(pattern, name))

    def make(params: dict[str, Tensor]) -> torch.optim.Optimizer:
        groups = [{"params": [p], "lr": 0.05 * 0.6 ** depth(name)} for name, p in params.items()]
        if rule == "adamw":
            return torch.optim.AdamW(groups, weight_decay=0.1)
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1)

    base = {"adamw": optim.adamw(0.05, weight_decay=0.1), "sgd": optim.sgd(0.05, momentum=0.9, weight_decay=0.1)}[rule]
    opt = optim.chain(base, optim.layer_decay(LAYERS, 0.6))
    assert len({depth(path) for path in tree.paths(problem())}) == 3
    same(train(opt, problem(), 20), oracle(make, problem(), 20))


def test_a_factor_of_one_changes_nothing(problem: Any, train: Any, same: Callable[..., None]) -> None:
    opt = optim.chain(optim.adam(0.01), optim.layer_decay(LAYERS, 1.0))
    same(train(opt, problem(), 5), train(optim.adam(0.01), problem(), 5), 0.0)


def test_a_layer_that_is_frozen_whole_may_be_named() -> None:
    params = {"net": {"fc.bias": torch.ones(1)}}
    opt = optim.layer_decay(["net.conv.*", "net.fc.*"], 0.5)
    opt.init(params)
    assert opt.update(params, {}, params, optim.hyper_at(opt))[0]["net"]["fc.bias"].item() == 1.0


def test_mistakes_are_named() -> None:
    params = {"net": {"fc.bias": torch.ones(1)}}
    with pytest.raises(TransferError, match=r"'net.fc.bias' is in none of the layers"):
        optim.layer_decay(["net.conv.*"]).init(params)
    with pytest.raises(TransferError, match=r"layer 'net.fc.*' gets no parameter that an earlier layer leaves"):
        optim.layer_decay(["net.*", "net.fc.*"]).init(params)
    with pytest.raises(TransferError, match="no layers"):
        optim.layer_decay([])
    with pytest.raises(TransferError, match=r"optim.layer_decay: decay is 'half', wanted a number"):
        optim.layer_decay([".*"], "half")  # type: ignore[arg-type]


def test_expressions_are_in_no_graph() -> None:
    # torch 2.8 guards on all that `re` has compiled, and fails where a pattern of bytes is among it.
    opt = optim.layer_decay(["conv.*", ".*"], 0.5)
    params = {"conv": torch.ones(2), "fc": torch.ones(2)}
    state = opt.init(params)

    def update(grads: dict[str, Tensor]) -> Any:
        return opt.update(grads, state, params, {"decay": torch.tensor(0.5)})[0]

    torch.compiler.reset()
    re.purge()
    re.fullmatch(b"a.*", b"ab")
    found = torch.compile(update, backend="aot_eager", fullgraph=True)(params)
    assert found["conv"].tolist() == [0.5, 0.5]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    re.fullmatch("one.*more", "")
    torch.compile(update, backend="aot_eager", fullgraph=True)(params)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
