"""Games: phases that share nets and buffers, each with its own optimizer, terms and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.core import _tree as tree
from ttransfer.core._guard import guarded
from ttransfer.core._spec import Expression, plan_of, slot_names
from ttransfer.core._states import state_check
from ttransfer.core._step import Spec, Step
from ttransfer.core._types import Batch, Functional, Logs, Params, State

__all__ = ["Alternation", "alternate", "build_alternation", "trained_by"]

Learned = Mapping[str, frozenset[str]]


class Alternation(NamedTuple):
    """What `tt.alternate` was told."""

    phases: Mapping[str, Step]
    order: tuple[str, ...]


def alternate(
    phases: Mapping[str, Step] | None = None, *, order: Sequence[str] | None = None, **more_phases: Step
) -> Step:
    """Run several steps in turn on each batch, as one step: GANs, MCD, critics with more than one update.

    Phases share nets and buffers by name. Each has its own terms, optimizer state and hyper-parameters,
    under its own name: "d.optim.lr". The step count advances once.

    Args:
        phases: name -> step, for those who compose by program; keywords do the same.
        order: phase names in the order to run, with repeats if wanted; each once as given by default.
        **more_phases: steps by keyword. They must be plain: ensemble, sweep and compile the alternation.

    Returns:
        A Step; its logs carry the phase's name ("d.loss"), a repeated phase's from its last run, and
        "loss" is the sum of the phases'.

    Raises:
        TransferError: when phases disagree about a net, or `order` names a phase that is not there.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> nets = {"body": tt.functional(torch.nn.Linear(2, 2)), "other": tt.functional(torch.nn.Linear(2, 2))}
        >>> one = tt.step(nets, tt.optim.sgd(0.1), trainable=("body",), fit=tt.term(F.mse_loss, "body(a)", "other(a)"))
        >>> two = tt.step(nets, tt.optim.sgd(0.1), trainable=("other",), fit=tt.term(F.mse_loss, "other(a)", "body(a)"))
        >>> game = tt.alternate(one=one, two=two)
        >>> batch = {"a": {"x": torch.ones(3, 2)}}
        >>> state, logs = game(game.init(batch), batch)
        >>> int(state.step), "two.fit" in logs
        (1, True)
    """
    given = dict(phases or {})
    for name, phase in more_phases.items():
        if name in given:
            raise TransferError(f"alternate: the phase {name!r} is given twice")
        given[name] = phase
    return build_alternation(Alternation(given, tuple(order if order is not None else given)))


def build_alternation(alternation: Alternation) -> Step:
    """Check the phases and build their common step."""
    phases, order = alternation
    _check(phases, order)
    parts = {name: (phase.spec.expression, plan_of(phase.spec.expression)) for name, phase in phases.items()}
    learned: dict[str, Learned] = {name: plan.learned for name, (_, plan) in parts.items()}
    slots = {n: [s for net in (*e.nets, *e.ema) for s in slot_names(e, plan, net)] for n, (e, plan) in parts.items()}
    check_state = state_check(parts)

    def init(example_batch: Batch, seed: int = 0) -> State:
        return _joined(phases, {name: phase.init(example_batch, seed) for name, phase in phases.items()})

    def update(state: State, batch: Batch) -> tuple[State, Logs]:
        if not torch.compiler.is_compiling():
            check_state(state, 0)
        new = state
        logs: Logs = {}
        losses: dict[str, Tensor] = {}
        finite: list[Tensor] = []
        for turn, name in enumerate(order):
            expression = phases[name].spec.expression
            after, said = phases[name].update(_view(expression, learned[name], slots[name], new, name, turn), batch)
            new = _merged(new, after, name, _averages(expression, learned[name], new, after, said))
            logs.update({f"{name}.{key}": value for key, value in said.items()})
            losses[name] = said["loss"]
            finite += [said["finite"]] if "finite" in said else []
        logs["loss"] = torch.stack([loss.to(torch.float64) for loss in losses.values()]).sum()
        new = _stepped(new, state.step + 1)
        if finite:
            logs["finite"] = torch.stack(finite).all()
            new = guarded(logs["finite"], new, state)
        return new, logs

    return Step(init, update, Spec(alternation))


def _check(phases: Mapping[str, Step], order: Sequence[str]) -> None:
    if not phases:
        raise TransferError("alternate: no phases; give steps by name, such as alternate(d=critic_step, g=net_step)")
    for name in order:
        if name not in phases:
            raise TransferError(f"alternate: order names {name!r}, no such phase{nearest(name, phases)}")
    if unused := [name for name in phases if name not in order]:
        raise TransferError(f"alternate: order leaves out the phase {unused[0]!r}")
    nets: dict[str, tuple[str, Any, bool]] = {}
    followers: dict[str, str] = {}
    for name, phase in phases.items():
        if not isinstance(cast(Any, phase), Step):
            raise TransferError(f"alternate: phase {name!r} is {type(phase).__name__}; make it with tt.step(...)")
        if not name.isidentifier():
            raise TransferError(f"alternate: a phase's name must be an identifier, got {name!r}")
        expression = phase.spec.expression
        if phase.spec.transforms or not isinstance(expression, Expression):
            raise TransferError(f"alternate: phase {name!r} must be a plain tt.step; transform the alternation instead")
        for net, functional in expression.nets.items():
            per_domain = expression.buffers.get(net) == "per_domain"
            first, known, split = nets.setdefault(net, (name, functional, per_domain))
            if known is not functional:
                raise TransferError(f"alternate: phases {first!r} and {name!r} have different nets called {net!r}")
            if split != per_domain:
                raise TransferError(f"alternate: buffers of {net!r} are per domain in one of {first!r}, {name!r} only")
        for net in (*expression.nets, *expression.ema):
            of = expression.ema[net].of if net in expression.ema else ""
            if followers.setdefault(net, of) != of:
                roles = [f"an average of {f!r}" if f else "a net of its own" for f in (followers[net], of)]
                raise TransferError(f"alternate: {net!r} is {roles[0]} in one phase and {roles[1]} in phase {name!r}")


def _joined(phases: Mapping[str, Step], states: Mapping[str, State]) -> State:
    """Put the phases' first states together: what any phase trains is trainable."""
    learned: dict[str, set[str]] = {}
    every: dict[str, Params] = {}
    buffers: dict[str, Params] = {}
    ema: dict[str, Params] = {}
    for name, state in states.items():
        for net, functional in phases[name].spec.expression.nets.items():
            every.setdefault(net, _every(functional, state, net))
            learned.setdefault(net, set()).update(state.trainable.get(net, {}))
        buffers.update({slot: flat for slot, flat in state.buffers.items() if slot not in buffers})
        ema.update({net: flat for net, flat in state.ema.items() if net not in ema})
    trainable: dict[str, Any] = {
        net: {k: v for k, v in flat.items() if k in learned[net]} for net, flat in every.items() if learned[net]
    }
    frozen = {net: {k: v for k, v in flat.items() if k not in learned[net]} for net, flat in every.items()}
    trainable["terms"] = _prefixed({name: state.trainable["terms"] for name, state in states.items()})
    first = next(iter(states.values()))
    return State(
        trainable,
        frozen,
        buffers,
        _prefixed({name: state.terms for name, state in states.items()}),
        {name: state.opt for name, state in states.items()},
        ema,
        _prefixed({name: state.hyper for name, state in states.items()}),
        first.step,
        first.seed,
    )


def _every(functional: Functional, state: State, net: str) -> Params:
    """All parameters of a net, in its own order."""
    flat = {**state.frozen.get(net, {}), **state.trainable.get(net, {})}
    return {name: flat[name] for name in functional.layout.parameters}


def _prefixed(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def _own(part: Mapping[str, Any], phase: str) -> dict[str, Any]:
    return {key[len(phase) + 1 :]: value for key, value in part.items() if key.startswith(f"{phase}.")}


def _view(expression: Expression, learned: Learned, slots: Sequence[str], state: State, phase: str, turn: int) -> State:
    """The state as one phase sees it. Its seed differs by turn, or dropout would repeat its masks."""
    every = {net: _every(functional, state, net) for net, functional in expression.nets.items()}
    return State(
        trained_by(expression, learned, state, phase),
        {net: {k: v for k, v in flat.items() if k not in learned.get(net, ())} for net, flat in every.items()},
        {slot: state.buffers[slot] for slot in slots},
        _own(state.terms, phase),
        state.opt[phase],
        {net: state.ema[net] for net in expression.ema},
        _own(state.hyper, phase),
        state.step,
        state.seed + turn * 0x9E3779B97F4A,
    )


def trained_by(expression: Expression, learned: Learned, state: State, phase: str) -> dict[str, Any]:
    """What one phase trains, of the common state."""
    every = {net: _every(expression.nets[net], state, net) for net in learned}
    trainable: dict[str, Any] = {net: {k: v for k, v in every[net].items() if k in learned[net]} for net in learned}
    return {**trainable, "terms": _own(state.trainable["terms"], phase)}


def _averages(expression: Expression, learned: Learned, state: State, after: State, said: Logs) -> dict[str, Params]:
    """The averaged nets after a phase, which itself moves only what it trains: other phases train the rest."""
    ema: dict[str, Params] = {}
    for name, follower in expression.ema.items():
        moved = learned.get(follower.of, frozenset())
        now = _every(expression.nets[follower.of], state, follower.of)
        ema[name] = {
            k: v if k in moved or k not in state.trainable.get(follower.of, {})
            else tree.lerp(v, now[k], 1.0 - said[f"{name}.decay"])
            for k, v in after.ema[name].items()
        }  # fmt: skip
    return ema


def _merged(state: State, after: State, phase: str, ema: Mapping[str, Params]) -> State:
    """Write what a phase changed into the common state, whose order of keys stays as it is."""

    def newer(net: str, flat: Params) -> Params:
        changed = after.trainable.get(net, {})
        return {k: changed.get(k, v) for k, v in flat.items()}

    trainable: dict[str, Any] = {net: newer(net, flat) for net, flat in state.trainable.items() if net != "terms"}
    trainable["terms"] = {**state.trainable["terms"], **_prefixed({phase: after.trainable["terms"]})}
    return State(
        trainable,
        state.frozen,
        {**state.buffers, **after.buffers},
        {**state.terms, **_prefixed({phase: after.terms})},
        {**state.opt, phase: after.opt},
        {**state.ema, **ema},
        state.hyper,
        state.step,
        state.seed,
    )


def _stepped(state: State, step: Tensor) -> State:
    return State(
        state.trainable, state.frozen, state.buffers, state.terms, state.opt, state.ema, state.hyper, step, state.seed
    )
