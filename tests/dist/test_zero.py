"""The optimizer's state spread over the ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import conv, images, mlp, vectors
from tests.support.sharded import alone, cut, gap, part
from tests.support.steps import refused, small_step
from ttransfer.core import _tree as tree
from ttransfer.core._transforms import outside_of
from ttransfer.dist._ranks import Ranks
from ttransfer.dist._zero import owners_of
from ttransfer.testing._threads import run_ranks

TERMS = {
    "task": tt.term(F.cross_entropy, "student(source)", "source.y"),
    "mmd": tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in"),
    "dann": tt.terms.dann("student(source).fc:in", "student(target).fc:in", critic=tt.adapters.mlp(4)),
}


def clipped() -> tt.Optimizer:
    return tt.optim.chain(tt.optim.clip_by_norm(0.1), tt.optim.adam(1e-2))


def in_groups() -> tt.Optimizer:
    return tt.optim.partition(
        {"head": tt.optim.sgd(0.1), "body": clipped()}, {"head": r"student\.fc\..*", "body": ".*"}
    )


OPTIMIZERS: dict[str, Callable[[], tt.Optimizer]] = {
    "sgd": lambda: tt.optim.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: tt.optim.adamw(1e-2),
    "lamb": lambda: tt.optim.lamb(1e-2),
    "lars": lambda: tt.optim.lars(1e-2),
    "clipped": clipped,
    "in groups": in_groups,
}


def step_of(optimizer: tt.Optimizer, make: Any = mlp) -> tt.Step:
    return small_step(TERMS, {"student": tt.functional(make(1, p=0.2))}, optimizer)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_is_that_of_the_whole_optimizer(name: str, size: int) -> None:
    step, batches = step_of(OPTIMIZERS[name]()), [vectors(seed) for seed in range(3)]
    assert gap(step, batches, [cut(b, size) for b in batches], optimizer="sharded") < 1e-12


def test_of_a_net_with_batch_normalisation_and_of_members() -> None:
    step, batches = step_of(clipped(), conv), [images(seed) for seed in range(2)]
    assert gap(step, batches, optimizer="sharded") < 1e-12
    assert gap(tt.ensemble(step, 2), batches, optimizer="sharded") < 1e-12


def test_of_a_game() -> None:
    nets = {"student": tt.functional(mlp(1))}
    game = tt.alternate(
        a=small_step({"task": TERMS["task"]}, nets, tt.optim.adam(1e-2)), b=small_step(TERMS, nets, clipped())
    )
    assert gap(game, [vectors(seed) for seed in range(2)], optimizer="sharded") < 1e-12


def test_each_rank_keeps_about_its_part() -> None:
    sizes = [(40, 50), (50,), (7, 7), (3,), (30, 40), (11,)]
    trainable = {str(i): torch.zeros(size) for i, size in enumerate(sizes)}
    owners = owners_of(trainable, 2)
    load = [sum(x.numel() for x, o in zip(trainable.values(), owners, strict=True) if o == rank) for rank in range(2)]
    assert max(load) == 2000
    step, batch = step_of(tt.optim.adam(1e-2)), vectors(0)

    def kept(ranks: Ranks) -> int:
        sharded = tt.shard(step, ranks, optimizer="sharded")
        outside = outside_of(sharded.spec.transforms)
        assert outside is not None
        state = outside.part(step.init(batch))
        after, _ = sharded(state, part(batch, ranks.rank, cut(batch, 2)))
        assert [x.shape for x in tree.leaves(after.opt)] == [x.shape for x in tree.leaves(state.opt)]
        return sum(x.numel() for x in tree.leaves(after.opt))

    whole = sum(x.numel() for x in tree.leaves(step.init(batch).opt))
    places = 2 * len(tree.leaves(step.init(batch).trainable))
    assert sum(run_ranks(2, kept)) <= whole + places + 2


def test_a_state_goes_on_on_any_number_of_ranks(tmp_path: Any) -> None:
    step, batches = step_of(clipped()), [vectors(seed) for seed in range(3)]
    wanted = alone(step, batches)

    def first(ranks: Ranks) -> tt.State:
        sharded = tt.shard(step, ranks, optimizer="sharded")
        outside = outside_of(sharded.spec.transforms)
        assert outside is not None
        state, _ = sharded(outside.part(step.init(batches[0])), part(batches[0], ranks.rank, cut(batches[0], 3)))
        return outside.whole(state)

    saved = run_ranks(3, first)[0]
    path = tt.save(tmp_path / "whole", saved)

    def second(ranks: Ranks) -> tt.State:
        sharded = tt.shard(step, ranks, optimizer="sharded")
        outside = outside_of(sharded.spec.transforms)
        assert outside is not None
        template = outside.whole(outside.part(step.init(batches[0])))
        loaded, _ = tt.load(path, template)
        state, _ = sharded(outside.part(loaded), part(batches[1], ranks.rank, cut(batches[1], 2)))
        return outside.whole(state)

    after = run_ranks(2, second)
    loaded, _ = tt.load(path, step.init(batches[0]))
    last, logs = step(after[0], batches[2])
    assert worst((last, logs), wanted[2]) < 1e-12
    assert worst(loaded, wanted[0][0]) < 1e-12


def test_an_optimizer_that_mixes_leaves_is_refused() -> None:
    plain = tt.optim.sgd(0.1)

    def update(grads: Any, state: Any, params: Any, hyper: Any) -> Any:
        mean = torch.stack([g.mean() for g in tree.leaves(grads)]).mean()
        return plain.update(tree.map(lambda g: g - mean, grads), state, params, hyper)

    mixing = tt.Optimizer(plain.init, update, plain.hyper)
    refused(
        lambda: gap(step_of(mixing), [vectors(0)], optimizer="sharded"),
        "more of the others' gradients than their norms",
    )


def test_a_state_of_other_shapes_is_refused() -> None:
    plain = tt.optim.sgd(0.1)

    def init(params: Any) -> Any:
        return tree.map(lambda p: p.sum(0) if p.ndim else p, params)

    def update(grads: Any, state: Any, params: Any, hyper: Any) -> Any:
        return plain.update(grads, plain.init(params), params, hyper)[0], state

    factored = tt.Optimizer(init, update, plain.hyper)
    refused(lambda: gap(step_of(factored), [vectors(0)], optimizer="sharded"), "shapes of the parameters")


def test_a_leaf_may_be_a_number() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
            self.fc = torch.nn.Linear(5, 3, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.fc(x)

    step = small_step({"task": TERMS["task"]}, {"student": tt.functional(Scaled())}, clipped())
    assert gap(step, [vectors(seed) for seed in range(2)], optimizer="sharded") < 1e-12
