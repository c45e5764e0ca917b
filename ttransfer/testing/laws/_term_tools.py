"""A term with what it reads: in a step of its own, and as a loss of its readings."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer._claims import Claims, claims_of
from ttransfer._errors import TransferError, shown
from ttransfer.core._hyper import resolve
from ttransfer.core._paths import Field, Forward, NetFn, NetParams
from ttransfer.core._pipes import loss_params, regroup, run_pipes, upcast
from ttransfer.core._reads import Read, flat
from ttransfer.core._score import numbers_of
from ttransfer.core._step import Step, step
from ttransfer.core._term import term as make_term
from ttransfer.core._types import Functional, Layout, Out, Params, State, Term, Tree
from ttransfer.optim._sgd import sgd
from ttransfer.testing._subject import Subject
from ttransfer.testing.laws._step_tools import Batch, StepSubject, doubled

__all__ = ["TERM", "TermSubject", "as_loss", "first_state", "flattened", "in_a_step", "moved", "value"]

TERM = "term"
AT = 10  # where schedules are looked at: many begin at 0
NOISE = 0.05


class TermSubject(NamedTuple):
    """What the laws of terms are given.

    Attributes:
        name: of the term.
        term: the term.
        loss: the term as a loss of its readings, for the laws of losses.
        step: a step made of the term, for the laws of steps.
        state: a state of that step in float64, some steps on, in which no parameter of the term is 0.
        given: the example's readings; what is no tensor stays.
    """

    name: str
    term: Term
    loss: Subject
    step: StepSubject
    state: State
    given: tuple[Any, ...]

    @property
    def own(self) -> Params:
        """The term's parameters, its pipes' among them."""
        return self.state.trainable["terms"][TERM]

    @property
    def memory(self) -> Tree:
        """The term's state."""
        return self.state.terms[TERM]

    @property
    def all_numbers(self) -> dict[str, Tensor]:
        """The term's numbers under their full names, float64; those that are lifted."""
        return self.numbers_of(self.state)

    @property
    def numbers(self) -> dict[str, Tensor]:
        """The same without the weight, which a term does not see."""
        return {name: x for name, x in self.all_numbers.items() if name != f"{TERM}.weight"}

    def numbers_of(self, state: State) -> dict[str, Tensor]:
        """The term's numbers in a state."""
        declared = {f"{TERM}.{key}": x for key, x in self.term.hyper.items()}
        return resolve(declared, state.hyper, state.step)

    def value(
        self,
        readings: list[Any],
        *,
        own: Params | None = None,
        memory: Tree = None,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tree]:
        """The term's value and new state on readings; at its own parameters, state and numbers unless given."""
        return value(
            self.term,
            self.own if own is None else own,
            self.memory if memory is None else memory,
            self.all_numbers if numbers is None else numbers,
            self.state.step,
            readings,
        )

    def readings(self, state: State, batch: Batch) -> list[Any]:
        """What the term's paths give in a step."""
        found: list[Any] = []
        for i, x in enumerate(self.given):
            if isinstance(x, Tensor):
                read = batch[f"domain{i}"]["x"]
                found.append(read + state.trainable[f"net{i}"]["shift"] if x.is_floating_point() else read)
            else:
                found.append(dict(state.trainable[f"net{i}"]) if isinstance(x, Mapping) else x)
        return found


def value(
    term: Term, own: Params, memory: Tree, numbers: Mapping[str, Tensor], at: Tensor, readings: list[Any]
) -> tuple[Tensor, Tree]:
    """What a step computes of a term: its value and its new state, from what its paths give."""
    raw = upcast(readings)
    mine = numbers_of(TERM, numbers, raw)
    floating = [x for x in tree.leaves(raw) if isinstance(x, Tensor) and x.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.float32

    def cast(values: Any) -> Any:
        return tree.map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, values)

    own = cast(own)
    arguments = regroup(term.reads, run_pipes(term, own, mine, raw))
    return term.apply(loss_params(own), cast(memory), mine, at, arguments)


def flattened(name: str, term: Term, readings: Any) -> list[Any]:
    """Bring an example's readings into the order of the term's reads.

    Raises:
        TransferError: if they are not one for each read.
    """
    found: list[Any] = []

    def walk(reads: tuple[Any, ...], given: Any, where: str) -> None:
        values = list(given) if isinstance(given, (tuple, list)) else [given]
        if len(values) != len(reads):
            raise TransferError(f"{name}: it reads {len(reads)} things{where}, the example has {len(values)}")
        for read, x in zip(reads, values, strict=True):
            if not isinstance(read, Read):
                walk(read, x, " in one of its lists")
            elif isinstance(x, Tensor) and not x.ndim:
                raise TransferError(f"{name}: '{read}' must have one row for each example, got {shown(x)}")
            else:
                found.append(x)

    walk(term.reads, readings, "")
    return found


def _net(params: Params, forward: Callable[..., Any]) -> Functional:
    """A network of our own: parameters, and (params, inputs) -> output."""
    meta = {name: torch.empty_like(x, device="meta") for name, x in params.items()}

    def apply(own: Params, buffers: Params, *inputs: Tensor, keys: Tensor | None = None) -> Out:
        return Out(forward(own, *inputs), {}, buffers)

    def init(generator: torch.Generator) -> tuple[Params, Params]:
        return {name: x.detach().clone() for name, x in params.items()}, {}

    def bind(taps: Any, **mode: Any) -> Callable[..., Out]:
        return apply

    layout = Layout(meta, {}, (), frozenset(), False, {name: name for name in params})
    return Functional(init, apply, bind, lambda own: own, layout, None, ("x",))


def in_a_step(name: str, term: Term, readings: list[Any]) -> tuple[Step, Batch]:
    """Make a step whose only loss is the term: each real reading is what a net of its own makes of its domain.

    Raises:
        TransferError: for a reading that is no tensor, dict of parameters or function.
    """
    nets: dict[str, Functional] = {}
    paths: list[Any] = []
    batch: Batch = {}
    first = next((x for x in readings if isinstance(x, Tensor)), torch.zeros(2))
    for i, x in enumerate(readings):
        net, domain = f"net{i}", f"domain{i}"
        if isinstance(x, Tensor) and not x.is_floating_point():
            paths.append(Field(domain, "x"))
            batch[domain] = {"x": x}
        elif isinstance(x, Tensor):
            # One for each feature: many losses do not see one number added to all.
            shift = torch.zeros(x.shape[1:], dtype=x.dtype, device=x.device)
            nets[net] = _net({"shift": shift}, lambda own, inputs: inputs + own["shift"].to(inputs.dtype))
            paths.append(Forward(net, domain))
            batch[domain] = {"x": x.detach()}
        elif isinstance(x, Mapping):
            nets[net] = _net(dict(x), lambda own, inputs: inputs)
            paths.append(NetParams(net))
        elif callable(x):
            nets[net] = _net({"unused": torch.zeros((), device=first.device)}, lambda own, *inputs, fn=x: fn(*inputs))
            paths.append(NetFn(net))
        else:
            raise TransferError(f"{name}: a reading is a tensor, a dict of parameters or a function, got {shown(x)}")
    # Another term for company, so that the first may be left out; it also keeps each step's batch from being empty.
    scale = torch.ones((), device=first.device)
    nets["other"] = _net({"scale": scale}, lambda own, inputs: inputs * own["scale"].to(inputs.dtype))
    batch["beside"] = {"x": torch.linspace(-1.0, 1.0, 2 * len(first), device=first.device).reshape(-1, 2)}
    other = make_term(_mean_square, "other(beside)", weight=0.5, coupled=False)
    queue = iter(paths)
    moved = term._replace(reads=_read_again(term.reads, queue))
    return step(nets, sgd(0.1), {TERM: moved, "other": other}, trainable=tuple(nets)), batch


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean()


def _read_again(reads: tuple[Any, ...], queue: Any) -> tuple[Any, ...]:
    return tuple(Read(next(queue), r.pipes) if isinstance(r, Read) else _read_again(r, queue) for r in reads)


def first_state(one: Step, batch: Batch, seed: int) -> State:
    """Initialise, without a word about terms that nothing learns from: there are laws on that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return one.init(batch, seed)


def moved(state: State) -> State:
    """A later state in float64, where no own parameter is at a value at which gradients may vanish."""
    generator = torch.Generator().manual_seed(0)

    def push(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return x + NOISE * noise.to(x.device) if x.is_floating_point() else x

    wide = doubled(state)
    terms = {name: tree.map(push, own) for name, own in wide.trainable["terms"].items()}
    return wide._replace(trainable={**wide.trainable, "terms": terms}, step=wide.step + AT)


def as_loss(name: str, term: Term, state: State, readings: list[Any]) -> Callable[..., Tensor]:
    """The term as a function of its readings, one argument for each, named as the loss names them."""
    own, memory, at = state.trainable["terms"][TERM], state.terms[TERM], state.step
    declared = {f"{TERM}.{key}": x for key, x in term.hyper.items()}
    numbers = resolve(declared, state.hyper, at)

    def loss(*values: Any) -> Tensor:
        return value(term, own, memory, numbers, at, list(values))[0]

    known, count = claims_of(term.fn), term.count
    counted = None if count is None else lambda *values: count(*regroup(term.reads, list(values)))
    vars(loss)["claims"] = Claims(term.coupled, counted, None, own=known.own or not term.coupled)
    vars(loss)["__signature__"] = inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in _names(term)]
    )
    loss.__name__ = name
    return loss


def _names(term: Term) -> list[str]:
    """A name for each reading: the loss's own, numbered inside a list."""
    try:
        parameters = list(inspect.signature(term.fn).parameters.values())
    except (TypeError, ValueError):  # some builtins have none
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    found: list[str] = []
    for i, read in enumerate(term.reads):
        base = named[i] if i < len(named) else f"argument_{i}"
        inside = [""] if isinstance(read, Read) else [f"_{k}" for k in range(len(flat(read)))]
        found += [base + number for number in inside]
    return found
