"""Each rank's part of batches that all ranks draw alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from ttransfer.core._types import Batch
from ttransfer.dist._shard import ranks_of

__all__ = ["Sliced", "sliced"]


class Sliced:
    """This rank's rows of each batch of a source, made by `sliced`.

    Its place can be saved if that of the source can.

    Example:
        >>> import torch, ttransfer as tt
        >>> batches = tt.dist.sliced([{"source": {"x": torch.arange(5)}}], tt.dist.init())
        >>> [batch["source"]["x"].tolist() for batch in batches]
        [[0, 1, 2, 3, 4]]
    """

    def __init__(self, source: Iterable[Batch], rank: int, size: int) -> None:
        self._source, self._rank, self._size = source, rank, size

    def __iter__(self) -> Iterator[dict[str, dict[str, Tensor]]]:
        """Begin, or go on, as the source does."""
        return (self._part(batch) for batch in self._source)

    def _part(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        return {domain: {field: self._rows(x) for field, x in fields.items()} for domain, fields in batch.items()}

    def _rows(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        return x[self._rank * n // self._size : (self._rank + 1) * n // self._size]

    def __getattr__(self, name: str) -> Any:
        """Let the source tell and find its place."""
        if name in ("state_dict", "load_state_dict"):
            return getattr(self._source, name)
        raise AttributeError(name)


def sliced(batches: Iterable[Batch], mesh: Any) -> Sliced:
    """Take this rank's rows of each batch: all ranks draw the same batches, and each keeps its part.

    The parts are consecutive and as equal as can be, so that a sharded run sees the batches, and makes the dropout
    masks, that one process would. For data that no process should read whole, give each rank batches of its own
    instead; ranks in order are then the batch.

    Args:
        batches: the same on all ranks, such as `tt.domains(...)`.
        mesh: what `tt.dist.init` returns.

    Returns:
        An iterable of {domain: {field: tensor}}, for `tt.fit` too.

    Example:
        >>> import torch, ttransfer as tt
        >>> from ttransfer.run import domains, loader
        >>> batches = domains(source=loader({"x": torch.arange(4)}, batch_size=4, shuffle=False))
        >>> next(iter(tt.dist.sliced(batches, tt.dist.init())))["source"]["x"].tolist()
        [0, 1, 2, 3]
    """
    ranks = ranks_of(mesh)
    return Sliced(batches, ranks.rank, ranks.size)
