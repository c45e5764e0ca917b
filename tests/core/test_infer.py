"""Initialising on fake tensors: what is found out early, and what must be left as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import conv, images, mlp, vectors
from tests.support.steps import TASK, refused, run, small_step
from ttransfer.core import _tree as tree

BATCH = vectors(0)


class Again(nn.Module):
    """One submodule that is called twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 3)
        self.spare = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.two(self.act(self.one(x))))


class Positive(nn.Module):
    """A net whose number of rows depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[x[:, 0] > 0])


class Branching(Positive):
    """A net whose path depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if bool(x.mean() > 0) else -self.fc(x)


def with_net(net: nn.Module, *paths: str) -> tt.Step:
    return small_step(
        {"t": tt.term(lambda *xs: sum(x.mean() for x in xs), *paths)}, {"student": tt.functional(net.double())}
    )


def loss(fn: Callable[..., Any], *paths: str) -> tt.Step:
    return small_step({"t": tt.term(fn, *(paths or ("student(source)",)))})


BAD: dict[str, tuple[Callable[[], tt.Step], Any, tuple[str, ...]]] = {
    "input of another width": (
        small_step,
        {"source": {"x": torch.ones(3, 4).double(), "y": torch.zeros(3, dtype=torch.int64)}},
        ("student(source)", "(3, 4) float64"),
    ),
    "labels of another length of classes": (
        lambda: loss(F.cross_entropy, "student(source)", "target.x"),
        BATCH,
        ("term 't'", "cross_entropy", "student(source): (6, 3)", "target.x: (4, 5)"),
    ),
    "maps for mmd": (
        lambda: small_step(
            {"t": tt.term(tt.align.mmd, "student(source).conv", "student(target).conv")},
            {"student": tt.functional(conv(1))},
        ),
        images(0),
        ("term 't'", "mmd", "(n, d)", "(6, 4, 4, 4)", "pool the map"),
    ),
    "classes that differ": (
        lambda: small_step(
            {"t": tt.term(tt.losses.kd, "student(source)", "teacher(source)")},
            {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2, classes=4))},
        ),
        BATCH,
        ("term 't'", "kd", "(6, 3)", "(6, 4)"),
    ),
    "a vector": (lambda: loss(lambda x: x.mean(1)), BATCH, ("term 't'", "<lambda>", "scalar", "(6,) float64")),
    "a whole number": (lambda: loss(lambda x: (x > 0).sum()), BATCH, ("term 't'", "scalar", "() int64")),
    "a Python number": (lambda: loss(lambda x: 0.5), BATCH, ("term 't'", "float")),
    "nothing": (lambda: loss(lambda x: None), BATCH, ("term 't'", "NoneType")),
    "a pair without a state": (lambda: loss(lambda x: (x.mean(), x.mean())), BATCH, ("term 't'", "scalar")),
    "called twice": (
        lambda: with_net(Again(), "student(source).act"),
        BATCH,
        ("student(source)", "'act'", "called 2 times", "'act@0' to 'act@1'"),
    ),
    "called less often": (lambda: with_net(Again(), "student(source).act@2"), BATCH, ("'act@2'", "2 times", "from 0")),
    "never called": (
        lambda: with_net(Again(), "student(source).spare"),
        BATCH,
        ("student(source)", "'spare'", "not called"),
    ),
    "rows that depend on values": (
        lambda: with_net(Positive(), "student(source)"),
        BATCH,
        ("student(source)", "depend on values"),
    ),
    "a branch that depends on values": (
        lambda: with_net(Branching(), "student(source)"),
        BATCH,
        ("student(source)", "depend on values"),
    ),
    "an adapter on no tensor": (
        lambda: small_step(
            {"t": tt.term(lambda x: x.mean(), tt.read("student:params") | tt.adapters.linear(2))},
        ),
        {},
        ("student:params", "a pipe takes a tensor"),
    ),
    "parameters in the name of a pipe": (
        lambda: small_step(
            {
                "t": tt.term(
                    lambda x, params: x.mean() * params["reads.w"].sum(),
                    "student(source)",
                    params=lambda generator, x: {"reads.w": torch.ones(3, dtype=torch.float64)},
                )
            }
        ),
        BATCH,
        ("term 't'", "'reads.'"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_first_step_would_fail_on_is_refused_at_init(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, batch, parts = BAD[name]
    with caplog.at_level(logging.DEBUG):
        refused(lambda: make().init(batch), *parts)
    # One clear error, and no traceback of torch's own beside it.
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    # Nothing fake stays behind.
    assert type(torch.ones(2) + 1) is Tensor


def test_each_call_of_a_module_can_be_tapped() -> None:
    net = Again().double()
    step = with_net(net, "student(source).act@0", "student(source).act@1")
    _, logs = step(step.init(BATCH), BATCH)
    first = F.relu(net.one(BATCH["source"]["x"]))
    assert abs(logs["t"].item() - (first.mean() + F.relu(net.two(first)).mean()).item()) < 1e-12


class Caching(nn.Module):
    """A net that keeps a tensor on itself, as nets with position tables do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.shape[0] != x.shape[0]:
            self.table = torch.arange(x.shape[0], dtype=x.dtype, device=x.device)
        return self.fc(x) + self.table[:, None]


def test_a_net_that_keeps_a_tensor_is_not_left_with_a_fake_one() -> None:
    net = Caching().double()
    step = small_step(nets={"student": tt.functional(net)})
    state = step.init(BATCH)
    tt.describe(step, BATCH)
    _, logs = step(state, BATCH)
    assert abs(logs["task"].item() - F.cross_entropy(net(BATCH["source"]["x"]), BATCH["source"]["y"]).item()) < 1e-12


class Noisy(nn.Module):
    """A net that draws from the global generator in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(x + torch.randn_like(x), 0.5, self.training))


def test_init_and_describe_leave_the_users_generator_alone() -> None:
    def noisy(x: Tensor, *, h: float) -> Tensor:
        return (x + torch.rand_like(x)).mean() * h

    adapted = tt.read("student(source)") | tt.adapters.linear(2) | (lambda x: F.dropout(x, 0.5))
    step = small_step({"task": TASK, "t": tt.term(noisy, adapted, h=0.5)}, {"student": tt.functional(Noisy().double())})
    before = torch.get_rng_state()
    step.init(BATCH)
    text = tt.describe(step, BATCH)
    assert torch.equal(before, torch.get_rng_state())
    assert "from the global generator, so not replayed: aten.randn_like, aten.bernoulli_, aten.rand_like" in text


def test_every_leaf_of_the_first_state_is_a_plain_tensor() -> None:
    critic = tt.adapters.mlp(4)
    terms = {"task": TASK, "dann": tt.terms.dann("student(source)", "student(target)", critic=critic)}
    state = small_step(terms, optimizer=tt.optim.adamw(1e-3), ema={"mean": tt.ema("student")}).init(BATCH)
    for path, leaf in tree.paths(state).items():
        assert type(leaf) is Tensor, path
        assert leaf.device.type == "cpu", path
        assert not leaf.requires_grad, path


def test_an_adapter_starts_on_the_shape_and_dtype_of_what_it_reads() -> None:
    seen: list[tuple[tuple[int, ...], torch.dtype, str]] = []

    def init(generator: torch.Generator, like: Tensor) -> dict[str, Tensor]:
        seen.append((tuple(like.shape), like.dtype, like.device.type))
        return {"w": torch.ones(like.shape[1], dtype=like.dtype)}

    adapter = tt.Adapter(init, lambda params, x: (x * params["w"])[:, :2])
    net = tt.functional(mlp(1).float(), precision="bfloat16")
    term = tt.term(lambda x: x.mean(), tt.read("student(source).hidden") | adapter | adapter)
    step = small_step({"t": term}, {"student": net})
    batch = {"source": {"x": BATCH["source"]["x"].float()}}
    state = step.init(batch)
    # In float32, though the reading is bfloat16; the second stage sees what the first one gives.
    assert seen == [((6, 6), torch.float32, "meta"), ((6, 2), torch.float32, "meta")]
    assert torch.isfinite(run(step, state, batch)[1]["loss"])


def test_a_loss_that_looks_at_values_runs_without_compilation() -> None:
    def hard(x: Tensor) -> Tensor:
        return x[x > 0].mean()

    step = loss(hard)
    _, logs = step(step.init(BATCH), BATCH)
    out = mlp(1)(BATCH["source"]["x"])
    assert abs(logs["t"].item() - out[out > 0].mean().item()) < 1e-12


def test_another_size_of_batch_needs_no_other_state() -> None:
    step = small_step({"task": TASK, "m": tt.term(tt.align.mmd, "student(source)", "student(target)")})
    small, large = vectors(1, 3, 2), vectors(2, 9, 8)
    assert worst(step(step.init(small), large), step(step.init(large), large)) == 0.0


def test_a_loss_with_one_hot_is_tried_on_zeros() -> None:
    """Fake tensors cannot follow one_hot; its number is lifted all the same."""

    def margin(scores: torch.Tensor, labels: torch.Tensor, *, by: float) -> torch.Tensor:
        return F.cross_entropy(scores - by * F.one_hot(labels, 3).to(scores.dtype), labels)

    step = tt.step(
        {"net": tt.functional(mlp(1))},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(margin, "net(source)", "source.y", by=0.5),
    )
    assert "task.by" in step.init(vectors(0)).hyper


def test_numbers_may_be_tensors() -> None:
    step = tt.step(
        {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))},
        tt.optim.sgd(0.1),
        trainable=("student",),
        kd=tt.term(
            tt.losses.kd, "student(source)", "teacher(source)", temperature=torch.tensor(2.0), weight=torch.tensor(0.5)
        ),
    )
    hyper = step.init(vectors(0)).hyper
    assert (hyper["kd.temperature"].item(), hyper["kd.weight"].item()) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("term", "trainable"),
    [
        (tt.term(tt.losses.kd, "teacher(source)", "student(source)"), ("student",)),  # the wrong way round
        (
            tt.term(tt.align.coral, "student(source).fc:in", "student(target).fc:in"),
            {"student": "fc.*"},
        ),  # frozen features
        (tt.term(F.cross_entropy, tt.read("student(source)") | tt.detach, "source.y"), ("student",)),
    ],
    ids=["swapped", "frozen", "detached"],
)
def test_a_term_from_which_nothing_learns_is_told(term: tt.Term, trainable: Any) -> None:
    def step_of(odd: tt.Term) -> tt.Step:
        nets = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
        return tt.step(nets, tt.optim.sgd(0.1), {"task": TASK, "odd": odd}, trainable=trainable)

    with pytest.warns(UserWarning, match="term 'odd': its gradient reaches no parameter that trains"):
        step_of(term).init(vectors(0))
    for zero in (0.0, tt.fixed(0.0)):  # for the logs alone
        step_of(term._replace(hyper={**term.hyper, "weight": zero})).init(vectors(0))


def test_a_critic_counts_as_something_that_trains() -> None:
    dann = tt.terms.dann("student(source).fc:in", "student(target).fc:in", critic=tt.adapters.mlp(4))
    step = tt.step(
        {"student": tt.functional(mlp(1))},
        tt.optim.sgd(0.1),
        {"task": TASK, "dann": dann},
        trainable={"student": "fc.*"},
    )
    step.init(vectors(0))
