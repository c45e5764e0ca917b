"""Reads: a path and the pipes that its value runs through.

``tt.read("student(source).layer3") | adapter | tt.reverse(scale) | tt.detach``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.core._hyper import is_number
from ttransfer.core._maps import Adapter
from ttransfer.core._paths import Path, parse_path
from ttransfer.core._types import Fixed, Params

__all__ = ["Pipe", "Read", "as_reads", "detach", "flat", "read", "reverse", "shared"]


class Pipe(NamedTuple):
    """One stage of a read.

    Attributes:
        init: (generator, like) -> Params.
        apply: (params, hyper, value) -> value.
        hyper: name -> number or schedule, becoming "<term>.<name>" in `State.hyper`.
        name: the prefix of its parameters; stages of one term with the same name share them.

    Example:
        >>> import ttransfer as tt
        >>> tt.reverse(0.5).hyper
        {'scale': 0.5}
    """

    init: Callable[[torch.Generator, Tensor], Params]
    apply: Callable[[Params, Mapping[str, Tensor], Any], Any]
    hyper: Mapping[str, Any]
    name: str | None = None


class Read(NamedTuple):
    """Where a term's argument comes from, and what it runs through first: `tt.read`.

    Attributes:
        path: the parsed path.
        pipes: the stages, in order.

    Example:
        >>> import ttransfer as tt
        >>> len((tt.read("net(a)") | tt.detach | tt.reverse(0.5)).pipes)
        2
    """

    path: Path
    pipes: tuple[Pipe, ...] = ()

    def __or__(self, stage: Pipe | Adapter | Callable[..., Any]) -> Read:
        """Append a stage: an Adapter, `tt.reverse`, `tt.detach` or any tensor -> tensor function."""
        return Read(self.path, (*self.pipes, _as_pipe(stage)))

    def __str__(self) -> str:
        return str(self.path) + "".join(f" | {pipe.name or 'adapter'}" for pipe in self.pipes)


def read(path: str) -> Read:
    """Parse a path so that pipes can be appended; a plain string in a term means the same.

    Args:
        path: see the grammar in the documentation, for example "student(source).fc:in".

    Raises:
        TransferError: if the text is no path.

    Example:
        >>> import ttransfer as tt
        >>> print(tt.read("student(source).fc:in") | tt.detach)
        student(source).fc:in | detach
    """
    return Read(parse_path(path))


def _nothing(generator: torch.Generator, like: Tensor) -> Params:
    return {}


def _as_pipe(stage: Any) -> Pipe:
    if isinstance(stage, Pipe):
        return stage
    if isinstance(stage, Adapter):
        return Pipe(stage.init, lambda params, hyper, value: stage.apply(params, value), {})
    # A tuple that can be called is another of our types, such as a Schedule.
    if isinstance(stage, (type, tuple)) or not callable(stage):
        raise TransferError(
            f"cannot pipe a reading through {stage!r}: expected an Adapter, tt.reverse(...), tt.detach "
            "or a tensor -> tensor function"
        )
    if isinstance(stage, nn.Module) and [*stage.parameters(), *stage.buffers()]:
        raise TransferError(
            f"cannot pipe a reading through {type(stage).__name__}: its parameters and buffers would be in no State; "
            "use an Adapter, or make it part of a net"
        )
    fn = cast(Callable[[Any], Any], stage)
    return Pipe(_nothing, lambda params, hyper, value: fn(value), {}, getattr(fn, "__name__", "function"))


def shared(name: str, adapter: Adapter) -> Pipe:
    """Let several reads of one term run through the same adapter parameters.

    Args:
        name: stages of the term with this name share parameters.
        adapter: initialised on the first of the readings.

    Raises:
        TransferError: if the name is no identifier.

    Example:
        >>> import ttransfer as tt
        >>> project = tt.shared("project", tt.adapters.linear(16))
        >>> term = tt.term(tt.align.mmd, tt.read("net(a).fc:in") | project, tt.read("net(b).fc:in") | project)
        >>> [str(r) for r in term.reads]
        ['net(a).fc:in | project', 'net(b).fc:in | project']
    """
    if not name.isidentifier() or not isinstance(cast(Any, adapter), Adapter):
        raise TransferError(f"shared: expected a name and an Adapter, got {name!r} and {type(adapter).__name__}")
    return Pipe(adapter.init, lambda params, hyper, value: adapter.apply(params, value), {}, name)


def reverse(scale: Any = 1.0) -> Pipe:
    """Reverse the gradient of a reading: `tt.align.gradient_reversal` as a stage of a read.

    Args:
        scale: a number or a schedule; it becomes the hyper-parameter "<term>.scale".

    Example:
        >>> import ttransfer as tt
        >>> print(tt.read("student(source).fc:in") | tt.reverse(tt.schedules.ramp(1000)))
        student(source).fc:in | reverse
    """
    constant = scale.value if isinstance(scale, Fixed) else scale
    if not is_number(constant):
        raise TransferError(f"reverse: scale must be a number or a schedule, got {type(constant).__name__}")

    def apply(params: Params, hyper: Mapping[str, Tensor], value: Tensor) -> Tensor:
        by = hyper.get("scale", constant)
        return value.detach() - by * (value - value.detach())

    return Pipe(_nothing, apply, {"scale": scale}, "reverse")


def detach(value: Tensor) -> Tensor:
    """Stop the gradient of a reading; a stage of a read.

    Args:
        value: a tensor of any shape.

    Example:
        >>> import torch, ttransfer as tt
        >>> torch.func.grad(lambda x: tt.detach(x).sum())(torch.ones(2))
        tensor([0., 0.])
    """
    return value.detach()


def as_reads(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn a term's arguments into Reads; a list or tuple becomes a tuple of Reads."""
    found: list[Any] = []
    for argument in given:
        if isinstance(argument, str):
            found.append(read(argument))
        elif isinstance(argument, Read):
            found.append(argument)
        elif isinstance(argument, (list, tuple)) and argument:
            found.append(as_reads(tuple(cast(list[Any], argument))))
        else:
            raise TransferError(
                f"a term reads from paths, got {type(argument).__name__} {argument!r}; write a string such as "
                "'student(source)', or tt.read(...) with pipes; tensors belong to the batch"
            )
    return tuple(found)


def flat(reads: tuple[Any, ...]) -> list[Read]:
    """All reads of a term in order, those inside lists too."""
    return [read for item in reads for read in ([item] if isinstance(item, Read) else flat(item))]
