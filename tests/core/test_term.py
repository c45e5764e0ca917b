"""Terms: numbers that are lifted or stay static, parameters, state, reads in lists, shared adapters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import mlp, vectors
from tests.support.steps import TASK, refused, run, small_step
from ttransfer.core._term import name_of

BATCH = vectors(0)
BATCHES = [vectors(seed) for seed in range(3)]


# -- the lift rule


def margin_loss(x: Tensor, *, margin: float) -> Tensor:
    return (margin - x).clamp_min(0).mean()


def by_float(x: Tensor, *, h: float) -> Tensor:
    return x.mean() * float(h)


def by_branch(x: Tensor, *, h: float) -> Tensor:
    return x.mean() * h if h > 0 else x.mean()


def by_math(x: Tensor, *, h: float) -> Tensor:
    return x.mean() * math.exp(h)


def by_numpy(x: Tensor, *, h: float) -> Tensor:
    return x.mean() * np.exp(h)


def by_item(x: Tensor, *, h: float) -> Tensor:
    return x.mean() * (h.item() if isinstance(h, Tensor) else h)


def by_new_tensor(x: Tensor, *, h: float) -> Tensor:
    return x.mean() * torch.tensor([h], dtype=x.dtype).sum()


def by_slice(x: Tensor, *, h: float) -> Tensor:
    return x[: int(h)].mean()


STUDENT = ("student(source)",)
LIFTED: dict[str, tuple[Callable[..., Tensor], tuple[str, ...], str, float, bool]] = {
    "label smoothing": (F.cross_entropy, ("student(source)", "source.y"), "label_smoothing", 0.1, False),
    "smooth l1 beta": (F.smooth_l1_loss, ("student(source)", "teacher(source)"), "beta", 0.5, False),
    "huber delta": (F.huber_loss, ("student(source)", "teacher(source)"), "delta", 0.5, False),
    "arithmetic margin": (margin_loss, STUDENT, "margin", 0.5, True),
    "float(h)": (by_float, STUDENT, "h", 0.5, False),
    "if h > 0": (by_branch, STUDENT, "h", 0.5, False),
    "math.exp(h)": (by_math, STUDENT, "h", 0.5, False),
    "np.exp(h)": (by_numpy, STUDENT, "h", 0.5, False),
    "h.item()": (by_item, STUDENT, "h", 0.5, False),
    "torch.tensor([h])": (by_new_tensor, STUDENT, "h", 0.5, False),
    "int(h)": (by_slice, STUDENT, "h", 2.0, False),
}


@pytest.mark.parametrize("name", LIFTED)
def test_a_foreign_number_is_lifted_only_if_it_may_be_a_tensor(name: str) -> None:
    fn, reads, key, value, lifted = LIFTED[name]
    step = small_step({"t": tt.term(fn, *reads, **{key: value})})
    state = step.init(BATCH)
    assert (f"t.{key}" in state.hyper) == lifted
    said = [line.split("  ") for line in tt.describe(step, BATCH).splitlines() if line.startswith(f"  t.{key} ")]
    assert said[0][-1].strip() == ("lifted" if lifted else f"static: {fn.__name__} takes no tensor for it")
    # Lifted or not, the value is the one that was given.
    student, teacher = mlp(1)(BATCH["source"]["x"]), mlp(2)(BATCH["source"]["x"])
    arguments = {"student(source)": student, "teacher(source)": teacher, "source.y": BATCH["source"]["y"]}
    expected = fn(*(arguments[read] for read in reads), **{key: value})
    assert abs(step(state, BATCH)[1]["t"].item() - expected.item()) < 1e-12


@pytest.mark.parametrize("name", [name for name, case in LIFTED.items() if not case[-1]])
def test_a_static_number_cannot_be_swept_set_or_scheduled(name: str) -> None:
    fn, reads, key, value, _ = LIFTED[name]
    step = small_step({"t": tt.term(fn, *reads, **{key: value})})
    refused(lambda: tt.sweep(step, {f"t.{key}": [value, value]}).init(BATCH), f"'t.{key}'")
    refused(lambda: tt.set_hyper(step.init(BATCH), {f"t.{key}": value}), f"'t.{key}'")
    scheduled = small_step({"t": tt.term(fn, *reads, **{key: tt.schedules.ramp(10)})})
    refused(lambda: scheduled.init(BATCH), "term 't'", f"{key} is a schedule", fn.__name__)


def test_a_lifted_number_can_be_set_and_has_a_gradient() -> None:
    step = small_step({"t": tt.term(margin_loss, "student(source)", margin=0.5)})
    state = step.init(BATCH)
    other = small_step({"t": tt.term(margin_loss, "student(source)", margin=0.9)})
    changed, _ = step(tt.set_hyper(state, {"t.margin": 0.9}), BATCH)
    assert worst(changed, other(other.init(BATCH), BATCH)[0]) == 0.0

    def loss(margin: Tensor) -> Tensor:
        return step(tt.set_hyper(state, {"t.margin": margin}), BATCH)[1]["t"]

    x = mlp(1)(BATCH["source"]["x"])
    gradient = torch.func.grad(loss)(torch.tensor(0.5, dtype=torch.float64))
    assert abs(gradient.item() - (x < 0.5).double().mean().item()) < 1e-12


def test_numbers_of_our_own_losses_are_lifted_with_their_defaults() -> None:
    term = tt.term(tt.losses.kd, "student(source)", "teacher(source)")
    assert dict(term.hyper) == {"weight": 1.0, "temperature": 4.0}
    assert not term.tried


def test_a_whole_number_of_a_foreign_loss_stays_as_it_is() -> None:
    def power(x: Tensor, *, p: float) -> Tensor:
        return (x**p).mean()

    assert "p" not in tt.term(power, "student(source)", p=2).hyper
    assert "p" in tt.term(power, "student(source)", p=2.0).hyper


def test_fixed_keeps_a_number_of_our_own_static() -> None:
    fixed = {
        "kd": tt.term(
            tt.losses.kd, "student(source)", "teacher(source)", temperature=tt.fixed(2.0), weight=tt.fixed(0.5)
        )
    }
    lifted = {"kd": tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=2.0, weight=0.5)}
    one, two = small_step(fixed), small_step(lifted)
    state = one.init(BATCH)
    assert not [name for name in state.hyper if name.startswith("kd.")]
    assert worst(one(state, BATCH)[0].trainable, two(two.init(BATCH), BATCH)[0].trainable) == 0.0


def test_numbers_reach_a_loss_in_the_dtype_of_its_readings() -> None:
    seen: dict[str, torch.dtype] = {}

    def note(x: Tensor, *, h: float) -> Tensor:
        seen["h"] = h.dtype if isinstance(h, Tensor) else torch.float16
        return x.mean() * h

    for dtype, expected in ((torch.float64, torch.float64), (torch.float32, torch.float32)):
        net = tt.functional(mlp(1).to(dtype))
        batch = {"source": {"x": BATCH["source"]["x"].to(dtype)}}
        step = tt.step(
            {"student": net}, tt.optim.sgd(0.1), trainable=("student",), t=tt.term(note, "student(source)", h=0.5)
        )
        state, logs = step(step.init(batch), batch)
        assert seen["h"] == expected
        assert logs["loss"].dtype == dtype
        assert state.hyper["t.h"].dtype == torch.float64
        assert state.trainable["student"]["fc.weight"].dtype == dtype


def test_readings_below_float32_are_brought_up_before_pipes_and_losses() -> None:
    seen: list[torch.dtype] = []

    def note(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x

    def loss(x: Tensor, f: Tensor) -> Tensor:
        seen.extend((x.dtype, f.dtype))
        return x.mean() + f.mean()

    x = BATCH["source"]["x"]
    batch = {"source": {"x": x.float(), "f": x.bfloat16()}}
    net = tt.functional(mlp(1).float(), precision="bfloat16")
    terms = {"t": tt.term(loss, tt.read("student(source)") | note, "source.f")}
    step = tt.step({"student": net}, tt.optim.sgd(0.1), terms, trainable=("student",))
    step(step.init(batch), batch)
    assert set(seen) == {torch.float32}


# -- parameters and state


def bilinear(a: Tensor, b: Tensor, *, params: dict[str, Tensor]) -> Tensor:
    return ((a @ params["w"]) * b).sum(1).mean()


def test_a_term_with_parameters_trains_them() -> None:
    def init(generator: torch.Generator, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        assert a.device.type == b.device.type == "meta"
        return {"w": torch.randn(a.shape[1], b.shape[1], generator=generator, dtype=a.dtype)}

    term = tt.term(bilinear, "student(source)", "teacher(source)", params=init, weight=0.5)
    step = small_step({"t": term}, optimizer=tt.optim.sgd(0.1, momentum=0.9))
    state = step.init(BATCH, seed=4)
    assert worst(state.trainable, step.init(BATCH, seed=4).trainable) == 0.0
    assert worst(state.trainable["terms"], step.init(BATCH, seed=5).trainable["terms"]) > 0.1
    student, teacher = mlp(1), mlp(2)
    w = nn.Parameter(state.trainable["terms"]["t"]["w"].clone())
    optimizer = torch.optim.SGD([*student.parameters(), w], 0.1, momentum=0.9)
    for batch in BATCHES:
        state, _ = step(state, batch)
        optimizer.zero_grad()
        x = batch["source"]["x"]
        (0.5 * ((student(x) @ w) * teacher(x).detach()).sum(1).mean()).backward()
        optimizer.step()
    assert (state.trainable["terms"]["t"]["w"] - w).abs().max() < 1e-12
    assert worst(state.trainable["student"], dict(student.named_parameters())) < 1e-12


def test_an_init_that_draws_from_the_global_generator_follows_the_seed_and_puts_it_back() -> None:
    def init(generator: torch.Generator, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"w": torch.randn(3, 3, dtype=torch.float64)}

    step = small_step({"t": tt.term(bilinear, "student(source)", "teacher(source)", params=init)})
    before = torch.get_rng_state()
    one = step.init(BATCH, seed=1).trainable["terms"]
    assert torch.equal(before, torch.get_rng_state())
    torch.randn(5)
    assert worst(one, step.init(BATCH, seed=1).trainable["terms"]) == 0.0
    assert worst(one, step.init(BATCH, seed=2).trainable["terms"]) > 0.1


SIZE = 8


def bank_loss(x: Tensor, *, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Pull rows to what the ring buffer holds, then write them into it."""
    loss = (x[:, None] - state["rows"]).square().sum(-1).mean()
    at = (state["next"] + torch.arange(x.shape[0], device=x.device)) % SIZE
    return loss, {"next": (state["next"] + x.shape[0]) % SIZE, "rows": state["rows"].index_copy(0, at, x)}


def empty_bank(generator: torch.Generator, x: Tensor) -> dict[str, Tensor]:
    return {"rows": torch.zeros(SIZE, x.shape[1], dtype=x.dtype), "next": torch.zeros((), dtype=torch.int64)}


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_memory_bank_equals_a_plain_loop(mode: str) -> None:
    step = small_step({"bank": tt.term(bank_loss, "student(source)", state=empty_bank)})
    step = tt.compile(step, backend="aot_eager") if mode == "compiled" else step
    start = step.init(BATCH)
    state, _ = run(step, start, *BATCHES)
    student, rows, at = mlp(1), torch.zeros(SIZE, 3, dtype=torch.float64), 0
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for batch in BATCHES:
        optimizer.zero_grad()
        x = student(batch["source"]["x"])
        torch.stack([(row - old).pow(2).sum() for row in x for old in rows]).mean().backward()
        optimizer.step()
        for row in x.detach():
            rows[at] = row
            at = (at + 1) % SIZE
    assert worst(state.trainable["student"], dict(student.named_parameters())) < 1e-12
    assert worst(state.terms["bank"]["rows"], rows) < 1e-12
    assert int(state.terms["bank"]["next"]) == at
    # The loss returns its state in another order; the State keeps its own.
    assert list(state.terms["bank"]) == list(start.terms["bank"]) == ["rows", "next"]
    assert not state.terms["bank"]["rows"].requires_grad


def centroid_loss(x: Tensor, y: Tensor, *, state: Tensor, momentum: float = 0.7) -> tuple[Tensor, Tensor]:
    """Rows to the moving average of their class; a class that is absent keeps its centroid."""
    mine = (y[:, None] == torch.arange(3, device=y.device)).to(x.dtype)
    count = mine.sum(0)[:, None]
    mean = mine.mT @ x / count.clamp_min(1)
    moved = torch.where(count > 0, momentum * state + (1 - momentum) * mean, state)
    return (x - moved[y]).square().sum(1).mean(), moved


@pytest.mark.parametrize("momentum", [0.7, 0.2])
def test_class_centroids_equal_a_plain_loop(momentum: float) -> None:
    term = tt.term(
        centroid_loss, "student(source)", "source.y", momentum=momentum,
        state=lambda generator, x, y: torch.zeros(3, x.shape[1], dtype=x.dtype),
    )  # fmt: skip
    step = small_step({"t": term})
    batches = [{"source": {**b["source"], "y": b["source"]["y"] % (3 - i % 2)}} for i, b in enumerate(BATCHES)]
    state = step.init(batches[0])
    assert "t.momentum" in state.hyper
    state, _ = run(step, state, *batches)
    student, centroids = mlp(1), torch.zeros(3, 3, dtype=torch.float64)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for batch in batches:
        optimizer.zero_grad()
        x, y = student(batch["source"]["x"]), batch["source"]["y"]
        now = [x[y == c].mean(0) if (y == c).any() else None for c in range(3)]
        moved = [
            old if m is None else momentum * old + (1 - momentum) * m for old, m in zip(centroids, now, strict=True)
        ]
        torch.stack([(row - moved[c]).pow(2).sum() for row, c in zip(x, y, strict=True)]).mean().backward()
        optimizer.step()
        centroids = torch.stack([m.detach() for m in moved])
    assert worst(state.trainable["student"], dict(student.named_parameters())) < 1e-12
    assert worst(state.terms["t"], centroids) < 1e-12


BAD_STATE: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "no tensor": (
        lambda x, *, state: (x.mean(), state),
        lambda generator, x: {"n": 0},
        ("tensors only", "int 0", "'t'"),
    ),
    "nothing": (
        lambda x, *, state: (x.mean(), state),
        lambda generator, x: {"n": None},
        ("tensors only", "None", "'t'"),
    ),
    "not returned": (
        lambda x, *, state: x.mean(),
        lambda generator, x: {"n": torch.zeros(())},
        ("'t'", "must return (loss, state)", "got () float64"),
    ),
    "another dtype": (
        lambda x, *, state: (x.mean(), {"n": state["n"] + 0.5}),
        lambda generator, x: {"n": torch.zeros((), dtype=torch.int64)},
        ("'t'", "as it got it", "() int64", "() float32"),
    ),
    "another shape": (
        lambda x, *, state: (x.mean(), {"n": torch.cat([state["n"], x[:1]])}),
        lambda generator, x: {"n": x.new_zeros(2, 3, device="cpu")},
        ("'t'", "as it got it", "(2, 3) float64", "(3, 3) float64"),
    ),
    "another name": (
        lambda x, *, state: (x.mean(), {"m": state["n"]}),
        lambda generator, x: {"n": torch.zeros(())},
        ("'t'", "as it got it", "'n'", "'m'"),
    ),
}


@pytest.mark.parametrize("name", BAD_STATE)
def test_a_wrong_state_is_refused_at_init(name: str) -> None:
    fn, state, parts = BAD_STATE[name]
    step = small_step({"t": tt.term(fn, "student(source)", state=state)})
    refused(lambda: step.init(BATCH), *parts)


# -- reads


def test_a_list_of_reads_is_handed_over_as_a_list() -> None:
    seen: list[Any] = []

    def spread(views: list[Tensor], y: Tensor, pairs: list[list[Tensor]]) -> Tensor:
        seen.append((len(views), y.shape, [len(pair) for pair in pairs]))
        return torch.stack([F.cross_entropy(v, y) for v in views]).sum() + sum(F.mse_loss(a, b) for a, b in pairs)

    reads = (
        ["student(source)", "student(source)#2"],
        "source.y",
        [
            ["student(source)", "teacher(source)"],
            [tt.read("student(source).hidden") | tt.detach, "teacher(source).hidden"],
        ],
    )
    step = small_step({"t": tt.term(spread, *reads)})
    state = step.init(BATCH)
    _, logs = step(state, BATCH)
    assert seen[-1] == (2, (6,), [2, 2])
    student, teacher, x, y = mlp(1), mlp(2), BATCH["source"]["x"], BATCH["source"]["y"]
    expected = 2 * F.cross_entropy(student(x), y) + F.mse_loss(student(x), teacher(x))
    expected += F.mse_loss(student.hidden(x), teacher.hidden(x))
    assert abs(logs["t"].item() - expected.item()) < 1e-12
    assert "[student(source) (6, 3), student(source)#2 (6, 3)]" in tt.describe(step, BATCH)


def test_a_shared_adapter_has_one_set_of_parameters() -> None:
    project = tt.shared("project", tt.adapters.linear(2))
    both = [tt.read(f"student({domain}).hidden") | project for domain in ("source", "target")]
    step = small_step({"t": tt.term(lambda a, b: (a.mean(0) - b.mean(0)).square().sum(), *both)})
    state = step.init(BATCH)
    assert {k: tuple(v.shape) for k, v in state.trainable["terms"]["t"].items()} == {
        "reads.project.weight": (2, 6),
        "reads.project.bias": (2,),
    }
    student = mlp(1)
    own = {k: v.clone().requires_grad_() for k, v in state.trainable["terms"]["t"].items()}
    optimizer = torch.optim.SGD([*student.parameters(), *own.values()], 0.1)
    for batch in BATCHES:
        state, _ = step(state, batch)
        optimizer.zero_grad()
        a, b = (F.linear(student.hidden(batch[d]["x"]), *own.values()).mean(0) for d in ("source", "target"))
        (a - b).pow(2).sum().backward()
        for p in student.fc.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert worst(state.trainable["student"], dict(student.named_parameters())) < 1e-12
    assert max((state.trainable["terms"]["t"][k] - v).abs().max().item() for k, v in own.items()) < 1e-12


def test_adapters_of_their_own_start_differently_and_by_position() -> None:
    reads = [tt.read(f"student({d}).hidden") | tt.adapters.linear(2) for d in ("source", "target")]
    state = small_step({"t": tt.term(tt.align.mmd, *reads)}).init(BATCH)
    own = state.trainable["terms"]["t"]
    assert list(own) == ["reads.0.0.weight", "reads.0.0.bias", "reads.1.0.weight", "reads.1.0.bias"]
    assert not torch.equal(own["reads.0.0.weight"], own["reads.1.0.weight"])


def test_adding_a_term_changes_no_other_terms_start() -> None:
    def dann(*more: str) -> dict[str, tt.Term]:
        critic = tt.adapters.mlp(4)
        names = (*more, "dann")
        return {n: tt.terms.dann("student(source)", "student(target)", critic=critic) for n in names}

    alone, after = (small_step(terms).init(BATCH, seed=3) for terms in (dann(), dann("first")))
    assert worst(alone.trainable["terms"]["dann"], after.trainable["terms"]["dann"]) == 0.0
    assert worst(after.trainable["terms"]["first"], after.trainable["terms"]["dann"]) > 0.01


# -- bad input


def twice(a: Tensor, *, scale: float) -> Tensor:
    return a.mean() * scale


BAD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "no loss": (lambda: tt.term(3.0, "a(b)"), ("must be callable", "float 3.0")),
    "nothing to read": (lambda: tt.term(F.mse_loss), ("mse_loss", "nothing to read")),
    "no path": (lambda: tt.term(F.mse_loss, "a(b", "c(d)"), ("'a(b'", "expected ')'")),
    "a tensor": (lambda: tt.term(F.mse_loss, torch.ones(3), "c(d)"), ("a term reads from paths", "Tensor")),
    "misspelt keyword": (
        lambda: tt.term(tt.losses.kd, "a(b)", "c(b)", temprature=3.0),
        ("kd has no keyword 'temprature'", "did you mean 'temperature'?"),
    ),
    "too few reads": (lambda: tt.term(tt.losses.kd, "a(b)"), ("1 reads", "kd", "'teacher'")),
    "too many reads": (lambda: tt.term(tt.losses.entropy, "a(b)", "a(c)"), ("2 reads", "entropy", "too many")),
    "a number in quotes": (
        lambda: tt.term(tt.losses.kd, "a(b)", "c(b)", temperature="4"),
        ("term(kd): temperature must be a number or a schedule", "'4'"),
    ),
    "weight of another kind": (lambda: tt.term(F.mse_loss, "a(b)", "c(b)", weight="big"), ("weight", "str 'big'")),
    "class weights": (
        lambda: tt.term(F.cross_entropy, "a(b)", "b.y", weight=torch.ones(3)),
        ("weight must be a number", "functools.partial(cross_entropy, weight=...)"),
    ),
    "fixed schedule": (
        lambda: tt.term(tt.losses.kd, "a(b)", "c(b)", temperature=tt.fixed(tt.schedules.ramp(10))),
        ("kd", "temperature is a schedule", "tt.fixed"),
    ),
    "fixed schedule of the weight": (
        lambda: tt.term(F.mse_loss, "a(b)", "c(b)", weight=tt.fixed(tt.schedules.ramp(10))),
        ("weight is a schedule", "tt.fixed"),
    ),
    "parameters that the loss does not take": (
        lambda: tt.term(F.mse_loss, "a(b)", "c(b)", params=lambda generator, a, b: {}),
        ("mse_loss has no keyword 'params'",),
    ),
    "state that the loss does not take": (
        lambda: tt.term(F.mse_loss, "a(b)", "c(b)", state=lambda generator, a, b: {}),
        ("mse_loss has no keyword 'state'",),
    ),
    "count of a coupled loss": (
        lambda: tt.term(F.mse_loss, "a(b)", "c(b)", coupled=True, count=lambda a, b: 1),
        ("count=", "coupled=False"),
    ),
    "two numbers of one name": (
        lambda: tt.term(twice, tt.read("a(b)") | tt.reverse(0.5), scale=0.7),
        ("two different numbers are called 'scale'", "0.5", "0.7"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_term_is_refused_when_it_is_made(name: str) -> None:
    make, parts = BAD[name]
    refused(make, *parts)


def test_one_number_of_one_name_is_shared() -> None:
    term = tt.term(twice, tt.read("student(source)") | tt.reverse(0.5), scale=0.5)
    assert dict(term.hyper) == {"weight": 1.0, "scale": 0.5}


def test_the_loss_says_whether_it_couples_rows() -> None:
    pair = ("a(b)", "c(b)")
    assert not tt.term(F.cross_entropy, *pair).coupled
    assert not tt.term(functools.partial(F.cross_entropy, ignore_index=255), *pair).coupled
    assert tt.term(functools.partial(F.cross_entropy, reduction="sum"), *pair).coupled
    assert tt.term(tt.align.mmd, *pair).coupled
    assert tt.term(lambda a, b: a.mean(), *pair).coupled
    assert not tt.term(lambda a, b: a.mean(), *pair, coupled=False).coupled
    assert tt.term(functools.partial(F.cross_entropy, ignore_index=255), *pair).labels == (0, 1, 255)


def test_a_callable_has_a_name_for_people() -> None:
    class Loss:
        def __call__(self, x: Tensor) -> Tensor:
            return x.mean()

    assert name_of(functools.partial(functools.partial(F.mse_loss), reduction="sum")) == "mse_loss"
    assert name_of(Loss()) == "Loss"
    step = small_step({"t": tt.term(Loss(), "student(source)"), "task": TASK})
    assert "Loss(student(source))" in tt.describe(step)
