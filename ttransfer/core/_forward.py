"""Running the forwards of a plan, and finding in them what each term reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._keyed import row_keys, salt
from ttransfer.core._paths import Field, Forward, Keys, NetFn, NetParams, Path
from ttransfer.core._pipes import upcast
from ttransfer.core._reads import flat
from ttransfer.core._spec import Expression, Pass, Plan, slot, source_of
from ttransfer.core._types import Batch, Out, Params, Term

__all__ = [
    "Bound",
    "Clock",
    "Outs",
    "bind",
    "check_batch",
    "domain_of",
    "picked",
    "raw_readings",
    "reading",
    "rows_of",
    "run_passes",
]

Outs = dict[tuple[str, str, int], Out]
"""(net, domain, number) -> what the forward gave."""


class Clock(NamedTuple):
    """What dropout masks follow from, beside the row: the seed, the step, and where each domain's rows begin."""

    seed: Tensor
    step: Tensor
    start: Mapping[str, int | Tensor]


class Bound(NamedTuple):
    """An expression with its nets on private skeletons, ready to run."""

    expression: Expression
    plan: Plan
    applies: Mapping[str, Callable[..., Out]]
    salts: Mapping[tuple[str, str, int], int]


def bind(expression: Expression, plan: Plan, adjust: Callable[[nn.Module], None] | None = None) -> Bound:
    """Give every net of an expression a skeleton with the taps and the mode that the plan asks for.

    Args:
        expression: what it was told.
        plan: what follows from it.
        adjust: what else is to be done to each skeleton.
    """
    more = {} if adjust is None else {"adjust": adjust}
    applies: dict[str, Callable[..., Out]] = {}
    for net in (*expression.nets, *expression.ema):
        policy = expression.buffers.get(net, "shared")
        applies[net] = source_of(expression, net).bind(
            plan.taps[net], training=net in plan.training, batch_statistics=policy != "eval", **more
        )
    forwards = [(one.net, domain, one.number) for one in plan.passes for domain in one.domains]
    random = [net for net in plan.training if source_of(expression, net).layout.drops]
    keyed = [key for key in (*forwards, *((net, "fn", 0) for net in plan.called)) if key[0] in random]
    # Hashed here, for a checksum is no part of a graph.
    return Bound(expression, plan, applies, {key: salt(key[0], key[2], key[1]) for key in keyed})


def check_batch(plan: Plan, batch: Batch, stacked: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return the part of a batch that the plan reads, or say what is missing.

    Args:
        plan: of the step.
        batch: domain -> field -> tensor.
        stacked: how many leading dimensions count members, before the rows.
    """
    if not isinstance(cast(Any, batch), Mapping):
        raise TransferError(f"a batch maps domains to fields, {{'source': {{'x': ...}}}}, got {shown(batch)}")
    found: dict[str, dict[str, Tensor]] = {}
    for domain, fields in plan.fields.items():
        if domain not in batch:
            raise TransferError(f"the batch has no domain {domain!r}{nearest(domain, batch)}")
        have = batch[domain]
        if not isinstance(cast(Any, have), Mapping):
            raise TransferError(
                f"domain {domain!r} of the batch maps fields to tensors, {{'x': ...}}, got {shown(have)}"
            )
        for field in fields:
            if field not in have:
                raise TransferError(f"domain {domain!r} of the batch has no field {field!r}{nearest(field, have)}")
            if not isinstance(have[field], Tensor) or have[field].ndim <= stacked:
                raise TransferError(
                    f"field {domain}.{field} must be a tensor with one row per example, got "
                    f"{shown(have[field])}; torch.from_numpy turns arrays into tensors, numbers belong to State.hyper"
                )
        found[domain] = {field: have[field] for field in fields}
        sizes = {field: tensor.shape[stacked] for field, tensor in found[domain].items()}
        if 0 in sizes.values():
            raise TransferError(f"domain {domain!r} of the batch is empty; rows of its fields: {sizes}")
        if len(set(sizes.values())) > 1:
            raise TransferError(f"domain {domain!r} must have the same number of rows in each field, got {sizes}")
    return found


def rows_of(batch: Batch, domain: str) -> int:
    """The number of rows of a domain."""
    return next(iter(batch[domain].values())).shape[0]


def run_passes(
    bound: Bound,
    passes: Sequence[Pass],
    params: Mapping[str, Params],
    buffers: Mapping[str, Params],
    batch: Batch,
    clock: Clock,
) -> tuple[Outs, dict[str, Params]]:
    """Run forwards in order, handing each one's buffers to the next over the same slot."""
    outs: Outs = {}
    threaded = dict(buffers)
    for one in passes:
        fields = source_of(bound.expression, one.net).inputs
        inputs = [_rows_joined([batch[d][field] for d in one.domains]) for field in fields]
        keys = None
        if (one.net, one.domains[0], one.number) in bound.salts:
            keys = _rows_joined(
                [
                    _keys(bound, clock, (one.net, d, one.number), clock.start.get(d, 0), rows_of(batch, d))
                    for d in one.domains
                ]
            )
        where = slot(bound.expression, one.net, one.domains[0])
        out = _run(bound, one, params[one.net], threaded[where], inputs, keys)
        threaded[where] = out.buffers
        sizes = [rows_of(batch, d) for d in one.domains]
        for i, domain in enumerate(one.domains):
            outs[one.net, domain, one.number] = _part(one, out, sizes, i)
    return outs, threaded


def _run(bound: Bound, one: Pass, params: Params, buffers: Params, inputs: list[Tensor], keys: Tensor | None) -> Out:
    if torch.compiler.is_compiling():  # an exception handler is no part of a graph
        return bound.applies[one.net](params, buffers, *inputs, keys=keys)
    try:
        return bound.applies[one.net](params, buffers, *inputs, keys=keys)
    except Exception as error:
        got = ", ".join(map(shown, inputs))
        raise TransferError(f"the forward {one} failed on {got}: {error}") from error


def _rows_joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _keys(bound: Bound, clock: Clock, forward: tuple[str, str, int], start: int | Tensor, n: int) -> Tensor:
    rows = torch.arange(n, device=clock.seed.device) + start
    return row_keys(clock.seed, clock.step, bound.salts[forward], rows)


def _part(one: Pass, out: Out, sizes: list[int], i: int) -> Out:
    """Cut one domain's rows out of a joined forward."""
    if len(sizes) == 1:
        return out
    begin = sum(sizes[:i])

    def cut(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.ndim:
            return x
        if x.shape[0] % sum(sizes):
            raise TransferError(
                f"joint: {one} gave {shown(x)}, whose first dimension is not the {sum(sizes)} rows that went in, so it "
                "cannot be cut by domain"
            )
        each = x.shape[0] // sum(sizes)  # more than one where windows or heads are folded into the batch
        return x[begin * each : (begin + sizes[i]) * each]

    return Out(pytree.tree_map(cut, out.value), pytree.tree_map(cut, out.taps), out.buffers)


def raw_readings(
    bound: Bound,
    term: Term,
    outs: Outs,
    params: Mapping[str, Params],
    buffers: Mapping[str, Params],
    batch: Batch,
    clock: Clock,
) -> list[Any]:
    """Return what a term reads, in the order of its reads, before any pipe; floats are float32 at least."""
    begin = clock.start.get(domain_of(term), 0)
    return [reading(bound, read.path, outs, params, buffers, batch, clock, begin) for read in flat(term.reads)]


def domain_of(term: Term) -> str:
    """The domain of the rows that a term reads first, "" if it reads none."""
    for r in flat(term.reads):  # no `next` with a default: torch 2.8 does not trace it
        if isinstance(r.path, (Forward, Field, Keys)):
            return r.path.domain
    return ""


def reading(
    bound: Bound,
    path: Path,
    outs: Outs,
    params: Mapping[str, Params],
    buffers: Mapping[str, Params],
    batch: Batch,
    clock: Clock,
    begin: int | Tensor,
) -> Any:
    """Return what is at a path; `begin` numbers the rows that a net read as a function will be given."""
    if isinstance(path, NetParams):
        # In the net's own order, whichever of them are trained: two nets of one kind then go side by side.
        return upcast(
            {name: params[path.net][name] for name in source_of(bound.expression, path.net).layout.parameters}
        )
    if isinstance(path, NetFn):
        return _as_function(bound, path.net, params, buffers, clock, begin)
    if isinstance(path, Keys):
        rows = torch.arange(rows_of(batch, path.domain), device=clock.seed.device)
        return row_keys(clock.seed, clock.step, 0, rows + clock.start.get(path.domain, 0))
    if isinstance(path, Field):
        return upcast(picked(batch[path.domain][path.field], path))
    out = outs[path.net, path.domain, path.number]
    return upcast(picked(out.value if path.tap is None else out.taps[str(path.tap)], path))


def picked(value: Any, path: Forward | Field) -> Any:
    """Follow the picks of a path: keys of mappings, positions, and fields of named tuples and plain objects."""
    for pick in path.picks:
        names = _names_in(value)
        if isinstance(value, Tensor):
            raise TransferError(
                f"'{path}': [{pick}] picks from a tuple or a dict, and this is a tensor, {shown(value)}"
            )
        try:
            if isinstance(pick, str) and pick not in names:
                raise KeyError(pick)
            value = getattr(value, pick) if isinstance(pick, str) and not isinstance(value, Mapping) else value[pick]
        except (KeyError, IndexError, TypeError) as error:
            hint = nearest(str(pick), map(str, names)) if names else f"; it is {shown(value)}"
            raise TransferError(f"'{path}': nothing at [{pick}]{hint}") from error
    return value


def _names_in(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    return getattr(value, "_fields", None) or getattr(value, "__dict__", ())


def _as_function(
    bound: Bound,
    net: str,
    params: Mapping[str, Params],
    buffers: Mapping[str, Params],
    clock: Clock,
    begin: int | Tensor,
) -> Callable[..., Any]:
    """The net as a function of its inputs: this step's parameters, this step's masks, buffers not written."""

    def call(*inputs: Tensor) -> Any:
        drops = (net, "fn", 0) in bound.salts
        keys = _keys(bound, clock, (net, "fn", 0), begin, inputs[0].shape[0]) if drops else None
        return upcast(bound.applies[net](params[net], buffers[net], *inputs, keys=keys).value)

    return call
