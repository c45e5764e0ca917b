"""The types of the algebra: a schedule is called, a state is a tree of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.nets import conv, images
from ttransfer.core import _tree as tree

HALVING = tt.Schedule(lambda step, h: h["start"] * 0.5**step, {"start": 8.0})


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3), torch.tensor(3.0), torch.tensor(3, dtype=torch.int32)])
def test_a_schedule_is_evaluated_in_float64(step: Any) -> None:
    value = HALVING(step)
    assert value.dtype == torch.float64
    assert value.ndim == 0
    assert value.item() == 1.0


def test_a_schedule_takes_other_numbers() -> None:
    assert HALVING(1, {"start": torch.tensor(2.0, dtype=torch.float64)}).item() == 1.0
    constant = tt.Schedule(lambda step, h: step, {})
    assert constant(2, {}).item() == 2.0


def test_a_schedule_is_differentiable_in_its_numbers_and_maps_over_steps() -> None:
    start = torch.tensor(8.0, dtype=torch.float64)
    assert torch.func.grad(lambda s: HALVING(3, {"start": s}))(start).item() == 0.125
    assert torch.func.vmap(HALVING)(torch.arange(3.0, dtype=torch.float64)).tolist() == [8.0, 4.0, 2.0]


def first_state() -> tt.State:
    student = tt.functional(conv(1))
    step = tt.step(
        {"student": student, "teacher": tt.functional(conv(2))},
        tt.optim.adamw(1e-3),
        trainable=("student",),
        ema={"mean": tt.ema("student")},
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(target)", "teacher(target)"),
    )
    return step.init(images(0))


def test_a_state_holds_tensors_only() -> None:
    state = first_state()
    fields = ("trainable", "frozen", "buffers", "terms", "opt", "ema", "hyper", "step", "seed")
    assert tt.State._fields == fields
    assert tree.leaves(state)
    assert all(isinstance(leaf, Tensor) for leaf in tree.leaves(state))
    assert not any(leaf.requires_grad or leaf.device.type == "meta" for leaf in tree.leaves(state))
    assert (state.step.dtype, state.step.ndim, state.seed.dtype, state.seed.ndim) == (torch.int64, 0, torch.int64, 0)
    assert {h.dtype for h in state.hyper.values()} == {torch.float64}
    assert {h.ndim for h in state.hyper.values()} == {0}


def test_a_state_shares_no_storage() -> None:
    leaves = [leaf for leaf in tree.leaves(first_state()) if leaf.numel()]
    assert len({leaf.untyped_storage().data_ptr() for leaf in leaves}) == len(leaves)


def test_where_parameters_live() -> None:
    state = first_state()
    assert set(state.trainable) >= {"student"}
    assert set(state.frozen) >= {"teacher"}
    assert set(state.ema) == {"mean"}
    assert set(state.buffers) == {"student", "teacher", "mean"}
    assert state.ema["mean"].keys() == state.trainable["student"].keys()
    assert not state.trainable.get("teacher")
