"""What our step is compared with: an imperative loop, and a step written by hand on torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _cases import (
    CRITIC_WIDTH,
    DANN_WEIGHT,
    HORIZON,
    KD_WEIGHT,
    PEAK,
    RAMP,
    TEMPERATURE,
    WEIGHT_DECAY,
    Batch,
    Case,
    net,
    ramp_at,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

BETAS, EPS = (0.9, 0.999), 1e-8
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def mmd(source: Tensor, target: Tensor) -> Tensor:
    """Five Gaussian kernels around the mean squared distance, with the diagonal."""
    n = len(source)
    rows = torch.cat([source, target])
    rows = rows - rows.mean(0).detach()
    variance = 2 * rows.detach().square().sum() / (len(rows) - 1)
    norms = rows.square().sum(1)
    squared = (norms[:, None] + norms - 2 * rows @ rows.T).clamp_min(0)
    kernel = torch.stack([torch.exp(-squared / (2 * scale * variance)) for scale in SCALES]).sum(0)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    t = TEMPERATURE
    return t**2 * F.kl_div(F.log_softmax(student / t, 1), F.softmax(teacher / t, 1), reduction="batchmean")


def told_apart(source: Tensor, target: Tensor) -> Tensor:
    return -0.5 * (F.logsigmoid(source).mean() + F.logsigmoid(-target).mean())


def reverse(x: Tensor, scale: Tensor | float) -> Tensor:
    return x.detach() - scale * (x - x.detach())


def critic_of(case: Case, dtype: torch.dtype) -> nn.Sequential:
    width = net(case, 1).fc.in_features
    return nn.Sequential(nn.Linear(width, CRITIC_WIDTH), nn.ReLU(), nn.Linear(CRITIC_WIDTH, 1)).to(dtype)


class Imperative:
    """The loop that a user would write: modules, a hook, an optimizer object, in-place updates."""

    def __init__(self, case: Case, critic: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        self.student, self.teacher = net(case, 1, dtype).train(), net(case, 2, dtype).eval()
        self.critic = critic_of(case, dtype)
        self.critic.load_state_dict(critic)
        self.optimizer = torch.optim.AdamW(
            [*self.student.parameters(), *self.critic.parameters()], PEAK, BETAS, EPS, WEIGHT_DECAY
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda i: 0.5 * (1 + math.cos(math.pi * min(i / HORIZON, 1)))
        )
        self.seen: list[Tensor] = []
        self.student.fc.register_forward_pre_hook(lambda _, args: self.seen.append(args[0]))
        self.i = 0

    def step(self, batch: Batch) -> Tensor:
        ramp = ramp_at(self.i)
        logits = self.student(batch["source"]["x"])
        with torch.no_grad():
            taught = self.teacher(batch["source"]["x"])
        self.student(batch["target"]["x"])
        source, target = self.seen
        self.seen.clear()
        loss = (
            F.cross_entropy(logits, batch["source"]["y"])
            + KD_WEIGHT * kd(logits, taught)
            + ramp * mmd(source, target)
            + DANN_WEIGHT * told_apart(self.critic(reverse(source, ramp)), self.critic(reverse(target, ramp)))
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.i += 1
        return loss.detach()

    def params(self) -> dict[str, Tensor]:
        parts = {"student": self.student, "critic": self.critic}
        return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


class Carried(NamedTuple):
    """What the hand-written step carries from step to step."""

    params: dict[str, dict[str, Tensor]]
    buffers: dict[str, Tensor]
    mu: dict[str, dict[str, Tensor]]
    nu: dict[str, dict[str, Tensor]]
    step: Tensor


def carried_of(case: Case, critic: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Carried:
    student = net(case, 1, dtype)
    params = {
        "student": {name: p.detach().clone() for name, p in student.named_parameters()},
        "critic": {name: p.clone() for name, p in critic.items()},
    }
    buffers = {name: b.clone() for name, b in student.named_buffers()}
    mu, nu = (pytree.tree_map(torch.zeros_like, params) for _ in range(2))
    return Carried(params, buffers, mu, nu, torch.zeros((), dtype=torch.int64))


class Tapped(nn.Module):
    """Logits and features in one forward."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.inner.features(x)
        return self.inner.fc(features), features


def hand_written(
    case: Case, *, guard: bool = True, donate: bool = False, dtype: torch.dtype = torch.float32
) -> Callable[[Carried, Batch], Any]:
    """What somebody who knows torch.func writes for this one training, and compiles."""
    student = Tapped(net(case, 1, dtype).train())
    teacher = net(case, 2, dtype).eval().requires_grad_(False)
    critic = critic_of(case, dtype)
    call = torch.func.functional_call

    def pure(carried: Carried, batch: Batch) -> tuple[Carried, dict[str, Tensor]]:
        x, y, other = batch["source"]["x"], batch["source"]["y"], batch["target"]["x"]
        t = carried.step.double()
        ramp = torch.tanh(5 * (t / RAMP).clamp(max=1)).to(dtype)
        lr = (PEAK * 0.5 * (1 + torch.cos(math.pi * (t / HORIZON).clamp(max=1)))).to(dtype)
        taught = teacher(x)

        def objective(params: dict[str, dict[str, Tensor]]) -> tuple[Tensor, Any]:
            own = {f"inner.{name}": p for name, p in params["student"].items()}
            buffers = {f"inner.{name}": b.clone() for name, b in carried.buffers.items()}
            logits, source = call(student, (own, buffers), (x,))
            _, target = call(student, (own, buffers), (other,))
            here = call(critic, params["critic"], (reverse(source, ramp),))
            there = call(critic, params["critic"], (reverse(target, ramp),))
            values = {
                "task": F.cross_entropy(logits, y),
                "kd": kd(logits, taught),
                "mmd": mmd(source, target),
                "dann": told_apart(here, there),
            }
            loss = values["task"] + KD_WEIGHT * values["kd"] + ramp * values["mmd"] + DANN_WEIGHT * values["dann"]
            return loss, ({"loss": loss, **values}, {name.removeprefix("inner."): b for name, b in buffers.items()})

        grads, (logs, buffers) = torch.func.grad(objective, has_aux=True)(carried.params)
        whole1, whole2 = ((1 - beta ** (t + 1)).to(dtype) for beta in BETAS)
        mu = pytree.tree_map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, carried.mu, grads)
        nu = pytree.tree_map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g * g, carried.nu, grads)
        params = pytree.tree_map(
            lambda p, m, v: p * (1 - lr * WEIGHT_DECAY) - lr * (m / whole1) / ((v / whole2).sqrt() + EPS),
            carried.params,
            mu,
            nu,
        )
        new = Carried(params, buffers, mu, nu, carried.step + 1)
        if guard:
            sums = torch.stack([logs["loss"], *(p.sum() for p in pytree.tree_leaves(params))])
            logs["finite"] = torch.isfinite(sums).all()
            new = pytree.tree_map(lambda a, b: torch.where(logs["finite"], a, b), new, carried)
        return new, logs

    def donated(carried: Carried, batch: Batch) -> dict[str, Tensor]:
        new, logs = pure(carried, batch)
        for old, fresh in zip(pytree.tree_leaves(carried), pytree.tree_leaves(new), strict=True):
            old.copy_(fresh)
        return logs

    return donated if donate else pure
