"""Terms of every kind, and a step with all that a step may have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp
from tests.support.steps import small_step


def anonymous(student: Tensor, teacher: Tensor) -> Tensor:
    """A loss that says nothing of itself, and looks at pairs of rows."""
    return (torch.cdist(student, student) - torch.cdist(teacher, teacher)).square().mean()


def own_weights(student: Tensor, *, params: Any) -> Tensor:
    return (student @ params["w"]).square().mean()


def bank(student: Tensor, *, state: Any) -> tuple[Tensor, Any]:
    """Pull to a running mean of all rows seen."""
    mean = 0.9 * state["mean"] + 0.1 * student.detach().mean(0)
    return (student - mean).square().mean(), {"mean": mean}


def smooth(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Look at the net at another place than its input, dropout included."""
    return (net(x + 0.1) - net(x)).square().mean()


def decay(student: Any, teacher: Any) -> Tensor:
    return sum(((student[k] - teacher[k]).square().sum() for k in student), torch.zeros((), dtype=torch.float64))


SOURCE, TARGET = "student(source).fc:in", "student(target).fc:in"
TERMS: dict[str, Callable[[], tt.Term]] = {
    "cross-entropy": lambda: tt.term(F.cross_entropy, "student(source)", "source.y"),
    "cross-entropy, some ignored": lambda: tt.term(F.cross_entropy, "student(source)", "source.y", ignore_index=1),
    "cross-entropy, classes weighted": lambda: tt.term(weighted, "student(source)", "source.y"),
    "cross-entropy of a sum": lambda: tt.term(F.cross_entropy, "student(source)", "source.y", reduction="sum"),
    "kd": lambda: tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=2.0),
    "entropy": lambda: tt.term(tt.losses.entropy, "student(target)"),
    "mmd": lambda: tt.term(tt.align.mmd, SOURCE, TARGET),
    "mmd_unbiased": lambda: tt.term(tt.align.mmd_unbiased, SOURCE, TARGET),
    "mmd_linear": lambda: tt.term(tt.align.mmd_linear, SOURCE, TARGET),
    "coral": lambda: tt.term(tt.align.coral, SOURCE, TARGET),
    "dann": lambda: tt.terms.dann(SOURCE, TARGET, critic=tt.adapters.mlp(4), scale=0.5),
    "undeclared": lambda: tt.term(anonymous, "student(source)", "teacher(source)"),
    "parameters alone": lambda: tt.term(decay, "student:params", "teacher:params"),
    "parameters of its own, coupled": lambda: tt.term(own_weights, SOURCE, params=weights),
    "parameters of its own, a mean": lambda: tt.term(own_weights, SOURCE, params=weights, coupled=False),
    "a state": lambda: tt.term(bank, SOURCE, state=zeros, coupled=False),
    "the net as a function, coupled": lambda: tt.term(smooth, "student:fn", "source.x"),
    "the net as a function, a mean": lambda: tt.term(smooth, "student:fn", "target.x", coupled=False),
    "an adapter": lambda: tt.term(tt.align.mmd, tt.read(SOURCE) | tt.adapters.linear(2), TARGET_TWO),
    "a stage that mixes rows": lambda: tt.term(
        F.mse_loss, tt.read(SOURCE) | tt.adapters.linear(3) | centred, tt.read("teacher(source)") | centred
    ),
    "a mean of two domains": lambda: tt.term(apart, SOURCE, TARGET, coupled=False),
    "two passes": lambda: tt.term(F.mse_loss, "student(source)", "student(source)#2"),
    "a list of reads": lambda: tt.term(listed, ["student(source)", "student(source).hidden"], "teacher(source)"),
}
TARGET_TWO = tt.read(TARGET) | tt.adapters.linear(2)


weighted = functools.partial(F.cross_entropy, weight=torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))


def weights(generator: torch.Generator, student: Tensor) -> Any:
    return {"w": torch.randn(student.shape[1], 2, generator=generator, dtype=torch.float64)}


def zeros(generator: torch.Generator, student: Tensor) -> Any:
    return {"mean": torch.zeros(student.shape[1], dtype=torch.float64)}


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def apart(source: Tensor, target: Tensor) -> Tensor:
    return source.square().mean() - target.square().mean()


def listed(students: list[Tensor], teacher: Tensor) -> Tensor:
    return (students[0] - teacher).square().mean() + students[1].square().mean()


def nets(make: Any = mlp, p: float = 0.3) -> dict[str, tt.Functional]:
    return {"student": tt.functional(make(1, p=p)), "teacher": tt.functional(make(2))}


def everything(nets: Any, **options: Any) -> tt.Step:
    ramp = tt.schedules.ramp(10)
    terms = {
        "task": tt.term(F.cross_entropy, "student(source)", "source.y"),
        "kd": tt.term(tt.losses.kd, "student(source)", "teacher(source)", weight=0.5),
        "mmd": tt.term(tt.align.mmd, SOURCE, TARGET, weight=ramp),
        "dann": tt.terms.dann(SOURCE, TARGET, critic=tt.adapters.mlp(8), scale=ramp, weight=0.1),
    }
    return small_step(
        {**terms, **options.pop("terms", {})}, nets, tt.optim.adamw(tt.schedules.cosine(1e-2, 10)), **options
    )
