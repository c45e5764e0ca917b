"""What several laws need: comparison, and who claims what."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttransfer.testing._law import Broken
from ttransfer.testing._subject import Inputs, Subject, drawn, for_all, show

__all__ = ["differs", "far", "finite", "logit_positions", "move_rows", "tag", "tensors", "whenever"]


def far(a: float, b: float, *, relative: float = 1e-9) -> bool:
    """Whether two numbers differ by more than rounding. Where neither is finite another law tells."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.isfinite(a) or math.isfinite(b)
    return abs(a - b) > relative * (1 + max(abs(a), abs(b)))


def finite(x: Tensor) -> bool:
    """Whether all of a tensor is finite."""
    return bool(x.isfinite().all())


def tensors(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Change every real tensor among the inputs."""
    return tuple(change(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def whenever(
    subject: Subject,
    test: Callable[[Inputs], None],
    *families: str,
    rows: tuple[int, int] | None = None,
    least: int = 1,
) -> None:
    """Run a test for inputs of these families, in float64."""
    for family in families or ("moderate", "generic"):
        examples = max(4, subject.examples // max(1, len(families or (1, 1))))
        for_all(drawn(subject, family, rows=rows, least=least).map(_double), test, examples=examples)


def _double(inputs: Inputs) -> Inputs:
    return tensors(inputs, torch.Tensor.double)


def tag(name: str, needs: Callable[[Subject], bool]) -> Callable[[Subject], bool | None]:
    """Claim a law by a tag, where the arguments are such that it says something."""

    def claim(subject: Subject) -> bool | None:
        value: bool | None = getattr(subject.tags, name)
        return value if needs(subject) else False

    return claim


def logit_positions(subject: Subject) -> list[int]:
    """The positions of logits; where there are none, of everything that may get a gradient."""
    found = [i for i, a in enumerate(subject.arguments) if a.kind == "logits"]
    return found or [i for i in subject.floats() if subject.wants(i)]


def move_rows(subject: Subject, inputs: Inputs, orders: dict[str, Tensor]) -> Inputs:
    """Index the rows of every argument that has any by its domain's order."""
    return tuple(a.take(x, orders[a.rows]) if a.has_rows else x for a, x in zip(subject.arguments, inputs, strict=True))


def differs(subject: Subject, inputs: Inputs, what: str, a: float, b: float, **more: Any) -> Broken:
    """What a law raises when two numbers should have been one."""
    return Broken(f"{what}: {a:.12g} and {b:.12g}\n{show(subject, inputs, **more)}")
