"""Hyper-parameters: which become tensors, under what names, and how they are set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._hyper import at_use, evaluate, is_number, numbers, resolve, set_hyper

LINE = tt.Schedule(lambda step, h: h["a"] + h["b"] * step, {"a": 1.0, "b": 2.0})
BATCH = vectors(0)


def made(**terms: tt.Term) -> tt.Step:
    nets = {"net": tt.functional(mlp(1)), "old": tt.functional(mlp(2))}
    return tt.step(nets, tt.optim.sgd(tt.schedules.cosine(0.1, 10)), terms, trainable=("net",))


def entries(term: tt.Term) -> dict[str, float]:
    """The numbers of one term in the first state, without the optimizer's."""
    hyper = made(t=term).init(BATCH).hyper
    return {name: value.item() for name, value in hyper.items() if not name.startswith("optim.")}


def scaled(x: Tensor, y: Tensor, *, by: float = 1.0) -> Tensor:
    return by * (x - y).square().mean()


def floated(x: Tensor, y: Tensor, *, by: float = 1.0) -> Tensor:
    return float(by) * (x - y).square().mean()


def branching(x: Tensor, y: Tensor, *, by: float = 1.0) -> Tensor:
    return (x - y).square().mean() if by > 0 else (x - y).abs().mean()


READS = ("net(source)", "old(source)")
LABELLED = ("net(source)", "source.y")


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (tt.term(F.cross_entropy, *LABELLED), {"t.weight": 1.0}),
        (tt.term(F.cross_entropy, *LABELLED, weight=3), {"t.weight": 3.0}),
        (tt.term(F.cross_entropy, *LABELLED, weight=tt.fixed(3.0)), {}),
        (tt.term(F.cross_entropy, *LABELLED, weight=LINE), {"t.weight.a": 1.0, "t.weight.b": 2.0}),
        # Our own losses: every float keyword, given or not.
        (tt.term(tt.losses.kd, *READS, temperature=2), {"t.weight": 1.0, "t.temperature": 2.0}),
        (tt.term(tt.losses.kd, *READS, temperature=tt.fixed(2.0)), {"t.weight": 1.0}),
        # Another's: what is given, if it takes a tensor and passes a gradient to it.
        (tt.term(scaled, *READS), {"t.weight": 1.0}),
        (tt.term(scaled, *READS, by=2.0), {"t.weight": 1.0, "t.by": 2.0}),
        (tt.term(scaled, *READS, by=LINE), {"t.weight": 1.0, "t.by.a": 1.0, "t.by.b": 2.0}),
        (tt.term(floated, *READS, by=2.0), {"t.weight": 1.0}),
        (tt.term(branching, *READS, by=2.0), {"t.weight": 1.0}),
        (tt.term(F.cross_entropy, *LABELLED, label_smoothing=0.1), {"t.weight": 1.0}),
        (tt.term(F.smooth_l1_loss, *READS, beta=0.5), {"t.weight": 1.0}),
        (tt.term(F.huber_loss, *READS, delta=0.5), {"t.weight": 1.0}),
        # An int is a choice, not a quantity.
        (tt.term(F.cross_entropy, *LABELLED, ignore_index=2), {"t.weight": 1.0}),
        # A stage's number.
        (tt.term(scaled, tt.read(READS[0]) | tt.reverse(0.5), READS[1]), {"t.weight": 1.0, "t.scale": 0.5}),
    ],
)
def test_what_is_lifted(term: tt.Term, expected: dict[str, float]) -> None:
    assert entries(term) == expected


def test_names_of_an_optimizer() -> None:
    hyper = made(t=tt.term(scaled, *READS)).init(BATCH).hyper
    assert "optim.lr.peak" in hyper
    assert hyper["optim.lr.peak"].item() == 0.1


@pytest.mark.parametrize("fn", [floated, branching])
def test_a_schedule_that_cannot_be_lifted_is_refused(fn: Any) -> None:
    with pytest.raises(TransferError, match=f"term 't': by is a schedule, but {fn.__name__} cannot take a tensor"):
        made(t=tt.term(fn, *READS, by=LINE)).init(BATCH)


def test_a_static_number_still_counts() -> None:
    """A float that was not lifted reaches the loss."""
    values: list[float] = []
    for by in (1.0, 3.0):
        step = made(t=tt.term(floated, *READS, by=by))
        values.append(step(step.init(BATCH), BATCH)[1]["t"].item())
    assert abs(values[1] - 3 * values[0]) < 1e-12


@pytest.mark.parametrize("value", [0, 2, 0.5, torch.tensor(0.5), LINE])
def test_numbers_are(value: Any) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, None, "0.5", torch.ones(1), [0.5], 1j, tt.fixed(0.5)])
def test_numbers_are_not(value: Any) -> None:
    assert not is_number(value)


def test_entries_and_values() -> None:
    assert numbers("optim.lr", 3) == {"optim.lr": 3.0}
    assert numbers("optim.lr", torch.tensor(3.0)) == {"optim.lr": 3.0}
    assert numbers("optim.lr", LINE) == {"optim.lr.a": 1.0, "optim.lr.b": 2.0}
    hyper = {"lr.a": torch.tensor(5.0, dtype=torch.float64), "lr.b": torch.tensor(0.5, dtype=torch.float64)}
    value = evaluate("lr", LINE, hyper, torch.tensor(4))
    assert (value.item(), value.dtype) == (7.0, torch.float64)
    assert evaluate("lr.a", 1.0, hyper, torch.tensor(4)) is hyper["lr.a"]


def test_a_schedule_in_another_dtype_is_brought_back() -> None:
    low = tt.Schedule(lambda step, h: step.to(torch.float32), {})
    assert evaluate("lr", low, {}, torch.tensor(4)).dtype == torch.float64


def test_resolving_leaves_out_what_is_static() -> None:
    hyper = {"t.a": torch.tensor(1.0), "t.l.a": torch.tensor(1.0), "t.l.b": torch.tensor(2.0)}
    declared = {"a": 9.0, "l": LINE, "fixed": tt.fixed(3.0), "static": 0.5}
    found = resolve(declared, hyper, torch.tensor(3), "t.")
    assert {name: value.item() for name, value in found.items()} == {"a": 1.0, "l": 7.0}


@pytest.mark.parametrize(
    ("dtype", "to"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float32),
    ],
)
def test_at_use(dtype: torch.dtype, to: torch.dtype) -> None:
    assert at_use({"a": torch.tensor(0.1, dtype=torch.float64)}, dtype)["a"].dtype == to


@pytest.fixture(scope="module")
def state() -> tt.State:
    return made(kd=tt.term(tt.losses.kd, *READS, temperature=4.0, weight=0.5)).init(BATCH)


@pytest.mark.parametrize(
    "value", [2, 2.0, torch.tensor(2.0), torch.tensor(2), torch.tensor(2.0, dtype=torch.bfloat16), torch.ones(1)[0] * 2]
)
def test_setting_casts(state: tt.State, value: Any) -> None:
    new = set_hyper(state, {"kd.temperature": value}).hyper["kd.temperature"]
    assert (new.item(), new.dtype, new.shape) == (2.0, torch.float64, ())


def test_setting_changes_nothing_else(state: tt.State) -> None:
    new = set_hyper(state, {"kd.weight": 2.0, "optim.lr.peak": 1.0})
    assert state.hyper["kd.weight"].item() == 0.5
    assert new.hyper["kd.temperature"] is state.hyper["kd.temperature"]
    assert list(new.hyper) == list(state.hyper)
    old = tree.paths(state)
    assert {path for path, leaf in tree.paths(new).items() if leaf is not old[path]} == {
        "hyper.kd.weight", "hyper.optim.lr.peak"
    }  # fmt: skip
    assert set_hyper(state, {}).hyper == state.hyper


def test_a_tensor_given_is_not_aliased(state: tt.State) -> None:
    value = torch.tensor(2.0, dtype=torch.float64)
    new = set_hyper(state, {"kd.weight": value})
    assert new.hyper["kd.weight"].data_ptr() != value.data_ptr()


def test_a_gradient_passes_through_setting(state: tt.State) -> None:
    at = torch.tensor(3.0, dtype=torch.float64)
    assert torch.func.grad(lambda h: set_hyper(state, {"kd.weight": h}).hyper["kd.weight"] ** 2)(at).item() == 6.0


def test_setting_for_all_members_or_each() -> None:
    step = tt.ensemble(made(kd=tt.term(tt.losses.kd, *READS, temperature=4.0)), 3)
    state = step.init(BATCH)
    assert set_hyper(state, {"kd.temperature": 2.0}).hyper["kd.temperature"].tolist() == [2.0, 2.0, 2.0]
    each = set_hyper(state, {"kd.temperature": torch.tensor([1.0, 2.0, 3.0])}).hyper["kd.temperature"]
    assert each.tolist() == [1.0, 2.0, 3.0]
    assert each.is_contiguous()
    assert each.untyped_storage().nbytes() == 3 * 8
    with pytest.raises(TransferError, match=r"'kd.temperature' has shape \(3,\), the value given \(2,\)"):
        set_hyper(state, {"kd.temperature": torch.ones(2)})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kd.temprature": 2.0}, "no hyper-parameter 'kd.temprature'; did you mean 'kd.temperature'"),
        ({"optim.lr": 2.0}, "no hyper-parameter 'optim.lr'; did you mean 'optim.lr.peak'"),
        ({"kd.weight": torch.ones(2)}, r"'kd.weight' has shape \(\), the value given \(2,\)"),
        ({"kd.weight": "much"}, "'kd.weight' wants a number, got 'much'"),
        ({"kd.weight": None}, "'kd.weight' wants a number, got None"),
        ({"kd.weight": LINE}, "'kd.weight' wants a number, got Schedule"),
    ],
)
def test_setting_refuses(state: tt.State, values: dict[str, Any], said: str) -> None:
    with pytest.raises(TransferError, match=said):
        set_hyper(state, values)
