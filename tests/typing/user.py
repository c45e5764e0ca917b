# pyright: strict
"""A user's file, checked by `make lint` and never run: nothing that a user gets has an unknown type.

An ignore that nothing needs is an error too, so the lines that carry one are mistakes that must be found.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import ttransfer as tt


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def task(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


teacher = tt.functional(nn.Linear(8, 3), mode="eval", inputs=("x",))
nets = {"student": tt.functional(classifier), "teacher": teacher}
rate: tt.Schedule = tt.schedules.warmup(tt.schedules.cosine(1e-3, 1000), 100)
ramp = tt.schedules.ramp(1000, high=0.5)
optimizer: tt.Optimizer = tt.optim.chain(tt.optim.clip_by_norm(1.0), tt.optim.adamw(rate, weight_decay=0.05))
project = tt.shared("project", tt.adapters.linear(4))
pooled: tt.Read = tt.read("student(source).2:in") | project | tt.reverse(ramp) | tt.detach
kd: tt.Term = tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=4.0, weight=0.5)

train: tt.Step = tt.step(
    nets,
    optimizer,
    {"task": tt.term(task, "student(source)", "source.y", coupled=False)},
    trainable={"student": "2.*"},
    buffers={"student": "per_domain"},
    joint=[("source", "target")],
    kd=kd,
    mmd=tt.term(tt.align.mmd, pooled, tt.read("student(target).2:in") | project, weight=ramp),
    dann=tt.terms.dann("student(source).2:in", "student(target).2:in", critic=tt.adapters.mlp(16), scale=ramp),
)
batch: tt.Batch = {
    "source": {"x": torch.zeros(4, 8), "y": torch.zeros(4, dtype=torch.int64)},
    "target": {"x": torch.zeros(4, 8)},
}
state: tt.State = train.init(batch, seed=0)
state, logs = train(state, batch)
loss: Tensor = logs["loss"]
state = tt.set_hyper(state, {"kd.temperature": 2.0})
weight: Tensor = state.trainable["student"]["2.weight"]

params, buffers = teacher.init(torch.Generator())
out: tt.Out = teacher.apply(params, buffers, torch.zeros(4, 8))
adapted: tt.Functional = tt.reparam(teacher, tt.adapters.lora("weight", rank=2))
moved: tt.Params = tt.weights.rename({"module.fc": "head"}).apply(params, {})
plan: tt.Plan = tt.weights.match().plan(params, params)
head, body = tt.tree.partition(params, "weight")
whole: dict[str, Tensor] = tt.tree.combine(head, body)
distance: Tensor = tt.align.coral(torch.zeros(4, 2), torch.zeros(5, 2))
update: Callable[[tt.State, tt.Batch], tuple[tt.State, tt.Logs]] = train.update


def guarded() -> str:
    try:
        return str(tt.read("student(source"))
    except tt.TransferError as error:
        return str(error)


print(tt.no_such_name)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
tt.losses.kd(torch.zeros(4, 3), torch.zeros(4, 3), 4.0)  # pyright: ignore[reportCallIssue]
tt.optim.sgd("fast")  # pyright: ignore[reportArgumentType]
tt.step(nets, optimizer)  # pyright: ignore[reportCallIssue]
