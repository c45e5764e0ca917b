"""Shapes without computing: what each term will read, found by running the nets on fake tensors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

from ttransfer._errors import TransferError, shown
from ttransfer.core import _tree as tree
from ttransfer.core._forward import Bound, Clock, bind, raw_readings, run_passes
from ttransfer.core._hyper import numbers, resolve
from ttransfer.core._pipes import init_pipes, loss_params, regroup, run_pipes
from ttransfer.core._score import apply_term, numbers_of
from ttransfer.core._spec import Expression, Plan
from ttransfer.core._term import name_of
from ttransfer.core._types import Batch, Fixed, Params, Schedule, Term, Tree

__all__ = ["Fakes", "as_fake", "data_dependent", "infer", "init_term", "lifts", "piped_readings"]

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
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs or {}):
            self.seen[str(func.overloadpacket)] = None
        return func(*args, **(kwargs or {}))


def _draws(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Fused attention counts as random, and draws only if its dropout is on."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            p = args[position] if position < len(args) else kwargs.get("dropout_p", argument.default_value)
            return p != 0.0
    return True


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
    # Random operations move the generator, fake or not. Gradients tell which terms reach what trains.
    with mode, _quiet(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        zero = torch.zeros((), dtype=torch.int64, device=device_of(params))
        clock = Clock(zero, zero, {})
        arguments = fake(params), fake(buffers), fake(batch)
        for net, names in plan.learned.items():
            for name in names:
                arguments[0][net][name].requires_grad_()
        try:
            with noted:
                outs, after = run_passes(bound, plan.passes, *arguments, clock)
                readings = {
                    name: raw_readings(bound, term, outs, arguments[0], after, arguments[2], clock)
                    for name, term in expression.terms.items()
                }
        except TransferError as error:
            if not isinstance(error.__cause__, data_dependent):
                raise
            raise TransferError(
                f"init: {error}; shapes and branches that depend on values cannot be held in one compiled graph"
            ) from error.__cause__
    return Fakes(mode, readings, tuple(noted.seen))


def device_of(params: Mapping[str, Params]) -> torch.device:
    """The device of the first parameter there is."""
    for flat in params.values():
        for parameter in flat.values():
            return parameter.device
    return torch.device("cpu")


def as_fake(fakes: Fakes, tree: Tree, device: torch.device) -> Tree:
    """A tree of tensors as fake ones on a device."""

    def fake(x: Any) -> Any:
        return fakes.mode.from_tensor(x.to(device)) if isinstance(x, Tensor) else x

    return pytree.tree_map(fake, tree)


class Made(NamedTuple):
    """A term's start.

    Attributes:
        params: its parameters, its pipes' among them.
        memory: its state.
        static: those of its numbers that stay Python numbers.
        random: names of the operations in its pipes and its loss that draw from the global generator.
    """

    params: Params
    memory: Tree
    static: frozenset[str]
    random: tuple[str, ...]


def init_term(name: str, term: Term, generator: torch.Generator, fakes: Fakes, device: torch.device) -> Made:
    """Initialise a term on the shapes of its readings."""
    raw = pytree.tree_map(_detached, fakes.readings[name])
    own = _fake_numbers(name, term, fakes, raw, device)
    pipe_params, piped = init_pipes(term, generator, own, raw, lambda p: as_fake(fakes, p, device))
    metas = pytree.tree_map(_meta, regroup(term.reads, piped))
    loss_own, memory = term.init(generator, metas)
    params = {**pipe_params, **loss_own}
    if any(key.startswith("reads.") for key in loss_own):
        raise TransferError(f"term {name!r}: parameter names that begin with 'reads.' belong to its pipes")
    arguments = regroup(term.reads, piped)
    faked = as_fake(fakes, (loss_params(params), memory), device)
    static = frozenset(key for key in sorted(term.tried) if not lifts(term, key, fakes, faked, own, arguments))
    for key in static:
        if isinstance(term.hyper[key], Schedule):
            raise TransferError(
                f"term {name!r}: {key} is a schedule, but {name_of(term.fn)} cannot take a tensor for it, so it can "
                "only be a fixed number"
            )
    lifted = {k: v for k, v in own.items() if k not in static}
    with _RandomOps() as noted, torch.enable_grad():
        trained = pytree.tree_map(_trained, params)
        again = regroup(term.reads, piped_readings(name, term, fakes, trained))
        reached = _try(name, term, fakes, (loss_params(as_fake(fakes, trained, device)), faked[1]), lifted, again)
    weight = term.hyper["weight"]
    if not reached and (weight.value if isinstance(weight, Fixed) else weight) != 0:
        warnings.warn(
            f"term {name!r}: its gradient reaches no parameter that trains, so nothing learns from it: "
            f"{name_of(term.fn)}({', '.join(map(str, term.reads))}). Are its arguments in the right order, and do they "
            "come from a trained part? A weight of 0 says that it is meant for the logs alone",
            UserWarning,
            stacklevel=2,
        )
    return Made(params, memory, static, tuple(noted.seen))


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _trained(x: Tensor) -> Tensor:
    return x.detach().requires_grad_() if x.is_floating_point() else x


def _meta(x: Any) -> Any:
    return torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x


def _fake_numbers(name: str, term: Term, fakes: Fakes, raw: list[Any], device: torch.device) -> dict[str, Tensor]:
    """A term's numbers as fake tensors of the dtype they are used with."""
    full = {f"{name}.{key}": value for key, value in term.hyper.items() if not isinstance(value, Fixed)}
    # Read outside the mode: a number may be given as a tensor.
    given = {entry: number for key, value in full.items() for entry, number in numbers(key, value).items()}
    with fakes.mode:
        entries = {entry: torch.tensor(x, dtype=torch.float64, device=device) for entry, x in given.items()}
        resolved = resolve(full, entries, torch.zeros((), dtype=torch.int64, device=device))
        return numbers_of(name, resolved, raw)


def piped_readings(name: str, term: Term, fakes: Fakes, own: Params) -> list[Any]:
    """What a term's loss would read, as fake tensors, with these parameters in its pipes."""
    device = device_of({name: own})
    numbers_ = _fake_numbers(name, term, fakes, fakes.readings[name], device)
    with fakes.mode:
        return run_pipes(term, as_fake(fakes, own, device), numbers_, fakes.readings[name])


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

    with fakes.mode, _quiet():
        try:
            torch.func.vmap(torch.func.grad(value), randomness="different")(torch.empty_like(own[key])[None])
        except data_dependent:  # what fake tensors cannot follow, such as one_hot, zeros may
            pass
        except Exception:  # whatever it raises, the answer is no, and describe() says so
            return False
        else:
            return True
    faked, others, arguments = pytree.tree_map(_zeros, (faked, others, arguments))
    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            torch.func.vmap(torch.func.grad(value), randomness="different")(_zeros(own[key])[None] + 1)
        except Exception:  # as above
            return False
    return True


def _zeros(x: Any) -> Any:
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device) if isinstance(x, Tensor) else x


def _try(
    name: str, term: Term, fakes: Fakes, faked: tuple[Params, Tree], own: Mapping[str, Tensor], arguments: list[Any]
) -> bool:
    """Call the loss once on fake readings, so that a wrong shape fails now and not in the first step.

    Returns:
        Whether a gradient flows from it to anything that trains; True where it cannot be told.
    """
    with fakes.mode, _quiet():
        step = next(iter(own.values())).new_zeros((), dtype=torch.int64) if own else torch.zeros((), dtype=torch.int64)
        try:
            value, memory = apply_term(name, term, *faked, own, step, arguments)
        except TransferError as error:
            if not isinstance(error.__cause__, data_dependent):
                raise
            return True
    before, after = (_shapes(x) for x in (faked[1], memory))
    if before != after:
        raise TransferError(
            f"term {name!r}: {name_of(term.fn)} must return its state as it got it, {before}, and returns {after}"
        )
    return value.requires_grad


def _shapes(tree_: Tree) -> dict[str, str]:
    """Path -> shape and dtype, by which two trees are of one structure."""
    return {path: shown(x) for path, x in sorted(tree.paths(tree_).items())}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging and warning about what fails on fake tensors: what is raised says it all."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before
