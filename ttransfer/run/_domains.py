"""Domains zipped to a batch of domains, and a place in an endless stream that can be found again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.run._data import Loader, as_field

__all__ = ["Cursor", "Domains", "domains", "warn_of_replay"]

_NOTHING: Any = object()


@runtime_checkable
class _Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Cursor:
    """A place in a source that starts again whenever it ends.

    An item may be drawn first and taken later: when several cursors move together and one fails, none has moved.
    """

    def __init__(self, name: str, source: Any) -> None:
        if not isinstance(source, Iterable) or isinstance(source, (Mapping, str, bytes, Tensor)):
            raise TransferError(
                f"{name} is a {type(cast(Any, source)).__name__}, wanted a loader: a DataLoader, a list of batches, "
                "or tt.loader of tensors"
            )
        self.name = name
        self._source: Iterable[Any] = cast(Iterable[Any], source)
        self._iterator: Iterator[Any] | None = None
        self._count = 0
        self._drawn = _NOTHING
        self._before: Any = None

    def draw(self) -> Any:
        """Return the next item, the same one until it is taken."""
        if self._drawn is _NOTHING:
            # Only our own loader's position is always cheap to read.
            self._before = self._source.state_dict() if isinstance(self._source, Loader) else None
            self._drawn = self._next()
        return self._drawn

    def take(self) -> Any:
        """Return the next item and move past it."""
        item = self.draw()
        self._drawn = _NOTHING
        self._count += 1
        return item

    def _next(self) -> Any:
        # Twice, because the epoch under way may be at its end.
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self._source)
            try:
                return next(self._iterator)
            except StopIteration:
                if self._iterator is self._source and self._count:
                    raise TransferError(
                        f"{self.name} ended after {self._count} batches and cannot start again, being an iterator; "
                        "give what it iterates over: a DataLoader, a list, or tt.loader of tensors"
                    ) from None
                self._iterator = None
        raise TransferError(f"{self.name} is empty: it yields no batch")

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last item taken."""
        if not isinstance(self._source, _Stateful):
            return {"count": self._count}
        if self._drawn is _NOTHING:
            return {"count": self._count, "state": self._source.state_dict()}
        if self._before is None:
            raise TransferError(f"{self.name} has yielded a batch that was not used: its place cannot be saved")
        return {"count": self._count, "state": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Go to a place; say whether that took a replay whose batches may differ from those of the first time."""
        begun, self._iterator, self._drawn, self._count = self._iterator, None, _NOTHING, 0
        if isinstance(self._source, _Stateful) and "state" in state:
            self._source.load_state_dict(state["state"])
            self._count = int(state["count"])
            return False
        if begun is not None and begun is self._source:
            raise TransferError(f"{self.name} is an iterator that has begun, and cannot go back; make it anew")
        while self._count < int(state["count"]):
            self.take()
        return self._count > 0 and not isinstance(self._source, (list, tuple))


def warn_of_replay(names: Iterable[str]) -> None:
    """Warn once of all sources whose place had to be found by replaying them."""
    if found := ", ".join(names):
        warnings.warn(
            f"{found}: no state_dict, so the batches already used were drawn again and dropped. The run goes on as an "
            "unbroken one would only if they come in the same order each time; tt.loader restores it exactly.",
            UserWarning,
            stacklevel=3,
        )


class Domains:
    """An endless stream of batches of domains, made by `domains`.

    Example:
        >>> import torch
        >>> from ttransfer.run import domains
        >>> batches = domains(source=[{"x": torch.ones(2, 3)}], target=[{"x": torch.zeros(4, 3)}])
        >>> {name: tuple(fields["x"].shape) for name, fields in next(batches).items()}
        {'source': (2, 3), 'target': (4, 3)}
    """

    def __init__(self, cursors: dict[str, Cursor], fields: tuple[str | None, ...]) -> None:
        self._cursors = cursors
        self._fields = fields

    def __iter__(self) -> Domains:
        """Go on from where the stream stands."""
        return self

    def __next__(self) -> dict[str, dict[str, Tensor]]:
        """Return the next batch of every domain; if one domain fails, none moves."""
        batch = {name: _named(name, cursor.draw(), self._fields) for name, cursor in self._cursors.items()}
        for cursor in self._cursors.values():
            cursor.take()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return every domain's position."""
        return {name: cursor.state_dict() for name, cursor in self._cursors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position; warn once of the domains that had to be replayed.

        Raises:
            TransferError: if the position belongs to other domains.
        """
        for name in {**self._cursors, **state}:
            if name not in state or name not in self._cursors:
                here, there = ("saved", self._cursors) if name in state else ("here", state)
                raise TransferError(f"domains: {name!r} is {here} only{nearest(name, there)}")
        warn_of_replay([repr(name) for name, cursor in self._cursors.items() if cursor.load_state_dict(state[name])])


def domains(
    loaders: Mapping[str, Any] | None = None,
    /,
    *,
    seed: int = 0,
    fields: Sequence[str | None] = ("x", "y"),
    **more: Any,
) -> Domains:
    """Zip domains to an endless stream of batches of domains.

    Every domain starts again by itself when it ends, so unequal lengths cycle, each in epochs of its own. Batches
    have the sizes that the loaders give them, smaller last ones included. `state_dict()` and `load_state_dict()`
    keep and restore the position: exactly for sources that have both (those of `loader`, and torchdata's
    StatefulDataLoader); any other source is replayed from its start, with one warning.

    Args:
        loaders: domain -> what yields its batches again at each iteration: a `loader`, a DataLoader, a list.
        seed: mixed with the domain's name into the order of every `loader`, so that domains of one length are not
            shuffled alike, and one number changes all. It does nothing to other sources.
        fields: names for batches that are tuples or a tensor, in order; None leaves an item out.
        **more: domains by keyword.

    Returns:
        An iterator of {domain: {field: tensor}}.

    Raises:
        TransferError: for no domains, a source that cannot be iterated over, or, with the batch at hand, one that is
            empty or is no mapping, tuple or tensor of tensors.

    Example:
        >>> import torch
        >>> from ttransfer.run import domains, loader
        >>> source = loader({"x": torch.arange(4), "y": torch.arange(4)}, batch_size=2)
        >>> target = loader({"x": torch.arange(3)}, batch_size=2, shuffle=False)
        >>> batches = domains(source=source, target=target)
        >>> [next(batches)["target"]["x"].tolist() for _ in range(3)]
        [[0, 1], [2], [0, 1]]
    """
    given = {**(loaders or {}), **more}
    if not given:
        raise TransferError("domains: none given; wanted, for example, domains(source=loader, target=loader)")
    cursors: dict[str, Cursor] = {}
    for name, source in given.items():
        own = source.reseeded(seed, name) if isinstance(source, Loader) else source
        cursors[name] = Cursor(f"domain {name!r}", own)
    return Domains(cursors, tuple(fields))


def _named(domain: str, item: Any, names: tuple[str | None, ...]) -> dict[str, Tensor]:
    """Return one domain's batch as field -> tensor."""
    if isinstance(item, Mapping):
        found = dict(cast(Mapping[str, Any], item))
    else:
        values = cast(Sequence[Any], item if isinstance(item, (tuple, list)) else (item,))
        if len(values) > len(names):
            raise TransferError(
                f"domain {domain!r} yields {len(values)} items, fields={names} names {len(names)}; "
                "name them all (None leaves an item out)"
            )
        found = {name: value for name, value in zip(names, values, strict=False) if name is not None}
    return {name: as_field(f"domain {domain!r}, field {name!r}", value) for name, value in found.items()}
