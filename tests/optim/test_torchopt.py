"""`optim.from_torchopt` against torch and our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchopt

import ttransfer.core._tree as tree
from ttransfer import TransferError, optim

MAKE: dict[str, Callable[[], Any]] = {
    "sgd": lambda: torchopt.sgd(0.05),
    "momentum": lambda: torchopt.sgd(0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda: torchopt.adam(0.05),
    "adamw": lambda: torchopt.adamw(0.05),
    "rmsprop": lambda: torchopt.rmsprop(0.05),
    "adagrad": lambda: torchopt.adagrad(0.05),
    "adadelta": lambda: torchopt.adadelta(0.05),
    "schedule": lambda: torchopt.sgd(torchopt.schedule.linear_schedule(0.05, 0.01, 10, 0)),
}
cases = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


@cases
def test_equals_torchopts_own_loop(make: Any, problem: Any, loss: Any, train: Any, same: Callable[..., None]) -> None:
    theirs, params = make(), problem()
    state = theirs.init(params)
    for _ in range(25):
        grads = torch.func.grad(loss)(params)
        updates, state = theirs.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    same(train(optim.from_torchopt(make()), problem(), 25), params, 0.0)


@pytest.mark.parametrize(("name", "atol"), [("sgd", 1e-12), ("momentum", 1e-12), ("adam", 1e-4), ("adamw", 1e-4)])
def test_equals_ours(name: str, atol: float, problem: Any, train: Any, same: Callable[..., None]) -> None:
    # TorchOpt corrects Adam's bias in float32.
    ours = {
        "sgd": optim.sgd(0.05),
        "momentum": optim.sgd(0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
        "adam": optim.adam(0.05),
        "adamw": optim.adamw(0.05),
    }
    same(train(optim.from_torchopt(MAKE[name]()), problem(), 25), train(ours[name], problem(), 25), atol)


@cases
def test_changes_no_input_and_shares_no_storage(make: Any, problem: Any) -> None:
    opt = optim.from_torchopt(make())
    params = problem()
    state = opt.init(params)
    kept = tree.map(torch.clone, (params, state))
    updates, new = opt.update(params, state, params, {})
    for before, after in zip(tree.leaves(kept), tree.leaves((params, state)), strict=True):
        assert torch.equal(before, after)
    owned = [leaf.data_ptr() for leaf in tree.leaves(params) + tree.leaves(state)]
    assert len(set(owned)) == len(owned)
    assert tree.paths(new).keys() == tree.paths(state).keys()
    assert tree.paths(updates).keys() == tree.paths(params).keys()


@cases
def test_compiled_equals_eager(make: Any, problem: Any, train: Any, same: Callable[..., None]) -> None:
    torch._dynamo.reset()
    opt = optim.from_torchopt(make())
    compiled = torch.compile(opt.update, backend="aot_eager", fullgraph=True)
    failed = ""
    try:
        same(train(opt, problem(), 4, update=compiled), train(opt, problem(), 4))
    except torch._dynamo.exc.TorchDynamoException as error:
        failed = str(error)
    # Older torch cannot trace optree, TorchOpt's library of trees.
    assert not failed or (torch.__version__ < (2, 15) and "optree" in failed), failed


def test_in_a_chain_and_a_partition(problem: Any, train: Any, same: Callable[..., None]) -> None:
    clip, ours = optim.clip_by_norm(0.7), optim.sgd(0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
    theirs = optim.from_torchopt(MAKE["momentum"]())
    same(train(optim.chain(clip, theirs), problem(), 10), train(optim.chain(clip, ours), problem(), 10))
    labels = {"net": "student.*", "rest": ".*"}
    split = [optim.partition({"net": net, "rest": optim.adam(0.1)}, labels) for net in (theirs, ours)]
    same(train(split[0], problem(), 10), train(split[1], problem(), 10))


# TorchOpt uses an operation without a batching rule.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@cases
def test_vmapped_whole_equals_a_loop(make: Any, problem: Any, same: Callable[..., None]) -> None:
    opt = optim.from_torchopt(make())
    members = [tree.map(lambda p, i=i: p * (1 + i), problem()) for i in range(3)]

    def run(params: Any) -> Any:
        return opt.update(tree.map(torch.cos, params), opt.init(params), params, {})[0]

    got = torch.vmap(run)(tree.map(lambda *p: torch.stack(p), *members))
    same(got, tree.map(lambda *u: torch.stack(u), *[run(m) for m in members]))


@pytest.mark.parametrize("make", [torchopt.radam, torchopt.adamax])
def test_a_state_with_a_python_number_is_refused(make: Any, problem: Any) -> None:
    with pytest.raises(TransferError, match=r"the state has 0\.t = 1, of type int; a state holds tensors only"):
        optim.from_torchopt(make(0.1)).init(problem())


def test_what_is_no_transformation_is_refused() -> None:
    with pytest.raises(TransferError, match="from_torchopt: got Adam, wanted a gradient transformation"):
        optim.from_torchopt(torchopt.Adam([torch.zeros(1, requires_grad=True)], 0.1))
