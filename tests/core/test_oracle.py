"""The step against the same training written as a plain imperative PyTorch loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import Batch, conv, images
from ttransfer.core import _tree as tree

STEPS = 5
BATCHES = [images(seed) for seed in range(STEPS)]


def our_step(temperature: float = 4.0, lr: float = 1e-2) -> tt.Step:
    ramp = tt.schedules.ramp(10)
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    return tt.step(
        nets,
        tt.optim.adamw(tt.schedules.cosine(lr, 20), weight_decay=0.05),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=temperature, weight=0.5),
        mmd=tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in", weight=ramp),
        dann=tt.terms.dann(
            "student(source).fc:in", "student(target).fc:in", critic=tt.adapters.mlp(7), scale=ramp, weight=0.3
        ),
    )


def slow_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Five Gaussian kernels around the mean squared distance, with the diagonal, by the definition."""
    rows = torch.cat([a, b])
    squared = (rows[:, None] - rows[None, :]).square().sum(-1)
    mean = squared.detach().sum() / (len(rows) ** 2 - len(rows))
    kernel = sum(torch.exp(-squared / (2 * 2.0**u * mean)) for u in range(-3, 2))
    n = len(a)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


class Critic(nn.Module):
    """The critic of `tt.adapters.mlp(7)`, with its weights."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 1)).double()
        with torch.no_grad():
            for mine, theirs in zip(self.net.parameters(), params.values(), strict=True):
                mine.copy_(theirs)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Imperative:
    """The loop that a user would write: modules, hooks, an optimizer object, in-place updates."""

    def __init__(self, critic: dict[str, Tensor], temperature: float = 4.0, lr: float = 1e-2) -> None:
        self.student, self.teacher = conv(1), conv(2)
        self.critic = Critic(critic)
        self.temperature, self.lr = temperature, lr
        self.optimizer = torch.optim.AdamW(
            [*self.student.parameters(), *self.critic.parameters()], lr=lr, weight_decay=0.05
        )
        self.seen: list[Tensor] = []
        self.student.fc.register_forward_hook(lambda _, args, __: self.seen.append(args[0]))
        self.student.train()
        self.teacher.eval()

    def step(self, i: int, batch: Batch) -> float:
        ramp = 2 / (1 + math.exp(-10 * min(i / 10, 1))) - 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * min(i, 20) / 20))
        self.seen.clear()
        logits = self.student(batch["source"]["x"])
        with torch.no_grad():
            taught = self.teacher(batch["source"]["x"])
        self.student(batch["target"]["x"])
        source, target = self.seen
        t = self.temperature
        kd = t**2 * F.kl_div(F.log_softmax(logits / t, 1), F.softmax(taught / t, 1), reduction="batchmean")
        task = F.cross_entropy(logits, batch["source"]["y"])
        mmd = slow_mmd(source, target)
        self.optimizer.zero_grad()
        # The critic's own gradient, and the reversed one of the features, as two backward passes.
        here, there = self.critic(source.detach()), self.critic(target.detach())
        (0.3 * self.domain(here, there)).backward()
        frozen = copy.deepcopy(self.critic).requires_grad_(False)
        fooled = self.domain(frozen(source), frozen(target))
        total = task + 0.5 * kd + ramp * mmd - 0.3 * ramp * fooled
        total.backward()
        self.optimizer.step()
        return (task + 0.5 * kd + ramp * mmd + 0.3 * fooled).item()

    @staticmethod
    def domain(source: Tensor, target: Tensor) -> Tensor:
        one, zero = torch.ones_like(source), torch.zeros_like(target)
        real, fake = F.binary_cross_entropy_with_logits(source, one), F.binary_cross_entropy_with_logits(target, zero)
        return 0.5 * (real + fake)

    def gap(self, state: tt.State) -> float:
        """The largest difference from a state: parameters, buffers, critic and optimizer state."""
        named = dict(self.student.named_parameters())
        pairs = [(state.trainable["student"][name], p) for name, p in named.items()]
        pairs += [(state.buffers["student"][name], b) for name, b in self.student.named_buffers()]
        pairs += list(zip(state.trainable["terms"]["dann"].values(), self.critic.parameters(), strict=True))
        for slot, key in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            moments = state.opt[slot]
            pairs += [(moments["student"][name], self.optimizer.state[p][key]) for name, p in named.items()]
            critic = zip(moments["terms"]["dann"].values(), self.critic.parameters(), strict=True)
            pairs += [(ours, self.optimizer.state[p][key]) for ours, p in critic]
        return max((a - b).abs().max().item() for a, b in pairs)


def run(step: tt.Step, state: tt.State) -> tuple[tt.State, list[dict[str, Tensor]]]:
    logs: list[dict[str, Tensor]] = []
    for batch in BATCHES:
        state, said = step(state, batch)
        logs.append({name: value.clone() for name, value in said.items()})
    return state, logs


def oracle(state: tt.State, **kwargs: Any) -> tuple[Imperative, list[float]]:
    twin = Imperative(state.trainable["terms"]["dann"], **kwargs)
    return twin, [twin.step(i, batch) for i, batch in enumerate(BATCHES)]


def test_eager_step_equals_the_imperative_loop() -> None:
    step = our_step()
    start = step.init(BATCHES[0], seed=3)
    twin, losses = oracle(start)
    state, logs = run(step, start)
    assert twin.gap(state) < 1e-9
    assert max(abs(a - b["loss"].item()) for a, b in zip(losses, logs, strict=True)) < 1e-9
    assert int(state.step) == STEPS


@pytest.mark.parametrize("donate", [False, True])
def test_compiled_step_equals_the_imperative_loop(donate: bool) -> None:
    step = tt.compile(our_step(), backend="aot_eager", donate=donate)
    start = step.init(BATCHES[0], seed=3)
    twin, _ = oracle(start)
    state, _ = run(step, start)
    assert twin.gap(state) < 1e-9


def test_compiled_equals_eager_to_the_bit() -> None:
    step = our_step()
    start = step.init(BATCHES[0], seed=3)
    assert worst(run(step, start), run(tt.compile(step, backend="aot_eager"), start)) == 0.0


@pytest.mark.parametrize("compiled", [False, True])
def test_each_ensemble_member_equals_its_own_imperative_loop(compiled: bool) -> None:
    step = tt.ensemble(our_step(), 3)
    if compiled:
        step = tt.compile(step, backend="aot_eager")
    start = step.init(BATCHES[0], seed=3)
    state, _ = run(step, start)
    for i in range(3):
        twin, _ = oracle(tt.member(start, i))
        assert twin.gap(tt.member(state, i)) < 1e-9
        alone = our_step()
        assert worst(run(alone, alone.init(BATCHES[0], seed=3 + i))[0], tt.member(state, i)) < 1e-12


@pytest.mark.parametrize("compiled", [False, True])
def test_each_sweep_member_equals_its_own_imperative_loop(compiled: bool) -> None:
    settings = {"kd.temperature": [1.0, 4.0], "optim.lr.peak": [1e-2, 3e-3]}
    step = tt.sweep(our_step(), settings)
    if compiled:
        step = tt.compile(step, backend="aot_eager")
    start = step.init(BATCHES[0], seed=3)
    state, _ = run(step, start)
    for i in range(2):
        twin, _ = oracle(
            tt.member(start, i), temperature=settings["kd.temperature"][i], lr=settings["optim.lr.peak"][i]
        )
        assert twin.gap(tt.member(state, i)) < 1e-9


def test_the_oracle_notices_a_small_change() -> None:
    """The comparison can fail: a temperature off by a thousandth shows."""
    step = our_step(temperature=4.004)
    start = step.init(BATCHES[0], seed=3)
    twin, _ = oracle(start)
    assert twin.gap(run(step, start)[0]) > 1e-7


def test_one_inductor_compile_in_float32() -> None:
    def single(state: Any) -> Any:
        return tree.map(lambda x: x.float() if x.is_floating_point() and x.ndim else x, state)

    step = our_step()
    batches = [single(batch) for batch in BATCHES]
    state = step.init(BATCHES[0], seed=3)
    state = tt.State(*(single(part) for part in state[:6]), state.hyper, state.step, state.seed)
    fast = tt.compile(step)
    eager = state
    for batch in batches:
        eager, _ = step(eager, batch)
        state, _ = fast(state, batch)
    assert worst(eager.trainable, state.trainable) < 1e-6
