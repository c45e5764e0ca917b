"""The step that tests start from, and how they ask for an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch.nn import functional as F

import ttransfer as tt
from tests.support.nets import mlp

TASK = tt.term(F.cross_entropy, "student(source)", "source.y")


def small_step(
    terms: Mapping[str, tt.Term] | None = None,
    nets: Mapping[str, tt.Functional] | None = None,
    optimizer: tt.Optimizer | None = None,
    **options: Any,
) -> tt.Step:
    """A student that is trained and a teacher that is not; whatever is given replaces the default."""
    own = nets or {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
    options = {"trainable": ("student",), **options}
    return tt.step(own, optimizer or tt.optim.sgd(0.1), terms or {"task": TASK}, **options)


def run(step: tt.Step, state: tt.State, *batches: Any) -> tuple[tt.State, dict[str, Any]]:
    """Take one step for each batch."""
    logs: dict[str, Any] = {}
    for batch in batches:
        state, logs = step(state, batch)
    return state, logs


def refused(what: Callable[[], Any], *parts: str) -> None:
    """Expect one TransferError that names all of these."""
    with pytest.raises(tt.TransferError) as found:
        what()
    for part in parts:
        assert part in str(found.value), f"{part!r} is not in: {found.value}"
