"""Phases: each a step of its own, which goes on with what was learned."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.recipes import Phase, finetune, in_turn, layers, lp_ft, thaw

G = torch.Generator().manual_seed(0)
DATA = {"x": torch.randn(24, 4, generator=G), "y": torch.arange(24) % 3}


def make() -> nn.Module:
    torch.manual_seed(0)
    parts = OrderedDict(
        stem=nn.Linear(4, 8), bn=nn.BatchNorm1d(8), act=nn.ReLU(), body=nn.Linear(8, 8), fc=nn.Linear(8, 3)
    )
    return nn.Sequential(parts)


def batches() -> list[Any]:
    return [{"data": {name: x[i : i + 8] for name, x in DATA.items()}} for i in (0, 8, 16)]


WHOLE = finetune(make(), tt.optim.sgd(0.1))


def test_a_probe_comes_first() -> None:
    phases = lp_ft(WHOLE, layers(make()), (4, 3))
    found = in_turn(phases, batches())
    probe, whole = found["probe"].state, found["finetune"].state
    start = WHOLE.init(next(iter(batches())))
    assert (probe.step.item(), whole.step.item()) == (4, 3)
    assert set(probe.trainable["net"]) == {"fc.weight", "fc.bias"}
    assert torch.equal(probe.frozen["net"]["stem.weight"], start.trainable["net"]["stem.weight"])
    assert torch.equal(probe.buffers["net"]["bn.running_mean"], start.buffers["net"]["bn.running_mean"])
    # The whole goes on from the probe: by hand, the same.
    by_hand = tt.carry(probe, WHOLE, next(iter(batches())), seed=1)
    again = tt.fit(WHOLE, by_hand, batches(), steps=3, progress=False).state
    torch.testing.assert_close(again.trainable["net"], whole.trainable["net"], rtol=0, atol=0)


def test_layers_thaw_one_by_one() -> None:
    phases = thaw(WHOLE, layers(make()), [1, 1, 1, 2])
    assert list(phases) == ["fc", "body", "bn", "stem"]
    found = in_turn(phases, batches())
    learned = [{name.split(".")[0] for name in one.state.trainable["net"]} for one in found.values()]
    assert learned == [{"fc"}, {"fc", "body"}, {"fc", "body", "bn"}, {"fc", "body", "bn", "stem"}]
    assert [one.step.spec.expression.buffers["net"] for one in phases.values()] == ["shared"] * 4


def test_what_is_frozen_stays_frozen() -> None:
    model = make()
    model.get_parameter("body.bias").requires_grad_(False)
    by_gradient = finetune(model, tt.optim.sgd(0.1))
    by_pattern = finetune(make(), tt.optim.sgd(0.1), trainable=["body.weight", "stem.*", "bn.*", "fc.*"])
    for step in (by_gradient, by_pattern):
        for phase in thaw(step, layers(make()), 1).values():
            assert "body.bias" in phase.step.init(batches()[0]).frozen["net"]
    head = make()
    head.get_parameter("fc.bias").requires_grad_(False)
    probe = lp_ft(finetune(head, tt.optim.sgd(0.1)), layers(head), (1, 1))["probe"].step
    assert set(probe.init(batches()[0]).trainable["net"]) == {"fc.weight"}


def test_each_is_a_graph_of_its_own() -> None:
    phases = lp_ft(WHOLE, layers(make()), (2, 2))
    eager = in_turn(phases, batches())
    compiled = in_turn(phases, batches(), made=lambda step: tt.compile(step, backend="aot_eager"))
    for name in phases:
        torch.testing.assert_close(compiled[name].state.trainable, eager[name].state.trainable)


def test_from_a_state() -> None:
    state, _ = WHOLE(WHOLE.init(next(iter(batches()))), next(iter(batches())))
    found = in_turn({"only": Phase(WHOLE, 1)}, batches(), state=state)
    by_hand, _ = WHOLE(tt.carry(state, WHOLE, next(iter(batches()))), next(iter(batches())))
    torch.testing.assert_close(found["only"].state.trainable, by_hand.trainable, rtol=0, atol=0)


def test_mistakes_are_named() -> None:
    told = r"wanted 4 numbers of steps for the layers stem, bn, body, fc, or one for all, got"
    for steps in ([1, 2], 1.5, "4", [1, 2, 3, -4], [1, 2, 3, 4.0], None, [True, 1, 1, 1]):
        with pytest.raises(TransferError, match=f"thaw: {told} {re.escape(repr(steps))}"):
            thaw(WHOLE, layers(make()), steps)  # type: ignore[arg-type]
    for wrong in (5, (1, 2, 3), (1, -2), (1, 2.5), "12"):
        with pytest.raises(TransferError, match="lp_ft: wanted two numbers of steps, of the probe and"):
            lp_ft(WHOLE, layers(make()), wrong)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="lp_ft: the step has no net 'student'; there are: net"):
        lp_ft(WHOLE, layers(make()), (1, 1), net="student")
    with pytest.raises(TransferError, match=r"thaw: the layers have 'head.weight', which is no parameter of 'net'"):
        thaw(WHOLE, {"stem": ("stem.weight",), "head": ("head.weight",)}, 1)
    frozen = finetune(make(), tt.optim.sgd(0.1), trainable="body.*")
    for one in (lambda: lp_ft(frozen, layers(make()), (1, 1)), lambda: thaw(frozen, layers(make()), 1)):
        with pytest.raises(TransferError, match="the step trains nothing of 'fc', with which 'net' begins to train"):
            one()
    for none in (lambda: lp_ft(WHOLE, {}, (1, 1)), lambda: thaw(WHOLE, {}, 1)):
        with pytest.raises(TransferError, match=r"(lp_ft|thaw): no layers"):
            none()
    with pytest.raises(TransferError, match="in_turn: no phases"):
        in_turn({}, batches())
    with pytest.raises(TransferError, match="in_turn: batches are empty"):
        in_turn({"only": Phase(WHOLE, 1)}, [])
