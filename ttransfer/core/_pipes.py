"""Running the pipes of a term's reads, and initialising their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ttransfer._errors import TransferError
from ttransfer.core._reads import Pipe, Read, flat
from ttransfer.core._types import Params, Term

__all__ = ["init_pipes", "loss_params", "regroup", "run_pipes", "run_stages", "upcast"]


def upcast(value: Any) -> Any:
    """Bring floating tensors below float32 up to it: losses are computed in float32 at least."""

    def lift(x: Any) -> Any:
        low = isinstance(x, Tensor) and x.is_floating_point() and x.element_size() < 4
        return x.float() if low else x

    return pytree.tree_map(lift, value)


def _prefix(position: int, stage: int, pipe: Pipe) -> str:
    """Where a stage's parameters live among the term's: "reads." keeps them apart from the loss's own."""
    return f"reads.{pipe.name}." if pipe.name is not None else f"reads.{position}.{stage}."


def _own(params: Mapping[str, Tensor], prefix: str) -> Params:
    return {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}


def loss_params(params: Mapping[str, Tensor]) -> Params:
    """A term's parameters without those of its pipes."""
    return {name: value for name, value in params.items() if not name.startswith("reads.")}


def run_pipes(term: Term, params: Mapping[str, Tensor], hyper: Mapping[str, Tensor], raw: list[Any]) -> list[Any]:
    """Send each reading, in the order of the term's reads, through its pipes."""
    return [
        run_stages(read, position, params, hyper, value)
        for position, (read, value) in enumerate(zip(flat(term.reads), raw, strict=True))
    ]


def run_stages(
    read: Read,
    position: int,
    params: Mapping[str, Tensor],
    hyper: Mapping[str, Tensor],
    value: Any,
    stages: range | None = None,
) -> Any:
    """Send the value of the term's read at this position through its pipes, or through some of their stages."""
    for stage in range(len(read.pipes)) if stages is None else stages:
        pipe = read.pipes[stage]
        value = pipe.apply(_own(params, _prefix(position, stage, pipe)), hyper, value)
    return value


def init_pipes(
    term: Term,
    generator: torch.Generator,
    hyper: Mapping[str, Tensor],
    raw: list[Any],
    as_fake: Callable[[Params], Params],
) -> tuple[Params, list[Any]]:
    """Initialise the pipes' parameters on the readings' shapes.

    Args:
        term: whose reads have the pipes.
        generator: for the parameters.
        hyper: the term's numbers as fake tensors.
        raw: fake readings, in the order of the term's reads.
        as_fake: turns parameters into fake tensors, so that the next stage's shape is known.

    Returns:
        The parameters, and the fake readings after the pipes.

    Raises:
        TransferError: for a reading that is no tensor, or that a stage cannot take.
    """
    params: Params = {}
    piped: list[Any] = []
    for position, (read, value) in enumerate(zip(flat(term.reads), raw, strict=True)):
        for stage, pipe in enumerate(read.pipes):
            prefix = _prefix(position, stage, pipe)
            meta = like(value, read)
            if not _own(params, prefix):
                made = pipe.init(generator, meta)
                params.update({prefix + name: p for name, p in made.items()})
            value = _try(read, pipe, as_fake(_own(params, prefix)), hyper, value)
        piped.append(value)
    return params, piped


def _try(read: Read, pipe: Pipe, own: Params, hyper: Mapping[str, Tensor], value: Tensor) -> Any:
    """Run one stage on a fake reading, so that a wrong shape is named now and not in the first step."""
    try:
        return pipe.apply(own, hyper, value)
    except Exception as error:
        raise TransferError(
            f"'{read.path}' {tuple(value.shape)} cannot go through {pipe.name or 'its adapter'}: {error}"
        ) from error


def like(value: Any, read: Read) -> Tensor:
    """Return a meta tensor of a reading's shape and dtype."""
    if not isinstance(value, Tensor):
        raise TransferError(
            f"'{read}': a pipe takes a tensor, got {type(value).__name__}; pick one of it, as in 'net(domain)[0]'"
        )
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def regroup(reads: tuple[Any, ...], values: list[Any]) -> list[Any]:
    """Put values, in the order of `flat`, into the lists that the loss expects."""
    queue = iter(values)

    def fill(items: tuple[Any, ...]) -> list[Any]:
        return [next(queue) if isinstance(item, Read) else fill(item) for item in items]

    return fill(reads)
