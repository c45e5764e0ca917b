"""The expression that a step is built from, checked and put in order before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from ttransfer._errors import TransferError, nearest
from ttransfer.core import _tree as tree
from ttransfer.core._paths import Field, Forward, Keys, NetFn, NetParams, Tap
from ttransfer.core._reads import flat
from ttransfer.core._types import Ema, Functional, Optimizer, Term

__all__ = [
    "BUFFER_POLICIES",
    "Expression",
    "Pass",
    "Plan",
    "declared",
    "plan_of",
    "slot",
    "slot_names",
    "source_of",
]

BUFFER_POLICIES = ("shared", "per_domain", "eval")


class Expression(NamedTuple):
    """What `tt.step` was told, as it was told."""

    nets: Mapping[str, Functional]
    optimizer: Optimizer
    terms: Mapping[str, Term]
    trainable: Mapping[str, Sequence[str]]
    joint: tuple[tuple[str, ...], ...]
    buffers: Mapping[str, str]
    ema: Mapping[str, Ema]
    accumulate: int
    guard: bool


class Pass(NamedTuple):
    """One forward: a net over one domain, or over several at once."""

    net: str
    domains: tuple[str, ...]
    number: int

    def __str__(self) -> str:
        again = "" if self.number == 1 else f"#{self.number}"
        return f"{self.net}({' + '.join(self.domains)}){again}"


class Plan(NamedTuple):
    """What follows from an expression.

    Attributes:
        passes: forwards in the order they run, which is the order of first mention.
        taps: net -> what is tapped in its forwards.
        fields: domain -> fields of the batch that are read, the nets' inputs included.
        learned: net -> names of the parameters that get gradients.
        training: nets that run in train mode.
        called: nets that a term reads as a function.
    """

    passes: tuple[Pass, ...]
    taps: Mapping[str, tuple[Tap, ...]]
    fields: Mapping[str, tuple[str, ...]]
    learned: Mapping[str, frozenset[str]]
    training: frozenset[str]
    called: frozenset[str]


def slot(expression: Expression, net: str, domain: str) -> str:
    """The name under which a net's buffers for a domain live in `State.buffers`."""
    return f"{net}({domain})" if expression.buffers.get(net) == "per_domain" else net


def slot_names(expression: Expression, plan: Plan, net: str) -> tuple[str, ...]:
    """The names of all of a net's slots; a net that no forward runs has one all the same."""
    domains = [domain for one in plan.passes if one.net == net for domain in one.domains]
    return tuple(dict.fromkeys(slot(expression, net, domain) for domain in domains)) or (net,)


def declared(expression: Expression) -> dict[str, Any]:
    """All hyper-parameters of an expression under their full names."""
    found: dict[str, Any] = {}
    for name, term in expression.terms.items():
        found.update({f"{name}.{key}": value for key, value in term.hyper.items()})
    found.update({f"optim.{key}": value for key, value in expression.optimizer.hyper.items()})
    found.update({f"{name}.decay": follower.decay for name, follower in expression.ema.items()})
    return found


def source_of(expression: Expression, net: str) -> Functional:
    """The Functional that a net runs; an averaged net runs the one it follows."""
    return expression.nets[expression.ema[net].of if net in expression.ema else net]


def plan_of(expression: Expression) -> Plan:
    """Check an expression and derive its forwards, taps and fields."""
    _check_names(expression)
    learned = {net: _learned(expression, net) for net in expression.trainable}
    paths = [read.path for term in expression.terms.values() for read in flat(term.reads)]
    known = (*expression.nets, *expression.ema)
    domains = [p.domain for p in paths if isinstance(p, (Forward, Field))]
    for name, term in expression.terms.items():
        for read in flat(term.reads):
            _check_path(expression, name, read.path, known, domains)
    passes = _passes(expression, [p for p in paths if isinstance(p, Forward)])
    taps = {net: tuple(dict.fromkeys(_taps(paths, net))) for net in known}
    fields: dict[str, list[str]] = {}
    for domain, field in _fields(expression, passes, paths):
        if field not in fields.setdefault(domain, []):
            fields[domain].append(field)
    training = frozenset(net for net in known if _mode(expression, net, learned) == "train")
    called = frozenset(p.net for p in paths if isinstance(p, NetFn))
    return Plan(passes, taps, {d: tuple(f) for d, f in fields.items()}, learned, training, called)


def _mode(expression: Expression, net: str, learned: Mapping[str, frozenset[str]]) -> str:
    if net in expression.ema:
        return expression.ema[net].mode
    return expression.nets[net].mode or ("train" if net in learned else "eval")


def _taps(paths: Sequence[Any], net: str) -> list[Tap]:
    return [p.tap for p in paths if isinstance(p, Forward) and p.net == net and p.tap is not None]


def _fields(expression: Expression, passes: Sequence[Pass], paths: Sequence[Any]) -> list[tuple[str, str]]:
    read = [(p.domain, p.field) for p in paths if isinstance(p, Field)]
    taken = [(d, f) for p in passes for d in p.domains for f in source_of(expression, p.net).inputs]
    return taken + read


def _passes(expression: Expression, forwards: Sequence[Forward]) -> tuple[Pass, ...]:
    """Forwards in the order of first mention; joined ones stand where the first of them is mentioned."""
    asked = list(dict.fromkeys((p.net, p.domain, p.number) for p in forwards))
    passes: list[Pass] = []
    joined: set[tuple[str, ...]] = set()
    for net, domain, number in asked:
        group = next((g for g in expression.joint if domain in g), (domain,))
        present = tuple(d for d in group if (net, d, number) in asked)
        if len(present) > 1:
            joined.add(group)
        one = Pass(net, present, number)
        if one not in passes:
            passes.append(one)
    read = {domain for _, domain, _ in asked}
    grouped = [domain for group in expression.joint for domain in group]
    for domain in grouped:
        if grouped.count(domain) > 1:
            raise TransferError(f"step: joint names {domain!r} twice: a domain runs in one forward of a net")
    for group in expression.joint:
        if unread := [domain for domain in group if domain not in read]:
            raise TransferError(
                f"step: joint names {unread[0]!r}, a domain that no net reads{nearest(unread[0], read)}"
            )
        if group not in joined:
            raise TransferError(f"step: joint {group} joins nothing: no net is read on two of these domains")
    for one in passes:
        if len(one.domains) > 1 and expression.buffers.get(one.net) == "per_domain":
            raise TransferError(f"step: {one} is one forward, so its buffers cannot be 'per_domain'")
    return tuple(passes)


def _check_names(expression: Expression) -> None:
    nets, terms, ema = expression.nets, expression.terms, expression.ema
    if not isinstance(cast(Any, expression.optimizer), Optimizer):
        raise TransferError(
            f"step: the optimizer is {type(expression.optimizer).__name__}; give one of tt.optim, such as "
            "tt.optim.adamw(1e-3)"
        )
    for name, net in nets.items():
        if name in ("terms", "optim"):
            raise TransferError(f"step: no net may be named {name!r}: the state keeps that name for itself")
        if not name.isidentifier():
            raise TransferError(f"step: a net's name must be an identifier, got {name!r}")
        if not isinstance(cast(Any, net), Functional):
            raise TransferError(f"step: net {name!r} is {type(net).__name__}; wrap it: tt.functional(...)")
    if not terms:
        raise TransferError("step: no terms; give at least one, such as task=tt.term(loss, 'net(domain)', 'domain.y')")
    for name, term in terms.items():
        if not isinstance(cast(Any, term), Term):
            raise TransferError(f"step: term {name!r} is {type(term).__name__}; make it with tt.term(...)")
        if name in (*ema, "optim", "loss", "finite") or not name.isidentifier():
            raise TransferError(f"step: {name!r} cannot name a term: it is taken, or no identifier")
    for name, follower in ema.items():
        if name in nets or not name.isidentifier():
            raise TransferError(f"step: {name!r} cannot name an averaged net: it is a net already, or no identifier")
        if not isinstance(cast(Any, follower), Ema):
            raise TransferError(f"step: ema {name!r} is {type(follower).__name__}; make it with tt.ema(net, decay)")
        if follower.of not in nets:
            raise TransferError(f"step: ema {name!r} follows {follower.of!r}, no such net{nearest(follower.of, nets)}")
        if expression.buffers.get(follower.of) == "per_domain":
            raise TransferError(
                f"step: ema {name!r} follows {follower.of!r}, whose buffers are per domain: not one set"
            )
    for net, policy in expression.buffers.items():
        if net not in nets:
            raise TransferError(f"step: buffers= names {net!r}, no such net{nearest(net, nets)}")
        if policy not in BUFFER_POLICIES:
            raise TransferError(f"step: buffers of {net!r}: {policy!r} is no policy{nearest(policy, BUFFER_POLICIES)}")
    if not isinstance(cast(Any, expression.accumulate), int) or expression.accumulate < 1:
        raise TransferError(f"step: accumulate must be a whole number from 1, got {expression.accumulate}")
    if expression.accumulate > 1:
        for name, term in terms.items():
            if term.coupled:
                raise TransferError(
                    f"step: term {name!r} couples the rows of a batch (or does not say that it does not), so its value "
                    "for a batch is no mean over micro-batches and accumulate= would change it; if it is a mean over "
                    "rows, declare tt.term(..., coupled=False)"
                )


def _learned(expression: Expression, net: str) -> frozenset[str]:
    """The parameters of a net that get gradients."""
    if net in expression.ema:
        raise TransferError(f"step: {net!r} is an average of {expression.ema[net].of!r}: it cannot be trained")
    if net not in expression.nets:
        raise TransferError(f"step: trainable names {net!r}, no such net{nearest(net, expression.nets)}")
    found = _selected(expression, net)
    parameters = expression.nets[net].layout.parameters
    for name in sorted(found):
        if not parameters[name].is_floating_point():
            raise TransferError(
                f"step: parameter {name!r} of {net!r} is {parameters[name].dtype}; only real floating parameters can "
                "be trained: leave it out of trainable"
            )
    return found


def _selected(expression: Expression, net: str) -> frozenset[str]:
    """The parameters of a net that trainable= names."""
    layout = expression.nets[net].layout
    patterns = expression.trainable[net]
    if not patterns:
        found = frozenset(layout.parameters) - layout.frozen
        if not found:
            why = "it has no parameters" if not layout.parameters else "every parameter has requires_grad=False"
            raise TransferError(
                f"step: {net!r} is named trainable but frozen: {why}; select parameters by pattern, "
                f"trainable={{{net!r}: '.*'}}, or leave the net out"
            )
        return found
    found: frozenset[str] = frozenset()
    for pattern in patterns:
        matched = {name for name in layout.parameters if tree.matches(pattern, name)}
        if not matched:
            raise TransferError(
                f"step: trainable pattern {pattern!r} matches no parameter of {net!r}"
                f"{nearest(pattern, layout.parameters)}"
            )
        found |= matched
    return found


def _check_path(expression: Expression, term: str, path: Any, nets: Sequence[str], domains: Sequence[str]) -> None:
    where = f"term {term!r} reads '{path}'"
    if isinstance(path, Keys):
        if path.domain not in domains:
            hint = nearest(path.domain, domains)
            raise TransferError(f"{where}: keys are of a domain's rows, and no term reads {path.domain!r}{hint}")
        return
    if isinstance(path, Field):
        if path.domain in nets:
            raise TransferError(
                f"{where}: {path.domain!r} is a net, and a dotted name is a field of a domain; "
                f"write '{path.domain}(domain).{path.field}'"
            )
        return
    if path.net not in nets:
        raise TransferError(f"{where}: no net {path.net!r}{nearest(path.net, nets)}")
    if isinstance(path, NetFn) and expression.buffers.get(path.net) == "per_domain":
        raise TransferError(f"{where}: the buffers of {path.net!r} are per domain, and a function has no domain")
    if isinstance(path, (NetFn, NetParams)):
        return
    if path.domain in nets:
        raise TransferError(f"{where}: {path.domain!r} names a net and a domain; rename one")
    if path.tap is not None:
        modules = source_of(expression, path.net).layout.modules
        if path.tap.module not in modules:
            raise TransferError(
                f"{where}: {path.net!r} has no submodule {path.tap.module!r}{nearest(path.tap.module, modules)}"
            )
