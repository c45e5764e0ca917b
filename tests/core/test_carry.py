"""From one step to the next: what was learned goes on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree

G = torch.Generator().manual_seed(0)
BATCH = {"data": {"x": torch.randn(6, 4, generator=G), "y": torch.arange(6) % 3}}


def make(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def whole(width: int = 5, **more: tt.Term) -> tt.Step:
    return tt.step(
        {"net": tt.functional(lambda: make(width))},
        tt.optim.adam(1e-2),
        trainable=("net",),
        ema={"mean": tt.ema("net", 0.9)},
        task=tt.term(F.cross_entropy, "net(data)", "data.y"),
        **more,
    )


def test_what_was_learned_goes_on_and_the_rest_begins_anew() -> None:
    probe = tt.replace(whole(), trainable={"net": "3.*"})
    state = probe.init(BATCH, seed=0)
    for _ in range(3):
        state, _ = probe(state, BATCH)
    step = whole()
    new = tt.carry(state, step, BATCH, seed=1)
    assert torch.equal(new.trainable["net"]["3.weight"], state.trainable["net"]["3.weight"])
    assert torch.equal(new.trainable["net"]["0.weight"], state.frozen["net"]["0.weight"])
    assert torch.equal(new.buffers["net"]["1.running_mean"], state.buffers["net"]["1.running_mean"])
    assert torch.equal(new.ema["mean"]["3.weight"], state.ema["mean"]["3.weight"])
    assert (new.step.item(), new.seed.item()) == (0, 1)
    assert all(not x.any() for x in tree.leaves(new.opt))
    step(new, BATCH)
    # Back again: the probe goes on from what all have learned.
    after = tt.carry(step(new, BATCH)[0], probe, BATCH)
    assert set(after.trainable["net"]) == {"3.weight", "3.bias"}


def test_terms_keep_what_they_have_learned() -> None:
    critic = tt.terms.dann("net(data)", "net(other)", critic=tt.adapters.mlp(4), weight=0.1)
    batch = {**BATCH, "other": {"x": torch.randn(4, 4, generator=G)}}
    step = whole(dann=critic)
    state, _ = step(step.init(batch), batch)
    new = tt.carry(state, tt.replace(step, optimizer=tt.optim.sgd(0.1)), batch, seed=5)
    for name, x in state.trainable["terms"]["dann"].items():
        assert torch.equal(new.trainable["terms"]["dann"][name], x)


def test_of_as_many_members() -> None:
    many = tt.ensemble(whole(), 3)
    state, _ = many(many.init(BATCH), BATCH)
    probe = tt.ensemble(tt.replace(whole(), trainable={"net": "3.*"}), 3)
    new = tt.carry(state, probe, BATCH)
    assert torch.equal(new.frozen["net"]["0.weight"], state.trainable["net"]["0.weight"])
    with pytest.raises(TransferError, match=r"carry: net.net.\d.\w+ is \(3, .*\) in the state and \("):
        tt.carry(state, whole(), BATCH)


def test_no_storage_is_shared() -> None:
    step = whole()
    state = step.init(BATCH)
    own = {x.untyped_storage().data_ptr() for x in tree.leaves(state)}
    assert own.isdisjoint(x.untyped_storage().data_ptr() for x in tree.leaves(tt.carry(state, step, BATCH)))


def test_mistakes_are_named() -> None:
    state = whole().init(BATCH)
    with pytest.raises(TransferError, match=r"carry: net.net.0.weight is \(5, 4\) in the state and \(7, 4\) in the"):
        tt.carry(state, whole(7), BATCH)
    other = tt.step({"body": tt.functional(make)}, tt.optim.sgd(0.1), trainable=("body",),
                    task=tt.term(F.cross_entropy, "body(data)", "data.y"))  # fmt: skip
    with pytest.raises(TransferError, match=r"no net in common: \['mean', 'net'\] and \['body'\]"):
        tt.carry(state, other, BATCH)
