"""The contestants of the distributed benchmark: our sharded step, and DistributedDataParallel on the same training.

Two trainings of the networks in `_cases`. "means" is cross-entropy and distillation, means over rows, which is all that
DDP can do alike. "all" is the training of `_cases`, with MMD and a critic, which see the rows of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _cases import (
    BETAS,
    CASES,
    EPS,
    HORIZON,
    KD_WEIGHT,
    PEAK,
    TEMPERATURE,
    WEIGHT_DECAY,
    Batch,
    Case,
    batch_of,
    net,
    our_step,
)
from _programs import OPTIONS
from _twins import kd
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import ttransfer as tt

DDP, DDP_COMPILED = "DDP, eager", "DDP, compiled"
EAGER, COMPILED = "ours, eager", "ours, compiled"
BARE = "ours, compiled, no guard"  # against steps that are not finite, which DDP has not either
SPREAD = "ours, eager, ZeRO-1"


class Contestant(NamedTuple):
    """One training on one rank.

    Attributes:
        start: () -> state.
        step: state -> state, on this rank's rows of the same batch each time.
        advance: one step of a training that it keeps.
        weights: state -> the student's parameters.
        gradient: bytes of the gradient.
    """

    start: Callable[[], Any]
    step: Callable[[Any], Any]
    advance: Callable[[], None]
    weights: Callable[[Any], dict[str, Tensor]]
    gradient: int


def contestant(
    mesh: Any,
    name: str,
    *,
    case: str,
    training: str,
    rows: int = 0,
    batchnorm: str = "local",
    dtype: torch.dtype = torch.float32,
) -> Contestant:
    """Build one.

    Args:
        mesh: of the ranks.
        name: DDP, or ours.
        case: the network.
        training: "means" or "all".
        rows: of each domain on all ranks; 0 is the case's own.
        batchnorm: "local" is what DDP does.
        dtype: of everything.
    """
    problem = CASES[case]
    whole = batch_of(problem, 0, rows, dtype)
    if training == "means":
        whole = {"source": whole["source"]}
    size, rank = mesh.size(), mesh.get_rank()
    own = {
        domain: {field: x.chunk(size)[rank].clone() for field, x in fields.items()} for domain, fields in whole.items()
    }
    if name.startswith("DDP"):
        return _ddp(problem, own, dtype, compiled=name == DDP_COMPILED)
    step = means(problem, dtype, guard=name != BARE) if training == "means" else our_step(problem, dtype)
    if size > 1:
        step = tt.shard(step, mesh, batchnorm=batchnorm, optimizer="sharded" if name == SPREAD else "replicated")
    return _ours(tt.compile(step, donate=True) if name in (COMPILED, BARE) else step, own)


def means(case: Case, dtype: torch.dtype, guard: bool = True) -> tt.Step:
    """Cross-entropy and distillation."""
    return tt.step(
        {
            "student": tt.functional(lambda: net(case, 1, dtype)),
            "teacher": tt.functional(lambda: net(case, 2, dtype)),
        },
        tt.optim.adamw(tt.schedules.cosine(PEAK, HORIZON), weight_decay=WEIGHT_DECAY),
        trainable=("student",),
        guard=guard,
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=TEMPERATURE, weight=KD_WEIGHT),
    )


def _ours(step: tt.Step, batch: Batch) -> Contestant:
    held: list[Any] = []

    def advance() -> None:
        if not held:
            held.append(step.init(batch))
        held[0], _ = step(held[0], batch)

    trainable = step.init(batch).trainable
    leaves = [x for own in (trainable["student"], *trainable["terms"].values()) for x in own.values()]
    return Contestant(
        lambda: step.init(batch),
        lambda state: step(state, batch)[0],
        advance,
        lambda state: state.trainable["student"],
        sum(x.numel() * x.element_size() for x in leaves),
    )


def _cosine(i: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(i / HORIZON, 1)))


class _Loop:
    """The training that a user of DDP writes."""

    def __init__(self, case: Case, dtype: torch.dtype, compiled: bool) -> None:
        self.student = DistributedDataParallel(net(case, 1, dtype).train(), gradient_as_bucket_view=True)
        self.teacher = net(case, 2, dtype).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), PEAK, BETAS, EPS, WEIGHT_DECAY, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _cosine)
        self.loss = torch.compile(self._loss, options=dict(OPTIONS)) if compiled else self._loss

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            taught = self.teacher(x)
        logits = self.student(x)
        return F.cross_entropy(logits, y) + KD_WEIGHT * kd(logits, taught)

    def step(self, batch: Batch) -> _Loop:
        loss = self.loss(batch["source"]["x"], batch["source"]["y"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return self


def _ddp(case: Case, batch: Batch, dtype: torch.dtype, compiled: bool) -> Contestant:
    loop = _Loop(case, dtype, compiled)
    parameters: list[nn.Parameter] = list(loop.student.parameters())
    return Contestant(
        lambda: _Loop(case, dtype, compiled),
        lambda loop: loop.step(batch),
        lambda: loop.step(batch) and None,
        lambda loop: {n.removeprefix("module."): p.detach() for n, p in loop.student.named_parameters()},
        sum(p.numel() * p.element_size() for p in parameters),
    )


def values(one: Contestant, steps: int) -> dict[str, Tensor]:
    """The parameters after some steps."""
    state = one.start()
    for _ in range(steps):
        state = one.step(state)
    return one.weights(state)
