"""The update: accumulation, the guard, purity, and the laws of weights and sums."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import copied, worst
from tests.support.nets import Conv, conv, images, mlp, vectors
from tests.support.steps import TASK, refused, run, small_step
from ttransfer.core import _tree as tree

BATCH = vectors(0)
BATCHES = [vectors(seed) for seed in range(3)]


# -- accumulation


def uneven(dtype: torch.dtype = torch.float64) -> dict[str, dict[str, Tensor]]:
    """Seven rows and five; three labels are ignored, the first two among them."""
    batch = vectors(3, 7, 5)
    y = batch["source"]["y"].clone()
    y[[0, 1, 4]] = -100
    g = torch.Generator().manual_seed(0)
    soft = torch.rand(7, 3, generator=g, dtype=torch.float64).softmax(1)
    more = {"soft": soft, "void": torch.where(y < 0, 255, y), "keep": torch.tensor([1.0, 0, 1, 1, 0, 1, 1])}
    batch = {"source": {**batch["source"], "y": y, **more}, "target": batch["target"]}
    return tree.map(lambda x: x.to(dtype) if x.is_floating_point() else x, batch)


def kept_mean(x: Tensor, keep: Tensor) -> Tensor:
    return (x.square().sum(1) * keep).sum() / keep.sum().clamp_min(1)


CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
MEANS: dict[str, tt.Term] = {
    "ignored labels": TASK,
    "another ignored label": tt.term(
        functools.partial(F.cross_entropy, ignore_index=255), "student(source)", "source.void"
    ),
    "a keyword for it": tt.term(F.cross_entropy, "student(source)", "source.void", ignore_index=255),
    "labels ignored by a pipe": tt.term(
        F.cross_entropy, "student(source)", tt.read("source.void") | (lambda y: torch.where(y == 255, -100, y))
    ),
    "class weights": tt.term(functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS), "student(source)", "source.y"),
    "class weights and smoothing": tt.term(
        functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS), "student(source)", "source.y", label_smoothing=0.2
    ),
    "soft labels": tt.term(F.cross_entropy, "student(source)", "source.soft"),
    "log likelihood": tt.term(F.nll_loss, tt.read("student(source)") | (lambda x: x.log_softmax(1)), "source.y"),
    "distillation": tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=2.0),
    "entropy of the other domain": tt.term(tt.losses.entropy, "student(target)"),
    "squares of an inner value": tt.term(F.mse_loss, "student(source).hidden", "teacher(source).hidden"),
    "through an adapter": tt.term(
        F.mse_loss, tt.read("student(source).fc:in") | tt.adapters.linear(4), tt.read("source.x") | (lambda x: x[:, :4])
    ),
    "a declared mean": tt.term(lambda x: x.square().mean(), "student(source)", coupled=False),
    "a declared mean with a count": tt.term(
        kept_mean, "student(source)", "source.keep", coupled=False, count=lambda x, keep: keep.sum()
    ),
    "parameters": tt.term(
        lambda now, then: torch.stack([(now[k] - then[k]).square().sum() for k in now]).sum(),
        "student:params",
        "teacher:params",
        coupled=False,
    ),
}


@pytest.mark.parametrize("pieces", [2, 3, 5])
@pytest.mark.parametrize("name", MEANS)
def test_uneven_micro_batches_equal_the_whole_batch(name: str, pieces: int) -> None:
    batch = uneven()
    terms = {"t": MEANS[name], "other": tt.term(tt.losses.entropy, "student(source)", weight=0.3)}
    whole, split = (small_step(terms, accumulate=n) for n in (1, pieces))
    state = whole.init(batch)
    once, logs = whole(state, batch)
    parts, said = split(state, batch)
    assert worst(once, parts) < 1e-12
    assert worst(logs, said) < 1e-12
    assert logs["finite"]


def test_a_mean_of_means_would_be_wrong() -> None:
    """The comparison can fail: micro-batches that count the same are off by far more."""
    batch = uneven()
    equal = {"t": tt.term(F.cross_entropy, "student(source)", "source.y", coupled=False, count=lambda x, y: 1)}
    whole, split = small_step(equal), small_step(equal, accumulate=2)
    state = whole.init(batch)
    assert worst(whole(state, batch)[0].trainable, split(state, batch)[0].trainable) > 1e-4


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_micro_batches_repeat_the_dropout_masks_of_the_whole_batch(mode: str) -> None:
    batches = [uneven(), vectors(4, 7, 5)]
    terms = {"task": TASK, "entropy": MEANS["entropy of the other domain"]}
    whole, split = (small_step(terms, {"student": tt.functional(mlp(1, p=0.5))}, accumulate=n) for n in (1, 2))
    split = tt.compile(split, backend="aot_eager") if mode == "compiled" else split
    state = whole.init(batches[0], seed=5)
    assert worst(run(whole, state, *batches), run(split, state, *batches)) < 1e-12


def test_micro_batches_in_float32() -> None:
    batch = uneven(torch.float32)
    nets = {"student": tt.functional(mlp(1).float()), "teacher": tt.functional(mlp(2).float())}
    whole, split = (small_step({"t": TASK, "kd": MEANS["distillation"]}, nets, accumulate=n) for n in (1, 3))
    state = whole.init(batch)
    one, two = whole(state, batch), split(state, batch)
    assert worst(one, two) < 1e-6


def test_maps_with_ignored_positions() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    torch.manual_seed(0)
    batch = images(0, 5)
    y = torch.randint(3, (5, 6, 6), generator=torch.Generator().manual_seed(1))
    y[0, :3], y[2] = -100, -100
    batch["source"]["y"] = y
    nets = {"student": tt.functional(Dense().double())}
    whole, split = (small_step(nets=nets, accumulate=n) for n in (1, 5))
    state = whole.init(batch)
    assert worst(whole(state, batch), split(state, batch)) < 1e-12


def test_a_terms_state_is_handed_from_micro_batch_to_micro_batch() -> None:
    def counting(x: Tensor, *, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        seen = {"calls": state["calls"] + 1, "rows": state["rows"] + x.shape[0]}
        return x.square().mean() * (1 + 0 * state["calls"]), seen

    def zero(generator: torch.Generator, x: Tensor) -> dict[str, Tensor]:
        return {"calls": torch.zeros(()), "rows": torch.zeros((), dtype=torch.int64)}

    step = small_step({"t": tt.term(counting, "student(source)", state=zero, coupled=False)}, accumulate=3)
    state, _ = run(step, step.init(BATCH), BATCH, vectors(1, 7))
    assert state.terms["t"]["calls"].item() == 6
    assert state.terms["t"]["rows"].item() == 13


def test_batch_normalisation_sees_micro_batches_one_after_the_other() -> None:
    """The exception to the law: statistics over a micro-batch are not those over the batch."""
    batch = images(0)
    step = small_step(nets={"student": tt.functional(conv(1))}, accumulate=2)
    state, _ = step(step.init(batch), batch)
    student = conv(1)
    for half in batch["source"]["x"].split(3):
        student(half)
    assert worst(state.buffers["student"], dict(student.named_buffers())) < 1e-12


def test_fewer_rows_than_micro_batches_are_refused() -> None:
    step = small_step(accumulate=4)
    refused(lambda: step(step.init(BATCH), vectors(0, source=3)), "accumulate=4", "'source'", "3 rows")


# -- the guard


def full_step(**options: Any) -> tt.Step:
    """Everything that a state can hold: running statistics, an average, a critic, a term's state, moments."""

    def counted(x: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
        return x.square().mean(), state + 1

    terms = {
        "task": TASK,
        "kd": tt.term(tt.losses.kd, "student(target)", "mean(target)", temperature=2.0, weight=tt.schedules.ramp(9)),
        "dann": tt.terms.dann("student(source)", "student(target)", critic=tt.adapters.mlp(4), scale=0.5),
        "seen": tt.term(counted, "student(source).fc:in", state=lambda generator, x: torch.zeros(()), weight=0.1),
    }
    nets = {"student": tt.functional(conv(1, p=0.3)), "teacher": tt.functional(conv(2))}
    ema = {"mean": tt.ema("student", 0.9, buffers="lerp")}
    return small_step(terms, nets, tt.optim.adamw(1e-2), ema=ema, **options)


def poisoned(value: float) -> dict[str, dict[str, Tensor]]:
    batch = images(9)
    batch["target"]["x"][1, 0, 2, 3] = value
    return batch


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_step_that_is_not_finite_keeps_the_state_to_the_bit(mode: str) -> None:
    step = full_step()
    step = tt.compile(step, backend="aot_eager") if mode == "compiled" else step
    state, logs = run(step, step.init(images(0)), images(1))
    assert logs["finite"]
    for value in (math.nan, math.inf, -math.inf):
        kept, logs = step(state, poisoned(value))
        assert not logs["finite"]
        assert not torch.isfinite(logs["loss"])
        assert torch.isfinite(logs["task"])
        assert worst(kept, state) == 0.0
    # The run goes on as if those batches had not been.
    assert worst(step(kept, images(2)), step(state, images(2))) == 0.0


def test_a_gradient_that_is_not_finite_is_caught_though_the_loss_is() -> None:
    def root(x: Tensor) -> Tensor:
        return (x - x).sqrt().sum()

    step = small_step({"task": TASK, "root": tt.term(root, "student(source)")})
    state = step.init(BATCH)
    kept, logs = step(state, BATCH)
    assert torch.isfinite(logs["loss"])
    assert not logs["finite"]
    assert worst(kept, state) == 0.0


def test_without_the_guard_what_is_not_finite_goes_through() -> None:
    step = full_step(guard=False)
    state, logs = step(step.init(images(0)), poisoned(math.nan))
    assert "finite" not in logs
    assert int(state.step) == 1
    assert not all(torch.isfinite(p).all() for p in tree.leaves(state.trainable))
    assert worst(step(step.init(images(0)), images(1))[0], full_step()(step.init(images(0)), images(1))[0]) == 0.0


def test_many_float16_parameters_are_finite_though_their_sum_is_not() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(70_000, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) * self.scale.float().mean()

    assert torch.ones(70_000, dtype=torch.float16).sum().isinf()
    loss = tt.term(lambda out: out.mean(), "student(source)")
    step = small_step({"t": loss}, {"student": tt.functional(Half())})
    state, logs = step(step.init(BATCH), BATCH)
    assert logs["finite"]
    assert int(state.step) == 1


# -- purity


def test_the_inputs_of_an_update_are_left_alone() -> None:
    step, batch = full_step(), images(1)
    state = step.init(images(0))
    before = copied((state, batch))
    versions = [x._version for x in tree.leaves((state, batch))]
    generator = torch.get_rng_state()
    one = step(state, batch)
    assert worst((state, batch), before) == 0.0
    assert [x._version for x in tree.leaves((state, batch))] == versions
    assert torch.equal(generator, torch.get_rng_state())
    assert worst(one, step(state, batch)) == 0.0


def test_a_net_that_writes_its_input_does_not_write_the_batch() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu_(x))

    torch.manual_seed(0)
    step = small_step(nets={"student": tt.functional(Writing().double())})
    batch = copied(BATCH)
    step(step.init(batch), batch)
    assert worst(batch, BATCH) == 0.0


def test_the_structure_of_a_state_does_not_change() -> None:
    step = full_step(buffers={"student": "shared"})
    state = step.init(images(0))
    after, _ = run(step, state, *(images(seed) for seed in range(2)))
    one, two = tree.paths(state), tree.paths(after)
    assert list(one) == list(two)
    assert [(x.shape, x.dtype, x.device) for x in one.values()] == [(x.shape, x.dtype, x.device) for x in two.values()]
    assert len({x.untyped_storage().data_ptr() for x in two.values() if x.numel()}) == len(two)


@pytest.mark.parametrize("under", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_update_does_not_depend_on_the_gradient_mode(under: Callable[[], Any]) -> None:
    step = full_step()
    state = step.init(images(0))
    expected = step(state, images(1))
    with under():
        found = step(state, images(1))
    assert worst(expected, found) == 0.0
    assert not any(x.requires_grad for x in tree.leaves(found))


def test_one_state_can_be_stepped_along_two_ways() -> None:
    step = full_step()
    state = step.init(images(0))
    left = run(step, state, images(1), images(2))
    right = run(step, state, images(3))
    assert worst(left, run(step, state, images(1), images(2))) == 0.0
    assert worst(right, run(step, state, images(3))) == 0.0


# -- laws


def test_a_term_of_weight_zero_equals_an_absent_one() -> None:
    terms = {
        "task": TASK,
        "mmd": tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in", weight=0.4),
        "coral": tt.term(tt.align.coral, "student(source).fc:in", "student(target).fc:in", weight=0.0),
        "kd": tt.term(tt.losses.kd, "student(source)", "teacher(source)", weight=0.0),
    }
    nets = {"student": tt.functional(conv(1, p=0.2)), "teacher": tt.functional(conv(2))}
    batches = [images(seed) for seed in range(3)]
    with_all = small_step(terms, nets, tt.optim.adamw(1e-2))
    without = tt.replace(with_all, coral=None, kd=None)
    one, _ = run(with_all, with_all.init(batches[0]), *batches)
    two, _ = run(without, without.init(batches[0]), *batches)
    for part in ("trainable", "buffers", "opt"):
        mine, theirs = tree.paths(getattr(one, part)), tree.paths(getattr(two, part))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[path], theirs[path]) for path in mine)


def test_the_gradient_of_a_sum_is_the_sum_of_gradients() -> None:
    parts = {
        "task": (F.cross_entropy, ("student(source)", "source.y"), 1.0),
        "mmd": (tt.align.mmd, ("student(source).fc:in", "student(target).fc:in"), 0.4),
        "kd": (tt.losses.kd, ("student(source)", "teacher(source)"), 2.0),
        "entropy": (tt.losses.entropy, ("student(target)",), 0.1),
    }

    def gradient(*names: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        terms = {n: tt.term(parts[n][0], *parts[n][1], weight=parts[n][2]) for n in names}
        step = small_step(terms, optimizer=tt.optim.sgd(1.0))
        state = step.init(BATCH)
        after, logs = step(state, BATCH)
        return tree.map(torch.sub, state.trainable["student"], after.trainable["student"]), logs

    total, logs = gradient(*parts)
    alone = [gradient(name) for name in parts]
    summed = tree.map(lambda *g: torch.stack(g).sum(0), *(g for g, _ in alone))
    assert worst(total, summed) < 1e-12
    assert abs(logs["loss"].item() - sum(said["loss"].item() for _, said in alone)) < 1e-12
    assert all(logs[name] == said[name] for name, (_, said) in zip(parts, alone, strict=True))


def test_logs_tell_values_unweighted_and_every_number_at_its_step() -> None:
    ramp = tt.schedules.ramp(10)
    terms = {
        "kd": tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=3.0, weight=ramp),
        "task": TASK,
    }
    step = small_step(terms, optimizer=tt.optim.sgd(tt.schedules.cosine(0.1, 20)), ema={"mean": tt.ema("student", 0.9)})
    state = step.init(BATCH)
    for i, batch in enumerate(BATCHES):
        state, logs = step(state, batch)
        assert set(logs) == {
            "loss", "kd", "task", "kd.weight", "kd.temperature", "task.weight", "optim.lr", "optim.weight_decay",
            "mean.decay", "finite",
        }  # fmt: skip
        assert all(value.ndim == 0 and not value.requires_grad for value in logs.values())
        assert abs(logs["kd.weight"].item() - (2 / (1 + math.exp(-i)) - 1)) < 1e-12
        assert abs(logs["optim.lr"].item() - 0.05 * (1 + math.cos(math.pi * i / 20))) < 1e-12
        assert abs(logs["loss"] - (logs["kd.weight"] * logs["kd"] + logs["task"])) < 1e-12
    assert int(state.step) == 3
    schedules = {"kd.weight": ramp, "optim.lr": tt.schedules.cosine(0.1, 20)}
    entries = {f"{name}.{key}" for name, schedule in schedules.items() for key in schedule.hyper}
    assert set(state.hyper) == entries | {"kd.temperature", "task.weight", "optim.weight_decay", "mean.decay"}


def test_frozen_nets_and_leaves_stay_and_cost_no_gradient() -> None:
    seen: list[bool] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(torch._C._functorch.is_gradtrackingtensor(x))
        return x

    class Watched(Conv):
        def forward(self, x: Tensor) -> Tensor:
            return watched(super().forward(x))

    torch.manual_seed(2)
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(Watched().double())}
    terms = {"kd": tt.term(tt.losses.kd, "student(source)", "teacher(source)")}
    step = small_step(terms, nets, trainable={"student": "fc.*"})
    state = step.init(images(0))
    seen.clear()
    after, _ = step(state, images(1))
    assert seen == [False]
    assert set(after.trainable["student"]) == {"fc.weight", "fc.bias"}
    assert all(a is b for a, b in zip(tree.leaves(after.frozen), tree.leaves(state.frozen), strict=True))
    assert worst(after.trainable, state.trainable) > 1e-4


def test_a_parameter_that_no_term_reaches_has_a_gradient_of_zero() -> None:
    """torch.optim would pass over it; here weight decay moves it, in every mode alike."""
    terms = {"t": tt.term(F.mse_loss, "student(source).hidden", "teacher(source).hidden")}
    step = small_step(terms, optimizer=tt.optim.sgd(0.1, weight_decay=0.5))
    state = step.init(BATCH)
    after, _ = step(state, BATCH)
    assert worst(after.trainable["student"]["fc.weight"], 0.95 * state.trainable["student"]["fc.weight"]) < 1e-12


def test_an_update_is_differentiable_in_the_batch() -> None:
    step = small_step()
    state = step.init(BATCH)

    def after(x: Tensor) -> Tensor:
        new, _ = step(state, {"source": {"x": x, "y": BATCH["source"]["y"]}})
        return new.trainable["student"]["fc.weight"].square().sum()

    x = BATCH["source"]["x"]
    slope = torch.func.grad(after)(x)
    for i, j in itertools.product((0, 4), (1, 3)):
        nudge = torch.zeros_like(x)
        nudge[i, j] = 1e-6
        assert abs((after(x + nudge) - after(x - nudge)).item() / 2e-6 - slope[i, j].item()) < 1e-7
