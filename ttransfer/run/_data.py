"""A small loader of one domain that lies in memory: seeded, resumable, free of the global generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest

__all__ = ["Loader", "as_field", "loader", "mix"]

_LAST = ("keep", "drop", "pad")


class Loader:
    """Batches of one domain, made by `loader`; each iteration is an epoch.

    Example:
        >>> import torch
        >>> from ttransfer.run import loader
        >>> batches = loader({"x": torch.arange(5)}, batch_size=2, shuffle=False)
        >>> len(batches), [batch["x"].tolist() for batch in batches]
        (3, [[0, 1], [2, 3], [4]])
    """

    def __init__(self, fields: dict[str, Tensor], batch_size: int, seed: int, shuffle: bool, last: str) -> None:
        self._fields = fields
        self._rows = next(iter(fields.values())).shape[0]
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._last = last
        self._epoch = self._batch = 0  # where the epoch under way stands
        self._started = False  # whether the next iteration is to begin an epoch of its own

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._rows // self._batch_size if self._last == "drop" else -(-self._rows // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Begin the next epoch, or go on from a position that was just loaded."""
        if self._started or self._batch == len(self):
            self._epoch, self._batch = self._epoch + 1, 0
        self._started = True
        return self._run(self._epoch, self._batch)

    def _run(self, epoch: int, begin: int) -> Iterator[dict[str, Tensor]]:
        order = self._order(epoch)
        for batch in range(begin, len(self)):
            # Set before the batch is out, so that the position read with it is the one after it.
            self._epoch, self._batch = epoch, batch + 1
            rows = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            yield {name: field[rows.to(field.device)] for name, field in self._fields.items()}

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix(self._seed, epoch))
        order = torch.randperm(self._rows, generator=generator) if self._shuffle else torch.arange(self._rows)
        if self._last == "pad":
            return order[torch.arange(len(self) * self._batch_size) % self._rows]
        return order

    def reseeded(self, *parts: object) -> Loader:
        """Return a loader of the same rows at the start of its first epoch, its seed mixed with `parts`."""
        return Loader(self._fields, self._batch_size, mix(self._seed, *parts), self._shuffle, self._last)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, and what it belongs to."""
        return {"epoch": self._epoch, "batch": self._batch, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from a position.

        Raises:
            TransferError: if the position belongs to a loader of another order.
        """
        for key, own in self._identity().items():
            if state.get(key) != own:
                raise TransferError(f"loader: the position was saved with {key}={state.get(key)!r}, here it is {own!r}")
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._started = False

    def _identity(self) -> dict[str, Any]:
        names = ("rows", "batch_size", "seed", "shuffle", "last")
        return {name: getattr(self, f"_{name}") for name in names}


def loader(
    fields: Mapping[str, Any], *, batch_size: int, seed: int = 0, shuffle: bool = True, last: str = "keep"
) -> Loader:
    """Load one domain from memory, in batches.

    The order of an epoch follows from the seed and the epoch's number alone; torch's global generator is neither
    read nor moved. `state_dict()` and `load_state_dict()` keep and restore the position.

    Args:
        fields: name -> tensor or array of shape (n, ...), all with the same n.
        batch_size: rows per batch.
        seed: of the order.
        shuffle: whether each epoch has an order of its own; if not, rows come as they are.
        last: what becomes of the n mod batch_size rows at the end of an epoch: "keep" yields a smaller batch, "drop"
            leaves them out, "pad" fills the batch with the epoch's first rows (which then count twice).

    Returns:
        An iterable of {name: tensor}; each iteration is the next epoch. The tensors are copies.

    Raises:
        TransferError: for fields of unequal length, no fields, no rows, or an option that is out of range.

    Example:
        >>> import torch
        >>> from ttransfer.run import loader
        >>> for batch in loader({"x": torch.arange(5.0), "y": torch.arange(5)}, batch_size=3, last="pad"):
        ...     print(sorted(batch), batch["y"].tolist())
        ['x', 'y'] [1, 0, 3]
        ['x', 'y'] [2, 4, 1]
    """
    if last not in _LAST:
        raise TransferError(f"loader: last={last!r}, wanted one of {', '.join(_LAST)}{nearest(str(last), _LAST)}")
    if batch_size < 1:
        raise TransferError(f"loader: batch_size={batch_size!r}, wanted at least 1")
    if not fields:
        raise TransferError("loader: no fields; give a mapping such as {'x': images, 'y': labels}")
    tensors = {name: as_field(f"loader: field {name!r}", value) for name, value in fields.items()}
    for name, value in tensors.items():
        if value.ndim == 0:
            raise TransferError(f"loader: field {name!r} is a single {value.dtype} number, wanted shape (n, ...)")
    rows = {name: value.shape[0] for name, value in tensors.items()}
    if len(set(rows.values())) > 1:
        raise TransferError(f"loader: the fields have different numbers of rows: {rows}")
    made = Loader(tensors, int(batch_size), int(seed), bool(shuffle), last)
    if not len(made):
        raise TransferError(f"loader: {max(rows.values())} rows make no batch of {batch_size} with last={last!r}")
    return made


def as_field(name: str, value: Any) -> Tensor:
    """Return what a batch may hold under a field's name; `name` says in errors where it is."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TransferError(f"{name} is a {type(value).__name__}, wanted a tensor or an array: {error}") from error


def mix(*parts: object) -> int:
    """Return a seed that depends on all parts, far from the seeds of parts that are near.

    Example:
        >>> mix(0, "source") != mix(0, "target")
        True
    """
    text = "/".join(map(repr, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
