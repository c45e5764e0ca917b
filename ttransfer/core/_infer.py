"""Shapes without computing: what each term will read, found by running the nets on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ttransfer._errors import TransferError
from ttransfer.core._forward import Bound, Clock, bind, raw_readings, run_passes
from ttransfer.core._hyper import numbers, resolve
from ttransfer.core._pipes import init_pipes, loss_params, regroup
from ttransfer.core._spec import Expression, Plan
from ttransfer.core._term import name_of
from ttransfer.core._types import Batch, Fixed, Params, Schedule, Term, Tree
from ttransfer.core._update import numbers_of

__all__ = ["Fakes", "data_dependent", "infer", "init_term", "lifts"]

data_dependent = (DataDependentOutputException, DynamicOutputShapeException)
"""What fake tensors raise when a shape or a branch depends on values."""


class Fakes(NamedTuple):
    """The outcome of a run on fake tensors.

    Attributes:
        mode: under which the fake tensors live.
        readings: term -> its readings before pipes.
        random: names of the operations that draw from the global generator.
    """

    mode: FakeTensorMode
    readings: Mapping[str, list[Any]]
    random: tuple[str, ...]


class _RandomOps(TorchDispatchMode):
    """Notes operations that draw from a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.seen[str(func.overloadpacket)] = None
        return func(*args, **(kwargs or {}))


def infer(
    expression: Expression,
    plan: Plan,
    params: Mapping[str, Params],
    buffers: Mapping[str, Params],
    batch: Batch,
) -> Fakes:
    """Run all forwards on fake tensors, on skeletons that are thrown away afterwards.

    A net that keeps a tensor on itself during a forward would otherwise keep a fake one.
    """
    bound: Bound = bind(expression, plan)
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tree: Any) -> Any:
        return pytree.tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, tree)

    noted = _RandomOps()
    with mode:
        zero = torch.zeros((), dtype=torch.int64, device=device_of(params))
        clock = Clock(zero, zero, {})
        arguments = fake(params), fake(buffers), fake(batch)
        try:
            with noted:
                outs, after = run_passes(bound, plan.passes, *arguments, clock)
                readings = {
                    name: raw_readings(bound, term, outs, arguments[0], after, arguments[2], clock)
                    for name, term in expression.terms.items()
                }
        except TransferError:
            raise
        except data_dependent as error:
            raise TransferError(
                f"init: a net's shapes depend on values, which one compiled graph cannot hold: {error}"
            ) from error
        except Exception as error:
            shapes = {f"{d}.{f}": tuple(x.shape) for d, fields in batch.items() for f, x in fields.items()}
            raise TransferError(f"init: a net failed on the example batch {shapes}: {error}") from error
    return Fakes(mode, readings, tuple(noted.seen))


def device_of(params: Mapping[str, Params]) -> torch.device:
    """The device of the first parameter there is."""
    for flat in params.values():
        for parameter in flat.values():
            return parameter.device
    return torch.device("cpu")


def _as_fake(fakes: Fakes, tree: Tree, device: torch.device) -> Tree:
    def fake(x: Any) -> Any:
        return fakes.mode.from_tensor(x.to(device)) if isinstance(x, Tensor) else x

    return pytree.tree_map(fake, tree)


def init_term(
    name: str, term: Term, generator: torch.Generator, fakes: Fakes, device: torch.device
) -> tuple[Params, Tree, frozenset[str]]:
    """Initialise a term on the shapes of its readings.

    Returns:
        Its parameters (its pipes' among them), its state, and those of its numbers that stay static.
    """
    raw = fakes.readings[name]
    own = _fake_numbers(name, term, fakes, raw, device)
    pipe_params, piped = init_pipes(term, generator, own, raw, lambda p: _as_fake(fakes, p, device))
    metas = pytree.tree_map(_meta, regroup(term.reads, piped))
    loss_own, memory = term.init(generator, metas)
    params = {**pipe_params, **loss_own}
    if any(key.startswith("reads.") for key in loss_own):
        raise TransferError(f"term {name!r}: parameter names that begin with 'reads.' belong to its pipes")
    arguments = regroup(term.reads, piped)
    faked = _as_fake(fakes, (loss_params(params), memory), device)
    static = frozenset(
        key for key in sorted(term.tried) if not lifts(term, key, fakes, faked, own, arguments)
    )
    for key in static:
        if isinstance(term.hyper[key], Schedule):
            raise TransferError(
                f"term {name!r}: {key} is a schedule, but {name_of(term.fn)} cannot take a tensor for it, so it can "
                "only be a fixed number"
            )
    _try(name, term, fakes, faked, {k: v for k, v in own.items() if k not in static}, arguments)
    return params, memory, static


def _meta(x: Any) -> Any:
    return torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x


def _fake_numbers(
    name: str, term: Term, fakes: Fakes, raw: list[Any], device: torch.device
) -> dict[str, Tensor]:
    """A term's numbers as fake tensors of the dtype they are used with."""
    full = {f"{name}.{key}": value for key, value in term.hyper.items() if not isinstance(value, Fixed)}
    with fakes.mode:
        entries = {
            entry: torch.tensor(number, dtype=torch.float64, device=device)
            for key, value in full.items()
            for entry, number in numbers(key, value).items()
        }
        resolved = resolve(full, entries, torch.zeros((), dtype=torch.int64, device=device))
        return numbers_of(name, resolved, raw)


def lifts(
    term: Term, key: str, fakes: Fakes, faked: tuple[Params, Tree], own: Mapping[str, Tensor], arguments: list[Any]
) -> bool:
    """Try whether a callable takes a tensor for one of its numbers, and passes a gradient to it.

    ``float(h)`` and ``if h > 0`` would give a silent zero gradient eagerly; under vmap they raise.
    """
    others = {k: v for k, v in own.items() if k not in term.tried}

    def value(number: Tensor) -> Tensor:
        step = torch.zeros((), dtype=torch.int64, device=number.device)
        return term.apply(*faked, {**others, key: number}, step, arguments)[0]

    with fakes.mode:
        try:
            torch.func.vmap(torch.func.grad(value), randomness="different")(torch.empty_like(own[key])[None])
        except Exception:  # whatever it raises, the answer is no, and describe() says so
            return False
    return True


def _try(
    name: str, term: Term, fakes: Fakes, faked: tuple[Params, Tree], own: Mapping[str, Tensor], arguments: list[Any]
) -> None:
    """Call the loss once on fake readings, so that a wrong shape fails now and not in the first step."""
    from ttransfer.core._update import _apply

    with fakes.mode:
        step = next(iter(own.values())).new_zeros((), dtype=torch.int64) if own else torch.zeros((), dtype=torch.int64)
        try:
            _apply(name, term, *faked, own, step, arguments)
        except TransferError as error:
            if not isinstance(error.__cause__, data_dependent):
                raise
