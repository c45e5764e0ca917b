"""Channel groups, found by running a module."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._tree import matches
from ttransfer.weights._groups import Axis, Group
from ttransfer.weights._groups_check import check_groups
from ttransfer.weights._rules import RULES
from ttransfer.weights._strict import Allow
from ttransfer.weights._tracing import Mixing, Trace, tensors_in
from ttransfer.weights._variables import POSITION, compact, varying
from ttransfer.weights._weight_rules import WEIGHT_RULES

__all__ = ["channel_groups"]

Key = tuple[str, int]  # an axis of a tensor
Entries = dict[Key, list[int]]


def channel_groups(module: nn.Module, *inputs: Any, allow: Allow = ()) -> tuple[Group, ...]:
    """Find which entries of which tensors are one channel, and which channels are interchangeable, by running a module.

    Channels that meet in a residual sum, a batch norm or a depthwise convolution are one; a linear layer after a
    flattened map has several entries for each; of a grouped convolution or a group norm, the channels at one place in
    all groups are one. Of an attention with heads there are three groups, which overlap: heads, and the dimensions of
    queries with keys, and of values, at one place in all heads; besides them, for each head the dimensions that may
    change places within it, which are not removable. The result is tried out in float64, on random parameters and all
    groups in random order, so that an operation with a wrong rule cannot pass.

    What is bound to its place is fixed: hidden channels of layers along tokens, dimensions that are rotated by a
    table. Not followed, and refused, are einsum, recurrent layers, weights that are computed (weight normalisation,
    standardised convolutions), attention over channels, and heads that share keys. What does not run is not seen, such
    as a head for training alone: it may read or make the same channels, and would not follow them.

    Args:
        module: is copied, and run in eval mode.
        *inputs: an example of what it takes; small ones do.
        allow: regular expressions for whole names of parameters and buffers that may be left out because they do not
            run; they are in no group, and stay as they are when channels change places.

    Returns:
        The groups, in the order of the state dict; those of inputs and outputs are fixed.

    Raises:
        TransferError: for an operation that has no rule, or a weight that is computed, with the module that it is in;
            for parameters that did not run and that `allow` does not name, or an `allow` that names none of these;
            for a module in which the groups found are not interchangeable, or that does not run on these inputs.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> for group in tt.weights.channel_groups(net, torch.zeros(1, 3)):
        ...     print(group.size, group.fixed, [(axis.name, axis.axis) for axis in group.axes])
        8 False [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
        3 True [('0.weight', 1)]
        2 True [('2.weight', 0), ('2.bias', 0)]
    """
    if not isinstance(module, nn.Module):
        raise TransferError(f"channel_groups: wanted a module, and inputs for it, got {shown(module)}")
    twin = copy.deepcopy(module).eval()
    trace = Trace(twin, {**RULES, **WEIGHT_RULES})
    for x in tensors_in(inputs):
        trace.position(x)
    try:
        with torch.no_grad(), trace:
            out = twin(*inputs)
    except TransferError:
        raise
    except Exception:
        _refuse_if_it_does_not_run(module, inputs)
        raise
    _refuse_what_did_not_run(twin, trace.used, (allow,) if isinstance(allow, str) else tuple(allow))
    trace.held += [trace.see(x).labels for x in tensors_in(out) if trace.follows(x)]
    groups = _grouped(_occurrences(trace), trace, twin)
    check_groups(copy.deepcopy(module), inputs, groups)
    return groups


def _refuse_if_it_does_not_run(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    try:
        with torch.no_grad():
            copy.deepcopy(module).eval()(*inputs)
    except Exception as error:
        raise TransferError(
            f"channel_groups: {type(module).__name__} does not run on {shown(inputs)}: {type(error).__name__}: {error}"
        ) from error


def _refuse_what_did_not_run(module: nn.Module, used: set[str], allow: tuple[str, ...]) -> None:
    state = module.state_dict(keep_vars=True)
    ran = {id(x) for name, x in state.items() if name in used}
    # Integers and numbers of no axis have no channels.
    idle = [n for n, x in state.items() if id(x) not in ran and x.is_floating_point() and x.ndim and x.numel()]
    for pattern in allow:
        if not any(matches(pattern, name) for name in idle):
            raise TransferError(
                f"channel_groups: allow={pattern!r} matches nothing that did not run{nearest(pattern, idle)}"
            )
    if left := [name for name in idle if not any(matches(pattern, name) for pattern in allow)]:
        few = ", ".join(map(repr, left[:5])) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise TransferError(
            f"channel_groups: {len(left)} of {len(state)} tensors did not run, so that nothing is known of their "
            f"channels: {few}; give inputs on which they run in eval mode, take them out of the module, or let them "
            "stay as they are with allow="
        )


def _occurrences(trace: Trace) -> dict[Key, Tensor]:
    """(tensor, axis) -> the class of each entry."""
    single: dict[Key, Tensor] = {}
    for name, ids in trace.entries.items():
        labels = compact(trace.variables.of(ids))
        along = varying(labels)
        both = [axis for other, axis in trace.axes if other == name]
        if len(along) > 1 or (both and along):
            # No order of one axis alone moves these, so they stay.
            trace.variables.pin(labels)
            for axis in both:
                trace.variables.pin(trace.axes[name, axis])
        elif along:
            single[name, along[0]] = labels.reshape(-1)
    return {key: trace.variables.of(ids) for key, ids in {**trace.axes, **single}.items()}


class _Class(NamedTuple):
    """One channel: where it is, and what it is part of."""

    entries: Entries
    kind: Any
    parents: frozenset[int]


def _grouped(found: dict[Key, Tensor], trace: Trace, module: nn.Module) -> tuple[Group, ...]:
    state = module.state_dict(keep_vars=True)
    order = {name: i for i, name in enumerate(state)}
    entries: dict[int, Entries] = defaultdict(dict)
    for key in sorted(found, key=lambda key: (order[key[0]], key[1])):
        for at, label in enumerate(found[key].tolist()):
            entries[label].setdefault(key, []).append(at)
    parents: dict[int, set[int]] = defaultdict(set)
    for children, above in trace.nested:
        for child, parent in zip(*(trace.variables.of(x).tolist() for x in (children, above)), strict=True):
            if child > POSITION and parent > POSITION and child != parent:
                parents[child].add(parent)
    held = {label for x in trace.held for label in trace.variables.of(x).unique().tolist()}
    touches, mixes = _touches(trace)
    classes = {
        label: _Class(
            here,
            (tuple((key, len(at)) for key, at in here.items()), touches.get(label), tuple(sorted(mixes[label]))),
            frozenset(parents[label]),
        )
        for label, here in entries.items()
        if label > POSITION
    }
    made = _Made(trace.reads, trace.reads & trace.writes, state, held, classes)
    groups = [*made.places(entries.get(POSITION, {})), *_leaves(classes, parents, made)]
    groups += _heads(classes, parents, made)
    return tuple(sorted(groups, key=lambda g: (order[g.axes[0].name], g.axes[0].axis, not g.removable)))


def _touches(trace: Trace) -> tuple[dict[int, int], dict[int, set[Mixing]]]:
    """Class -> a number for the set of operations that had to do with it; and those that mix it."""
    touches: dict[int, int] = defaultdict(int)
    mixes: dict[int, set[Mixing]] = defaultdict(set)
    for number, (labels, mixing) in enumerate(trace.touched):
        for label in trace.variables.of(labels).unique().tolist():
            touches[label] |= 1 << number
            if mixing is not None:
                mixes[label].add(mixing)
    return touches, mixes


class _Made(NamedTuple):
    """What makes groups of classes."""

    reads: set[Key]
    both: set[Key]  # read by one layer and made by another, which share the tensor
    state: dict[str, Tensor]
    held: set[int]
    classes: dict[int, _Class]

    def group(self, channels: Sequence[Sequence[int]], *, removable: bool = True, wholes: bool = False) -> Group:
        """A group of channels, each of which is a list of classes."""
        keys = dict.fromkeys(key for label in channels[0] for key in self.classes[label].entries)
        rows = {
            key: [[at for label in one for at in self.classes[label].entries.get(key, ())] for one in channels]
            for key in keys
        }
        # What mixes parts of one whole does not mix wholes.
        mixing = {one for label in channels[0] for one in self.classes[label].kind[2]}
        mixed = {one.name for one in mixing if not (wholes and one.apart)}
        mixed |= {f"{key[0]!r}, shared by two layers" for key in keys if key in self.both}
        fixed = any(label in self.held for one in channels for label in one)
        axes = tuple(axis for key, index in rows.items() for axis in self.axes(key, index))
        return Group(axes, fixed, removable and not fixed, tuple(sorted(mixed)))

    def axes(self, key: Key, index: list[list[int]]) -> Iterable[Axis]:
        """An axis under every name that its tensor has."""
        name, axis = key
        for other, x in self.state.items():
            if x is self.state[name]:
                yield Axis(other, axis, torch.tensor(index), x.shape[axis], key in self.reads)

    def places(self, entries: Entries) -> Iterable[Group]:
        """The axes that are bound to their places."""
        for key, at in entries.items():
            yield Group(tuple(self.axes(key, [[i] for i in at])), True, False)


def _leaves(classes: dict[int, _Class], parents: dict[int, set[int]], made: _Made) -> Iterable[Group]:
    above = {label for some in parents.values() for label in some}
    families: dict[Any, dict[frozenset[int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for label, one in classes.items():
        if label not in above:
            families[one.kind][one.parents].append(label)
    for nests in families.values():
        whole = {len(labels) for labels in nests.values()}
        if len(nests) == 1:
            yield made.group([[label] for label in next(iter(nests.values()))])
            continue
        if len(whole) == 1 and whole != {1}:
            yield made.group(list(zip(*nests.values(), strict=True)))
        for labels in nests.values() if whole != {1} else ():
            yield made.group([[label] for label in labels], removable=False)


def _heads(classes: dict[int, _Class], parents: dict[int, set[int]], made: _Made) -> Iterable[Group]:
    """Groups of what has channels for parts: alike are those whose parts are, and are part of the same else."""
    children: dict[int, list[int]] = defaultdict(list)
    for label in classes:
        for parent in parents[label]:
            children[parent].append(label)
    alike: dict[Any, list[int]] = defaultdict(list)
    for parent, parts in children.items():
        if parent not in made.held and not any(part in children for part in parts):
            counts: dict[Any, int] = defaultdict(int)
            for part in parts:
                counts[classes[part].kind, frozenset(parents[part] - {parent})] += 1
            own = classes[parent].kind if parent in classes else None
            alike[own, frozenset(parents[parent]), frozenset(counts.items())].append(parent)
    kinds: dict[Any, int] = {}
    for same in alike.values():
        if len(same) < 2 or any(len(parents[part] & {*same}) > 1 for parent in same for part in children[parent]):
            continue
        channels: list[list[int]] = []
        for parent in same:

            def rank(label: int, parent: int = parent) -> int:
                return kinds.setdefault((classes[label].kind, frozenset(parents[label] - {parent})), len(kinds))

            parts = sorted(children[parent], key=rank)
            channels.append([*([parent] if parent in classes else []), *parts])
        yield made.group(channels, wholes=True)
