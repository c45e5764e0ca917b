"""Whether two nets are one function, and if not, which layer is the first that differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.weights._observed import Call, Seen, gap, mean_size, observed

__all__ = ["Comparison", "compare"]

_SHOWN = 3


class Comparison(NamedTuple):
    """What two nets make of one input; printed, it is a few lines.

    Attributes:
        agree: whether their outputs do.
        gap: the largest difference of the outputs, by the first net's largest number.
        first: the first net's first layer that differs; empty if they agree, or if all layers do.
        other: the second net's layer in its place; empty if there is none.
        why: what is known of the cause.
        layers: (layer of the first net, where the second computes the same numbers, how far apart these are), in the
            order in which they run; "" and infinity where it computes them nowhere.

    Example:
        >>> print(Comparison(False, 0.5, "fc", "head", "its input agrees; its weight differs", (("fc", "", 1.0),)))
        the outputs differ: relative difference 0.5
        fc, in its place head: its input agrees; its weight differs
    """

    agree: bool
    gap: float
    first: str
    other: str
    why: str
    layers: tuple[tuple[str, str, float], ...]

    def __str__(self) -> str:
        same = [row for row in self.layers if row[1]]
        if self.agree:
            return (
                f"the outputs agree: relative difference {self.gap:.1g}; "
                f"{len(same)} of {len(self.layers)} layers agree one by one"
            )
        names = [name for name, _, _ in self.layers]
        before = names.index(self.first) if self.first in names else len(names)
        rows = [row for row in self.layers[:before] if row[1]][-_SHOWN:]
        lines = [f"the outputs differ: relative difference {self.gap:.1g}"]
        lines += [f"{name} = {other} ({gap:.1g})" for name, other, gap in rows]
        place = f"{self.first}, in its place {self.other}" if self.other else self.first or "after the last layer"
        return "\n".join([*lines, f"{place}: {self.why}"])


def compare(
    a: nn.Module,
    b: nn.Module,
    *inputs: Any,
    names: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = torch.float64,
    tolerance: float = 1e-9,
) -> Comparison:
    """Run two nets on one input and find the first layer that differs: the proof that a checkpoint went over.

    Copies of the two run in eval mode and in float64, where a wrong eps is far above what is lost by rounding. Layers,
    which are modules with parameters or buffers of their own, are found again by what they compute: a layer of `a`
    agrees if its output is anywhere among the inputs and outputs of `b`'s modules, whatever they are called, flattened
    or with channels last. A layer without a counterpart, such as the query where the other net has query, key and
    value in one, is passed over if a layer's input or output agrees that is made of it.

    .. math::
        \\text{gap}(x, y) = \\max |x - y| \\,/\\, \\max |x|

    Args:
        a: one net.
        b: the other.
        *inputs: what both are called with; random numbers, since what is zero shows nothing.
        names: module of `a` -> module of `b` whose output to compare it with; None finds them by their numbers.
        dtype: that both run in; None leaves each as it is, and then wants a larger tolerance, 1e-4 for float32.
        tolerance: the largest gap at which two tensors agree. A net that computes a part of it in float32 is off by
            1e-7 or so.

    Returns:
        A `Comparison`.

    Raises:
        TransferError: for what is no module or cannot run on the inputs, for one that gives two answers to one input
            (dropout that is not switched off by eval mode), for outputs of another number, and for names that are not
            there or not called.

    Example:
        >>> import copy, torch, ttransfer as tt
        >>> _ = torch.manual_seed(0)
        >>> a = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
        >>> b = copy.deepcopy(a)
        >>> tt.weights.compare(a, b, torch.randn(3, 4)).agree
        True
        >>> b[1].eps = 0.1
        >>> print(tt.weights.compare(a, b, torch.randn(3, 4)))  # doctest: +ELLIPSIS
        the outputs differ: relative difference 0...
        0 = 0 (0)
        1, in its place 1: its input agrees; LayerNorm((8,), eps=1e-05, ...) and LayerNorm((8,), eps=0.1, ...)
    """
    wanted = [None, None] if names is None else [set(names), set(names.values())]
    for which, net, some in (("first", a, wanted[0]), ("second", b, wanted[1])):
        if not isinstance(net, nn.Module):
            raise TransferError(f"compare: wanted two modules, and the {which} is {shown(net)}")
        for name in some or ():
            if name not in (known := [n for n, _ in net.named_modules() if n]):
                raise TransferError(f"compare: the {which} module has no {name!r}{nearest(name, known)}")
    if not tolerance >= 0:
        raise TransferError(f"compare: tolerance must be 0 or more, got {tolerance}")
    one = observed("first", a, inputs, tolerance, wanted[0], dtype=dtype, live=True)
    two = observed("second", b, inputs, tolerance, wanted[1], dtype=dtype)
    if len(one.outputs) != len(two.outputs):
        raise TransferError(f"compare: the first gives {shown(one.outputs)}, and the second {shown(two.outputs)}")
    apart = max(gap(x, y) for x, y in zip(one.outputs, two.outputs, strict=True))
    there = {call.name: call for call in two.calls}
    found: list[tuple[str, float]] = []
    for call in one.calls:
        if names is None:
            found.append(_lookup(call.value, two.seen, tolerance))
        else:
            other = _counterpart(call.name, names)
            off = gap(call.value, there[other].value) if other in there else float("inf")
            found.append((other if off <= tolerance else "", off))
    rows = tuple((call.name, *where) for call, where in zip(one.calls, found, strict=True))
    if apart <= tolerance:
        return Comparison(True, apart, "", "", "", rows)
    index = _first(one.calls, [bool(other) for other, _ in found], two.seen, tolerance)
    if index is None:
        return Comparison(False, apart, "", "", _after(one.outputs, two.outputs), rows)
    call = one.calls[index]
    if names is not None:
        place = there.get(_counterpart(call.name, names))
    else:
        place = _place(index, one.calls, found, two.calls, tolerance)
    return Comparison(
        False, apart, call.name, place.name if place else "", _why(call, place, two.seen, tolerance), rows
    )


def _counterpart(name: str, names: Mapping[str, str]) -> str:
    """The other net's name for a module's call."""
    module, space, call = name.partition(" ")
    return f"{names[module]}{space}{call}"


def _forms(x: Tensor) -> Iterator[Tensor]:
    """A tensor's numbers in the orders in which the other net may have them."""
    yield x.flatten()
    if x.ndim > 2:
        yield x.movedim(1, -1).flatten()
        yield x.movedim(-1, 1).flatten()


def _lookup(x: Tensor, seen: list[Seen], tolerance: float, *, constant: bool = False) -> tuple[str, float]:
    """Where a tensor's numbers are; what is one number throughout could be anything, and is found only if asked."""
    x = x.detach()
    size, mean = x.abs().max().item(), mean_size(x)
    for form in _forms(x) if constant or x.min() < x.max() else ():
        for name, value, other in seen:
            near = abs(other - mean) <= (tolerance + 1e-6) * size  # no mean is further apart than all numbers are
            if near and value.numel() == x.numel() and (apart := gap(form, value)) <= tolerance:
                return name, apart
    return "", float("inf")


def _first(calls: list[Call], agrees: list[bool], seen: list[Seen], tolerance: float) -> int | None:
    """The first layer that differs, of which nothing is made that agrees."""
    same = [call.value for call, ok in zip(calls, agrees, strict=True) if ok]
    same += [call.given for call in calls if call.given is not None and _lookup(call.given, seen, tolerance)[0]]
    evidence = sum((x.sum() for x in same if x.requires_grad), torch.zeros(()))
    for i, call in enumerate(calls):
        y = call.value
        if agrees[i] or bool(y.detach().min() == y.detach().max()):
            continue
        if not (y.requires_grad and evidence.requires_grad):
            return i
        if torch.autograd.grad(evidence, y, retain_graph=True, allow_unused=True)[0] is None:
            return i
    return None


def _place(
    index: int, calls: list[Call], found: list[tuple[str, float]], others: list[Call], tolerance: float
) -> Call | None:
    """The other net's layer in the place of one: the next whose output is as large and that agrees with none."""
    names = [other.name for other in others]
    before = [names.index(other) for other, _ in found[:index] if other in names]
    taken = {other for other, _ in found}
    size = calls[index].value.numel()
    for other in others[max(before, default=-1) + 1 :]:
        if other.name not in taken and other.value.numel() == size:
            return other
    return None


def _why(call: Call, place: Call | None, seen: list[Seen], tolerance: float) -> str:
    if call.given is not None and not _lookup(call.given, seen, tolerance, constant=True)[0]:
        return "its input differs already: look at what comes between (an activation, a residual, a position table)"
    if place is None:
        return "its input agrees, and the other net computes its output nowhere, nor another of that size"
    told = ["its input agrees"]
    here, there = (dict(c.module.named_parameters()) | dict(c.module.named_buffers()) for c in (call, place))
    unlike = [
        name
        for name, x in here.items()
        if name in there and x.is_floating_point() and not gap(x.detach(), there[name].detach()) <= tolerance
    ]
    told += [f"its {' and '.join(unlike)} {'differs' if len(unlike) == 1 else 'differ'}"] if unlike else []
    alone = [name for name in here if name not in there] + [name for name in there if name not in here]
    told += [f"only one of the two has {' and '.join(alone)}"] if alone else []
    texts = [f"{type(c.module).__name__}({c.module.extra_repr()})" for c in (call, place)]
    if texts[0] != texts[1]:
        told.append(" and ".join(texts))
    return "; ".join(told)


def _after(outputs: list[Tensor], others: list[Tensor]) -> str:
    shapes = [[tuple(x.shape) for x in side] for side in (outputs, others)]
    told = f", and the outputs are {shapes[0]} and {shapes[1]}" if shapes[0] != shapes[1] else ""
    return f"all layers agree{told}: look at what comes after (a softmax, an order of channels)"
