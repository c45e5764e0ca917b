"""Every optimizer in every mode: compiled, vmapped over its numbers, differentiated, in every dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import ttransfer.core._tree as tree
from ttransfer import optim

F64 = torch.float64
CASES: dict[str, Any] = {
    "sgd": optim.sgd(0.1, weight_decay=0.1),
    "momentum": optim.sgd(0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "nesterov": optim.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optim.adam(0.1, eps=1e-3),
    "adamw": optim.adamw(0.1, eps=1e-3, weight_decay=0.1),
    "lamb": optim.lamb(0.1, eps=1e-3, weight_decay=0.1),
    "lars": optim.lars(0.1, weight_decay=0.1, trust_coefficient=0.1),
    "clip": optim.chain(optim.clip_by_norm(0.7), optim.sgd(0.1)),
    "chain": optim.chain(
        clip=optim.clip_by_norm(0.7), decay=optim.add_weight_decay(0.1), adam=optim.adam(0.1, eps=1e-3)
    ),
    "partition": optim.partition(
        {"head": optim.adamw(0.1, eps=1e-3), "body": optim.sgd(0.1, momentum=0.9)}, {"head": ".*fc.*", "body": ".*"}
    ),
    "masked": optim.chain(optim.masked(optim.add_weight_decay(0.3), ".*weight"), optim.adam(0.1, eps=1e-3)),
}
cases = pytest.mark.parametrize("opt", CASES.values(), ids=CASES.keys())
FACTORS = torch.tensor([1.0, 0.5, 0.9, 0.1], dtype=F64)


def swept(opt: Any) -> dict[str, Tensor]:
    return {name: number * FACTORS for name, number in optim.hyper_at(opt).items()}


@cases
def test_compiled_equals_eager_in_one_graph_for_all_numbers(opt: Any, problem: Any, train: Any, same: Any) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(opt.update, backend="aot_eager", fullgraph=True)
    for i in range(len(FACTORS)):
        hyper = {name: numbers[i].clone() for name, numbers in swept(opt).items()}
        same(train(opt, problem(), 3, update=compiled, hyper=hyper), train(opt, problem(), 3, hyper=hyper))
    assert counters["stats"]["unique_graphs"] == 1


@cases
@pytest.mark.parametrize("compiled", [False, True])
def test_vmap_over_the_numbers_equals_a_loop(
    opt: Any, compiled: bool, problem: Any, loss: Any, train: Any, same: Any
) -> None:
    torch._dynamo.reset()
    members = len(FACTORS)
    alone = [train(opt, problem(), 3, hyper={k: n[i] for k, n in swept(opt).items()}) for i in range(members)]
    many = torch.vmap(opt.update)
    if compiled:
        many = torch.compile(many, backend="aot_eager", fullgraph=True)
    params = tree.map(lambda p: torch.stack([p] * members), problem())
    state = tree.map(lambda s: torch.stack([s] * members), opt.init(problem()))
    for _ in range(3):
        grads = torch.vmap(torch.func.grad(loss))(params)
        updates, state = many(grads, state, params, swept(opt))
        params = optim.apply_updates(params, updates)
    same(params, tree.map(lambda *p: torch.stack(p), *alone))


@cases
def test_vmap_over_the_numbers_alone_equals_a_loop(opt: Any, problem: Any, same: Any) -> None:
    params, state = problem(), opt.init(problem())
    grads = tree.map(torch.cos, params)
    got = torch.vmap(lambda hyper: opt.update(grads, state, params, hyper)[0])(swept(opt))
    rows = [opt.update(grads, state, params, {k: n[i] for k, n in swept(opt).items()})[0] for i in range(len(FACTORS))]
    want = tree.map(lambda *u: torch.stack(u), *rows)
    same(got, want)


@cases
def test_meta_gradients_equal_finite_differences(opt: Any, problem: Any, loss: Any, train: Any) -> None:
    def after(hyper: dict[str, Tensor]) -> Tensor:
        return loss(train(opt, problem(), 3, hyper=hyper))

    hyper = optim.hyper_at(opt)
    grads = torch.func.grad(after)(hyper)
    for name, number in hyper.items():
        small = 1e-6
        up, down = (after({**hyper, name: number + d}) for d in (small, -small))
        want = (up - down) / (2 * small)
        torch.testing.assert_close(grads[name], want, rtol=1e-6, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
        assert grads[name] != 0, f"{name} does nothing"


@cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
@pytest.mark.parametrize("wider", [False, True])
def test_dtypes_and_structure_stay(opt: Any, dtype: torch.dtype, wider: bool, problem: Any) -> None:
    def kinds(values: Any) -> Any:
        return {path: (leaf.dtype, leaf.shape) for path, leaf in tree.paths(values).items()}

    params = start = problem(dtype)
    state = first = opt.init(params)
    for _ in range(3):
        grads = tree.map(lambda p: p.to(F64 if wider else dtype).cos(), params)
        updates, state = opt.update(grads, state, params, optim.hyper_at(opt))
        params = optim.apply_updates(params, updates)
        assert kinds(state) == kinds(first)
        assert kinds(params) == kinds(start)
        assert all(u.dtype == torch.promote_types(dtype, torch.float32) for u in tree.leaves(updates))
        assert all(torch.isfinite(p).all() for p in tree.leaves(params))
    least = {torch.int64, torch.promote_types(dtype, torch.float32)}
    assert {leaf.dtype for leaf in tree.leaves(state)} <= least


@cases
def test_changes_no_input_and_shares_no_storage(opt: Any, problem: Any) -> None:
    params, hyper = problem(), optim.hyper_at(opt)
    grads, state = tree.map(torch.cos, params), opt.init(params)
    kept = tree.map(torch.clone, (grads, state, params, hyper))
    opt.update(grads, state, params, hyper)
    for before, after in zip(tree.leaves(kept), tree.leaves((grads, state, params, hyper)), strict=True):
        assert torch.equal(before, after)
    owned = [leaf.data_ptr() for leaf in tree.leaves(params) + tree.leaves(state)]
    assert len(set(owned)) == len(owned)
