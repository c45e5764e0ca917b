"""What is checked outside of a graph: labels, parts of a batch, storages."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import images, mlp, vectors
from tests.support.steps import TASK, refused, run, small_step
from ttransfer.core import _tree as tree
from ttransfer.core._inputs import Labels, check, check_labels, inputs_of, label_checks, leaf_ids, unshared

BATCH = vectors(0)
Y = BATCH["source"]["y"]


def found(step: tt.Step, batch: Any = BATCH) -> list[Labels]:
    return label_checks(inputs_of(step.spec), step.init(batch), batch)


class Dense(nn.Module):
    """Logits for each position, beside something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"maps": self.conv(x), "mean": x.mean((1, 2, 3))}


def dense() -> tuple[tt.Step, Any]:
    batch = images(0)
    batch["source"]["y"] = torch.zeros(6, 6, 6, dtype=torch.int64)
    step = small_step(
        {"seg": tt.term(F.cross_entropy, "student(source)[maps]", "source.y", ignore_index=255)},
        {"student": tt.functional(Dense().double())},
    )
    return step, batch


def game() -> tt.Step:
    nets = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
    wide = tt.term(F.cross_entropy, tt.read("teacher(target).hidden") | tt.adapters.linear(9), "target.z")
    return tt.alternate(
        one=small_step({"task": TASK}, nets), two=small_step({"wide": wide}, nets, trainable=("teacher",))
    )


PLAIN = Labels("task", "source", "y", 3, -100)
WITH_Z = {**BATCH, "target": {**BATCH["target"], "z": torch.tensor([0, 8, 3, 5])}}


def test_labels_and_their_classes_are_found() -> None:
    assert found(small_step()) == [PLAIN]
    assert found(small_step(accumulate=2)) == [PLAIN]
    assert found(tt.sweep(small_step(), {"optim.lr": [0.1, 0.2]})) == [PLAIN]
    assert found(tt.ensemble(small_step(), 2)) == [PLAIN]
    assert found(dense()[0], dense()[1]) == [Labels("seg", "source", "y", 4, 255)]
    assert found(game(), WITH_Z) == [PLAIN, Labels("wide", "target", "z", 9, -100)]
    stacked = tree.map(lambda *x: torch.stack(x), vectors(0), vectors(1))
    assert found(tt.ensemble(small_step(), 2, batches="stacked"), stacked) == [PLAIN]
    log_p = tt.read("student(source)") | (lambda x: x.log_softmax(1))
    likelihood = functools.partial(F.nll_loss, ignore_index=2)
    assert found(small_step({"nll": tt.term(likelihood, log_p, "source.y")})) == [Labels("nll", "source", "y", 3, 2)]


def test_what_is_no_label_is_not_looked_at() -> None:
    soft = {"source": {**BATCH["source"], "p": torch.full((6, 3), 1 / 3, dtype=torch.float64)}}
    assert found(small_step({"t": tt.term(F.cross_entropy, "student(source)", "source.p")}), soft) == []
    moved = tt.read("source.y") | (lambda y: y - 5)
    assert found(small_step({"t": tt.term(F.cross_entropy, "student(source)", moved)})) == []
    assert found(small_step({"t": tt.term(F.mse_loss, "student(source)", "teacher(source)")})) == []


def test_looking_for_labels_leaves_the_generator_alone() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.dropout(x))

    step = small_step(nets={"student": tt.functional(Noisy().double())})
    before = torch.get_rng_state()
    found(step)
    assert torch.equal(before, torch.get_rng_state())


WRONG: dict[str, tuple[Tensor, str]] = {
    "too large": (torch.tensor([0, 1, 2, 0, 3, 9]), "found 3 at [4]; 2 of 6"),
    "negative": (torch.tensor([0, -1, -100, 0, 1, 1]), "found -1 at [1]; 1 of 6"),
    "a map": (torch.tensor([[0, 1], [2, 255]]), "found 255 at [1, 1]; 1 of 4"),
    "narrow": (torch.tensor([0, 7], dtype=torch.uint8), "found 7 at [1]; 1 of 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_labels_that_are_no_class_are_named(name: str) -> None:
    labels, where = WRONG[name]
    refused(
        lambda: check_labels([PLAIN], {"source": {"y": labels}}),
        "term 'task'", "labels source.y must be 0 to 2 (or -100, ignored)", where,
    )  # fmt: skip


def test_classes_and_ignored_labels_pass() -> None:
    check_labels([PLAIN], {"source": {"y": torch.tensor([0, 1, 2, -100, -100])}})
    check_labels([PLAIN._replace(ignored=255)], {"source": {"y": torch.tensor([[0, 255], [2, 1]])}})


def test_labels_out_of_range_are_refused_without_compilation() -> None:
    step = small_step()
    state = step.init(BATCH)
    wrong = {"source": {**BATCH["source"], "y": Y.clone().index_fill_(0, torch.tensor([3]), 5)}}
    refused(lambda: step(state, wrong), "term 'task'", "source.y", "5 is out of bounds")


def test_labels_of_a_wider_adapter_are_not_refused_when_compiled() -> None:
    plain = small_step(
        {"wide": tt.term(F.cross_entropy, tt.read("student(source)") | tt.adapters.linear(9), "source.z")}
    )
    fast = tt.compile(plain, backend="aot_eager")
    batch = {"source": {**BATCH["source"], "z": Y + 6}}
    state = fast.init(batch)
    assert worst(fast(state, batch), plain(state, batch)) < 1e-12
    wrong = {"source": {**BATCH["source"], "z": Y * 0 + 9}}
    refused(lambda: fast(state, wrong), "term 'wide'", "source.z", "0 to 8", "found 9 at [0]")


def test_only_what_is_read_enters_a_graph() -> None:
    inputs = inputs_of(game().spec)
    extra = {**WITH_Z, "other": {"x": torch.ones(2)}, "source": {**BATCH["source"], "path": ["a", "b"]}}
    assert {d: set(f) for d, f in check(inputs, game().init(WITH_Z), extra).items()} == {
        "source": {"x", "y"},
        "target": {"x", "z"},
    }
    refused(lambda: check(inputs, game().init(WITH_Z), {"source": BATCH["source"]}), "no domain 'target'")
    refused(lambda: check(inputs, game().init(WITH_Z), BATCH), "no field 'z'")


def test_item_is_right_or_refused_when_compiled() -> None:
    """Which of the two depends on the version of torch; neither is silently wrong."""

    def scaled(x: Tensor) -> Tensor:
        return x.mean() * x.detach().mean().item()

    plain = small_step({"t": tt.term(scaled, "student(source)")})
    fast = tt.compile(plain, backend="aot_eager")
    state = plain.init(BATCH)
    gap, message = 0.0, ""
    try:
        gap = worst(fast(state, BATCH), plain(state, BATCH))
    except tt.TransferError as error:
        message = str(error)
    assert gap < 1e-12
    assert not message or ("the step is not one graph" in message and "without .item()" in message)


# -- storages


def with_bias(state: tt.State, bias: Tensor) -> tt.State:
    student = {**state.trainable["student"], "fc.bias": bias}
    return tt.State({**state.trainable, "student": student}, *state[1:])


def test_leaves_that_cannot_be_written_apart_are_named() -> None:
    state = small_step(ema={"mean": tt.ema("student")}).init(BATCH)
    unshared(state)
    bias = state.ema["mean"]["fc.bias"]
    refused(
        lambda: unshared(with_bias(state, bias)), "donate", "trainable.student.fc.bias", "ema.mean.fc.bias", "share"
    )
    weight = state.trainable["student"]["fc.weight"]
    refused(lambda: unshared(with_bias(state, weight[:, 0])), "trainable.student.fc.weight", "share")
    expanded = torch.zeros((), dtype=torch.float64).expand(3)
    refused(lambda: unshared(with_bias(state, expanded)), "trainable.student.fc.bias is expanded", ".clone()")
    wanting = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    refused(lambda: unshared(with_bias(state, wanting)), "trainable.student.fc.bias requires a gradient", ".detach()")


def test_a_state_is_known_by_its_tensors() -> None:
    step = small_step()
    state = step.init(BATCH)
    assert leaf_ids(state) == leaf_ids(tt.State(*state))
    assert leaf_ids(state) != leaf_ids(run(step, state, BATCH)[0])
