"""The losses of an expression on what they read, each times its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core import _tree as tree
from ttransfer.core._hyper import at_use
from ttransfer.core._pipes import loss_params, regroup
from ttransfer.core._spec import Expression
from ttransfer.core._term import name_of
from ttransfer.core._types import Params, Term, Tree

__all__ = ["Scored", "apply_term", "numbers_of", "score", "total_of", "weigh"]


class Scored(NamedTuple):
    """What the losses of one (micro-)batch gave."""

    total: Tensor
    values: dict[str, Tensor]
    memory: dict[str, Tree]


def weigh(term: Term, name: str, numbers: Mapping[str, Tensor], value: Tensor) -> Tensor:
    """Multiply a term's value by its weight."""
    weight = numbers.get(f"{name}.weight")
    if weight is None:
        return term.hyper["weight"].value * value
    return weight.to(value.dtype) * value


def numbers_of(name: str, numbers: Mapping[str, Tensor], readings: list[Any]) -> dict[str, Tensor]:
    """A term's own numbers, cast to the dtype of its first floating reading, float32 at least."""
    own = {key[len(name) + 1 :]: value for key, value in numbers.items() if key.startswith(f"{name}.")}
    floating = [x for x in tree.leaves(readings) if isinstance(x, Tensor) and x.is_floating_point()]
    return at_use(own, floating[0].dtype if floating else torch.float32)


def score(
    expression: Expression,
    owned: Mapping[str, Params],
    memory: Mapping[str, Tree],
    numbers: Mapping[str, Tensor],
    step: Tensor,
    readings: Mapping[str, list[Any]],
    shares: Mapping[str, Tensor],
) -> Scored:
    """Evaluate the losses on readings that have been through their pipes.

    Terms know nothing of where the readings come from: a slice of a batch, or rows gathered from ranks.
    """
    values: dict[str, Tensor] = {}
    kept: dict[str, Tree] = {}
    parts: list[Tensor] = []
    for name, term in expression.terms.items():
        arguments = regroup(term.reads, readings[name])
        own = numbers_of(name, numbers, readings[name])
        before = memory.get(name, {})
        value, new = apply_term(name, term, loss_params(owned.get(name, {})), before, own, step, arguments)
        # In the order of what was there: a state keeps its structure, whatever order the loss returns.
        kept[name] = tree.map(lambda _, x: x.detach(), before, new)
        values[name] = value if name not in shares else _part_of(value, shares[name])
        parts.append(weigh(term, name, numbers, values[name]))
    return Scored(total_of(parts), values, kept)


def _part_of(value: Tensor, share: Tensor) -> Tensor:
    """A micro-batch's part of a mean; one that holds none of it counts nothing, though its own mean is 0 / 0."""
    share = share.to(value)
    return torch.where(share == 0, 0, value * share)


def apply_term(
    name: str,
    term: Term,
    own: Params,
    memory: Tree,
    numbers: Mapping[str, Tensor],
    step: Tensor,
    arguments: list[Any],
) -> tuple[Tensor, Tree]:
    """Evaluate one loss; what it raises is said to be of this term, with what it read."""
    if torch.compiler.is_compiling():  # an exception handler is no part of a graph
        return term.apply(own, memory, numbers, step, arguments)
    try:
        out = cast(Any, term.apply(own, memory, numbers, step, arguments))
    except Exception as error:
        raise TransferError(f"{_called(name, term, arguments)}: {error}") from error
    if not isinstance(out, tuple) or len(out) != 2:
        raise TransferError(
            f"{_called(name, term, arguments)}: a loss with state must return (loss, state), got {shown(out)}"
        )
    value, new = out
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        raise TransferError(f"{_called(name, term, arguments)}: a loss must return a scalar, got {shown(value)}")
    return value, new


def _called(name: str, term: Term, arguments: list[Any]) -> str:
    got = ", ".join(f"{_path(read)}: {shown(value)}" for read, value in zip(term.reads, arguments, strict=True))
    return f"term {name!r}, {name_of(term.fn)}({got})"


def _path(read: Any) -> str:
    return str(read) if hasattr(read, "path") else "[" + ", ".join(_path(r) for r in read) + "]"


def total_of(parts: list[Tensor]) -> Tensor:
    """The sum of at least one scalar."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
