"""Whether a state was made for a step: by names, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, cast

from ttransfer._errors import TransferError
from ttransfer.core._hyper import numbers
from ttransfer.core._spec import Expression, Plan, declared, slot_names
from ttransfer.core._types import Fixed, State

__all__ = ["state_check"]

Check = Callable[[State, int], None]


class _Names(NamedTuple):
    """Names that a state must have, and those that it may have."""

    kind: str
    of: Callable[[State], AbstractSet[str]]
    least: frozenset[str]
    most: frozenset[str]


def state_check(parts: Mapping[str, tuple[Expression, Plan]]) -> Check:
    """Return the check that refuses a state of another step: (state, how many dimensions count members).

    Args:
        parts: phase -> its expression and plan; a plain step is one part, called "".
    """
    rules = _rules(parts)

    def check(state: State, members: int = 0) -> None:
        if not isinstance(cast(Any, state), State):
            raise TransferError(f"a step takes (state, batch), got {type(state).__name__} for the state; see step.init")
        if state.step.ndim > members:
            raise TransferError(
                f"this state is stacked {state.step.ndim} deep and the step {members}: take tt.member(state, i), or "
                "use the ensemble or sweep that made it"
            )
        for kind, of, least, most in rules:
            have = of(state)
            if not (least <= have <= most):
                raise TransferError(
                    f"this state is of another step: {_difference(kind, frozenset(have), least, most)}; "
                    "make one with step.init"
                )

    return check


def _difference(kind: str, have: frozenset[str], least: frozenset[str], most: frozenset[str]) -> str:
    wrong = {"missing": sorted(least - have), "not the step's": sorted(have - most)}
    return " and ".join(f"{kind} {how}: {_few(names)}" for how, names in wrong.items() if names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)} in all)" if len(names) > 4 else "")


def _rules(parts: Mapping[str, tuple[Expression, Plan]]) -> list[_Names]:
    """What the state of a step, or of phases together, is made of."""
    every: dict[str, frozenset[str]] = {}
    learned: dict[str, frozenset[str]] = {}
    followers: dict[str, str] = {}
    terms: set[str] = set()
    slots: set[str] = set()
    least: set[str] = set()
    most: set[str] = set()
    for phase, (expression, plan) in parts.items():
        prefix = phase and f"{phase}."
        for net, functional in expression.nets.items():
            every[net] = frozenset(functional.layout.parameters)
            learned[net] = learned.get(net, frozenset()) | plan.learned.get(net, frozenset())
        followers.update({name: follower.of for name, follower in expression.ema.items()})
        slots.update(name for net in (*expression.nets, *expression.ema) for name in slot_names(expression, plan, net))
        terms.update(prefix + name for name in expression.terms)
        for name, entries in _entries(expression).items():
            most |= {prefix + entry for entry in entries}
            least |= {prefix + entry for entry in entries} if name not in _tried(expression) else set()
    rules = [
        _exactly("nets", lambda s: {*s.trainable, *s.frozen, *s.ema} - {"terms"}, (*every, *followers)),
        _exactly("averaged nets", lambda s: s.ema.keys(), followers),
        _exactly("terms", lambda s: s.terms.keys(), terms),
        _exactly("buffers", lambda s: s.buffers.keys(), slots),
        _Names("hyper-parameters", lambda s: s.hyper.keys(), frozenset(least), frozenset(most)),
    ]
    for net, names in every.items():
        trained, rest = f"trained parameters of {net!r}", f"frozen parameters of {net!r}"
        rules.append(_exactly(trained, lambda s, net=net: s.trainable.get(net, {}).keys(), learned[net]))
        rules.append(_exactly(rest, lambda s, net=net: s.frozen.get(net, {}).keys(), names - learned[net]))
    for name, of in followers.items():
        rules.append(_exactly(f"parameters of {name!r}", lambda s, name=name: s.ema[name].keys(), every[of]))
    if "" not in parts:
        phases = _exactly("phases", lambda s: s.opt.keys() if isinstance(s.opt, dict) else set(), parts)
        rules.insert(0, phases)
    return rules


def _exactly(kind: str, of: Callable[[State], AbstractSet[str]], names: Collection[str]) -> _Names:
    return _Names(kind, of, frozenset(names), frozenset(names))


def _entries(expression: Expression) -> dict[str, frozenset[str]]:
    """Full name of a hyper-parameter -> its entries in `State.hyper`."""
    found = {name: value for name, value in declared(expression).items() if not isinstance(value, Fixed)}
    return {name: frozenset(numbers(name, value)) for name, value in found.items()}


def _tried(expression: Expression) -> frozenset[str]:
    """Those that a trial at init may have left static."""
    return frozenset(f"{name}.{key}" for name, term in expression.terms.items() for key in term.tried)
