"""One run of a module, in which every activation has beside it the channels that its numbers belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ttransfer._errors import TransferError
from ttransfer.weights._variables import CONSTANT, POSITION, Variables, compact

__all__ = ["Mixing", "Operation", "Rule", "Seen", "Trace", "tensors_in"]


class Seen(NamedTuple):
    """An activation as the trace knows it: compact labels, and the shape that they stand for."""

    labels: Tensor
    shape: torch.Size

    @property
    def whole(self) -> Tensor:
        return self.labels.expand(self.shape)


class Mixing(NamedTuple):
    """An operation that mixes channels without a weight: all of them, or those of each set apart, such as a head."""

    name: str
    apart: bool


Rule = Callable[..., Any]


class Trace(TorchFunctionMode):
    """Follows channels through a module's operations by a rule for each.

    The labels of an activation are variables; rules make variables for the axes of weights, and make those the same
    that are one channel.

    Attributes:
        variables: all of them.
        axes: (tensor, axis) -> the variables of its entries.
        entries: tensor -> the variables of its entries, for a parameter that is used as an activation.
        reads: axes at which a weight reads channels.
        writes: axes at which it makes them; one that does both is shared by two layers.
        nested: (labels of channels, label of what they are part of), such as the dimensions of a head.
        touched: what each operation had to do with, and how it mixes these channels, if it does.
        held: what must stay where it is.
        used: names of the tensors that an operation was given.
    """

    def __init__(self, module: nn.Module, rules: Mapping[str, Rule]) -> None:
        super().__init__()
        self.rules = rules
        self.variables = Variables()
        self.axes: dict[tuple[str, int], Tensor] = {}
        self.entries: dict[str, Tensor] = {}
        self.reads: set[tuple[str, int]] = set()
        self.writes: set[tuple[str, int]] = set()
        self.nested: list[tuple[Tensor, Tensor]] = []
        self.touched: list[tuple[Tensor, Mixing | None]] = []
        self.held: list[Tensor] = []
        self.used: set[str] = set()
        self.path: list[str] = []
        self._wholes: list[tuple[Tensor, Tensor]] = []
        self._names: dict[int, str] = {}
        for name, x in module.state_dict(keep_vars=True).items():
            self._names.setdefault(id(x), name)
        # The activations are held too: an id is one tensor's only as long as that lives.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        for name, part in module.named_modules():
            part.register_forward_pre_hook(lambda m, args, n=name: self.path.append(n))
            part.register_forward_hook(lambda m, args, out: (self.path.pop(), None)[1])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        before = tensors_in((args, given))
        concerned = any(id(x) in self._known or id(x) in self._names for x in before)
        out = func(*args, **given)
        if not concerned or not tensors_in(out):
            return out
        self.used.update(self._names[id(x)] for x in before if id(x) in self._names)
        name = spelled(func)
        if name not in self.rules:
            if not all(bool((self.see(x).labels <= POSITION).all()) for x in before):
                raise self.refusal(name, "has no rule by which channels are followed through it")
            for x in tensors_in(out):  # of what has no channels, such as masks
                self.position(x)
            return out
        self.rules[name](Operation(self, func, name, out), *args, **given)
        return out

    def refusal(self, name: str, why: str) -> TransferError:
        where = f"in {self.path[-1]!r}" if self.path and self.path[-1] else "in the module itself"
        return TransferError(f"channel_groups: {name!r} {where} {why}")

    def named(self, x: Any) -> str | None:
        """The name of a tensor of the module's state."""
        return self._names.get(id(x))

    def follows(self, x: Any) -> bool:
        """Whether a tensor is an activation or of the module's state."""
        return id(x) in self._known or id(x) in self._names

    def axis(self, x: Any, axis: int, *, reads: bool = False) -> Tensor | None:
        """The variables of an axis of a tensor of the module's state; None if it is none."""
        if (name := self.named(x)) is None:
            return None
        key = name, axis % x.ndim
        (self.reads if reads else self.writes).add(key)
        if key not in self.axes:
            self.axes[key] = self.variables.fresh(x.shape[axis])
        return self.variables.of(self.axes[key])

    def see(self, x: Tensor) -> Seen:
        """What an operand's numbers belong to."""
        if id(x) in self._known:
            labels = self._known[id(x)][1]
        elif (name := self.named(x)) is not None and x.is_floating_point():
            if x.ndim == 1:
                labels = self.axis(x, 0)
                assert labels is not None
            else:
                if name not in self.entries:
                    self.entries[name] = self.variables.fresh(*x.shape)
                labels = self.entries[name]
        else:
            alike = x.numel() > 0 and bool((x == x.reshape(-1)[0]).all())
            labels = torch.full((1,) * x.ndim, CONSTANT if alike else POSITION)
        return Seen(compact(self.variables.of(labels)), x.shape)

    def give(self, x: Tensor, labels: Tensor) -> None:
        """Say what the numbers of a result belong to; labels of its shape or with size 1 where they are the same."""
        self._known[id(x)] = x, compact(self.variables.of(labels))

    def position(self, x: Tensor) -> None:
        """Say of a tensor that its numbers belong where they stand."""
        self.give(x, torch.full((1,) * x.ndim, POSITION))

    def nest(self, children: Tensor, parents: Tensor) -> None:
        """Say that channels are part of something, and may leave it only with all the others of it."""
        children, parents = torch.broadcast_tensors(self.variables.of(children), self.variables.of(parents))
        real = (children > POSITION) & (parents > POSITION) & (children != parents)
        if bool(real.any()):
            pairs = torch.stack([children[real], parents[real]]).unique(dim=1)
            self.nested.append((pairs[0], pairs[1]))

    def wholes(self, rows: Tensor) -> Tensor:
        """A label for each row of channels, the same as ever for the same channels."""
        known: dict[frozenset[int], int] = {}
        ids = self.variables.fresh(len(rows))
        self._wholes.append((rows, torch.where((rows <= POSITION).all(1), POSITION, ids)))
        for some, labels in self._wholes:
            for row, label in zip(self.variables.of(some).tolist(), labels.tolist(), strict=True):
                if (first := known.setdefault(frozenset(row), label)) != label:
                    self.variables.same(torch.tensor(first), torch.tensor(label))
        return self.variables.of(self._wholes[-1][1])

    def touch(self, labels: Iterable[Tensor], mixing: Mixing | None = None) -> None:
        """Tell apart the channels that an operation has to do with from those that it has not."""
        self.touched += [(x.unique(), mixing) for x in labels]


class Operation(NamedTuple):
    """One call of a torch function, and what rules do with it.

    Attributes:
        trace: what is known.
        func: the function.
        name: as `spelled`.
        out: what it returned.
    """

    trace: Trace
    func: Any
    name: str
    out: Any

    def refuse(self, why: str) -> TransferError:
        return self.trace.refusal(self.name, why)

    def match(self, seen: Seen, axis: int, ids: Tensor | None) -> bool:
        """Make an axis of an activation and an axis of a weight one and the same, over all positions.

        Returns whether the axis is one of channels: no channels but positions run along an axis in which nothing
        differs, though elsewhere it does.

        Raises:
            TransferError: for a weight that is not of the module's state.
        """
        if ids is None:
            raise self.refuse("is given a weight that is computed, not a parameter or buffer")
        variables, labels = self.trace.variables, seen.labels
        if (labels.shape[axis] == 1 and labels.numel() > 1) or bool((labels == CONSTANT).all()):
            variables.pin(ids)
            return False
        labels = labels.movedim(axis, -1)
        variables.same(labels, ids)
        # What reads zeros only stays: nothing says which of the zeros it reads.
        variables.pin(torch.where(labels == CONSTANT, ids, CONSTANT))
        return True

    def vector(self, x: Tensor) -> Tensor:
        """The variables of a weight with one axis, which may be computed: cast, or with one added."""
        return self.trace.see(x).whole

    def bundle(self, labels: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The labels of a sum over axes: one for each set of channels that is summed, of which they are a part.

        A sum over all channels there are is a number that belongs where it stands.
        """
        rest = labels.movedim(axes, tuple(range(-len(axes), 0)))
        shape = rest.shape[: labels.ndim - len(axes)]
        ones = (*shape, *(1,) * len(axes))
        rows, which = rest.reshape(shape.numel(), -1).sort(1).values.unique(dim=0, return_inverse=True)
        self.trace.touch([labels], Mixing(self.name, len(rows) > 1))
        if len(rows) == 1:
            new = rows.new_full((shape.numel(),), POSITION)
        else:
            ids = self.trace.wholes(rows)
            self.trace.nest(rows, ids[:, None])
            new = ids[which]
        return new.reshape(ones).movedim(tuple(range(-len(axes), 0)), axes)

    def mix(self, seen: Seen, axes: tuple[int, ...]) -> None:
        """Bind channels that are mixed without a weight to those that they are mixed with."""
        axes = tuple(axis % len(seen.shape) for axis in axes)
        if any(seen.labels.shape[axis] > 1 for axis in axes):
            self.bundle(seen.labels, axes)

    def give(self, labels: Tensor) -> None:
        self.trace.give(self.out, labels)


def spelled(func: Any) -> str:
    """A function's name, the same for a method, an operator and the variant that writes on its input."""
    name = str(getattr(func, "__name__", func))
    if name == "__get__":
        return f"get {func.__self__.__name__}"
    return name.strip("_")


def tensors_in(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
