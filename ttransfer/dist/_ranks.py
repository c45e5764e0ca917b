"""Who takes part, and what the ranks tell each other of their rows before each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._transforms import SHARDS, TOTALS
from ttransfer.core._types import Batch
from ttransfer.dist._channel import channel

__all__ = ["Ranks", "Rows", "agreed", "any_of", "rows_in", "rows_of_domains", "table_of", "with_rows"]

_REFUSED = -1


class Ranks(NamedTuple):
    """A group of processes, as one of them sees it."""

    rank: int
    size: int
    group: str


class Rows(NamedTuple):
    """What the graph knows of a domain's rows.

    Attributes:
        index: of the domain.
        share: 0-d float64, this rank's part of them.
        start: 0-d int64, the number of this rank's first row.
        own: how many there are here.
        total: how many there are on all ranks.
    """

    index: int
    share: Tensor
    start: Tensor
    own: int
    total: int


def table_of(ranks: Ranks, numbers: Sequence[int]) -> list[list[int]]:
    """Return what every rank says: a row of numbers each, in the order of ranks."""
    if ranks.size == 1:
        return [list(numbers)]
    to = channel(ranks.group)
    own = torch.tensor(numbers, dtype=torch.int64, device=to.device)
    out = own.new_empty(ranks.size * len(numbers))
    to.all_gather(out, own)
    return out.view(ranks.size, -1).tolist()


def any_of(ranks: Ranks, here: bool) -> bool:
    """Say whether something is so on any rank."""
    return any(said for (said,) in table_of(ranks, [int(here)]))


def agreed(
    ranks: Ranks, domains: Sequence[str], batch: Any, axis: int, check: Callable[[], Batch]
) -> tuple[Batch, list[list[int]]]:
    """Check this rank's batch, and learn of all ranks' numbers of rows.

    Returns:
        What `check` returns, and for each rank the rows of each domain.

    Raises:
        TransferError: on every rank, if one of them has no batch for the step.
    """
    problem: Exception | None = None
    checked: Batch = {}
    try:
        checked = check()
    except Exception as error:  # told to the others first, who would wait for this rank
        problem = error
    rows = [rows_in(batch, domain, axis) for domain in domains]
    table = table_of(ranks, [_REFUSED if problem is not None else 0, *rows])
    for i, domain in enumerate(domains, 1):
        have = [said[i] for said in table]
        if 0 in have:
            raise TransferError(
                f"shard: domain {domain!r} has no rows on rank {have.index(0)} (rows by rank: {have}); each of the "
                f"{ranks.size} ranks needs one at least: drop or pad a last batch that is smaller"
            ) from problem
    if problem is not None:
        raise problem
    refused = [rank for rank, said in enumerate(table) if said[0] == _REFUSED]
    if refused:
        raise TransferError(
            f"shard: rank {refused[0]} refused its batch, so this step is not taken; its own error says why"
        )
    return checked, [said[1:] for said in table]


def rows_in(batch: Any, domain: str, axis: int) -> int:
    """The rows of a domain in a batch that nobody has checked yet; below 0 where there are none to be seen."""
    try:
        return int(next(iter(batch[domain].values())).shape[axis])
    except Exception:  # whatever it is, the check names it
        return _REFUSED


def with_rows(
    ranks: Ranks, batch: Batch, domains: Sequence[str], table: Sequence[Sequence[int]], device: torch.device
) -> dict[str, Mapping[str, Tensor]]:
    """Put what is known of all ranks' rows into a batch."""
    counts = torch.tensor([*zip(*table, strict=True), [1] * ranks.size], dtype=torch.int64)
    totals = counts.sum(1)
    share = counts[:, ranks.rank] / totals.to(torch.float64)
    start = counts[:, : ranks.rank].sum(1)
    known = {"counts": counts, "share": share.to(device), "start": start.to(device)}
    sizes = {domain: torch.empty(int(n), 0) for domain, n in zip(domains, totals.tolist(), strict=False)}
    return {**batch, SHARDS: known, TOTALS: sizes}


def rows_of_domains(prepared: Batch, own: Mapping[str, int]) -> dict[str, Rows]:
    """domain -> what is known of its rows; "" stands for one row on every rank.

    Args:
        prepared: a prepared batch.
        own: domain -> how many rows are here.
    """
    known, sizes = prepared[SHARDS], prepared[TOTALS]
    shares, starts = known["share"].unbind(), known["start"].unbind()
    # A phase of a game may read some of the domains only.
    places = [(i, domain) for i, domain in enumerate(sizes) if domain in own]
    found = {d: Rows(i, shares[i], starts[i], own[d], sizes[d].shape[0]) for i, d in places}
    ones = len(sizes)
    found[""] = Rows(ones, shares[ones], starts[ones], 1, known["counts"].shape[1])
    return found
