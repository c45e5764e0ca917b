"""The rows of all ranks for the terms that need them, and sums over ranks in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._reads import flat
from ttransfer.core._spec import Expression
from ttransfer.core._transforms import SHARDS
from ttransfer.core._types import Batch
from ttransfer.dist._layout import Layout, domain_at
from ttransfer.dist._ops import all_reduce_joined, by_dtype, gather_rows
from ttransfer.dist._ranks import Ranks, Rows

__all__ = ["own_rows", "summed", "together"]

Leaves = Mapping[str, list[Tensor]]
"""term -> the tensors among its readings of rows, in the order of its form."""


def together(
    ranks: Ranks,
    expression: Expression,
    layout: Layout,
    prepared: Batch,
    rows: Mapping[str, Rows],
    local: Leaves,
    counts: Mapping[str, Tensor],
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Put the rows of all ranks together for the gathered terms, and add up counts, in one message.

    Args:
        ranks: who takes part.
        expression: of the step.
        layout: how its terms are split.
        prepared: what a prepared batch knows beside the fields.
        rows: domain -> what is known of its rows.
        local: readings of this rank's rows.
        counts: term -> how many items of its mean are here, for those that the number of rows does not tell.

    Returns:
        The readings of all rows for the gathered terms and this rank's own for the others, and the sums of the counts.
    """
    tensors = [count.reshape(1) for count in counts.values()]
    which = [rows[""].index] * len(counts)
    sizes = [rows[""].total] * len(counts)
    for name in layout.gathered:
        for domain, x in zip(_domains(expression, layout, name), local[name], strict=True):
            tensors.append(x)
            which.append(rows[domain].index)
            sizes.append(rows[domain].total * _per_row(name, domain, x, rows[domain].own))
    if not tensors:
        return dict(local), {}
    found = iter(gather_rows(tensors, prepared[SHARDS]["counts"], which, sizes, ranks.group))
    totals = {name: next(found).sum() for name in counts}
    return {n: [next(found) for _ in own] if n in layout.gathered else own for n, own in local.items()}, totals


def _domains(expression: Expression, layout: Layout, name: str) -> list[str]:
    """The domain of each tensor among a term's readings."""
    reads, form = flat(expression.terms[name].reads), layout.forms[name]
    return [domain_at(reads[i]) for leaf, i in zip(form.leaves, form.reads, strict=True) if isinstance(leaf, bool)]


def _per_row(name: str, domain: str, x: Tensor, n: int) -> int:
    """How many entries a reading has for each row of its domain."""
    if x.ndim and x.shape[0] % n == 0:
        return x.shape[0] // n
    raise TransferError(
        f"shard: term {name!r} needs the rows of all ranks, and reads {shown(x)} of {n} rows of {domain!r}: what does "
        "not go by rows cannot be put together; read something that does, or declare the term coupled=False if it is a "
        "mean over rows"
    )


def own_rows(expression: Expression, layout: Layout, rows: Mapping[str, Rows], local: Leaves, whole: Leaves) -> Leaves:
    """Take this rank's rows out of what is there for all rows of the gathered terms."""
    found: dict[str, list[Tensor]] = {}
    for name, values in whole.items():
        if name in layout.gathered:
            domains = _domains(expression, layout, name)
            found[name] = [
                _part(rows[domain], own.shape[0], x)
                for domain, own, x in zip(domains, local[name], values, strict=True)
            ]
        else:
            found[name] = values
    return found


def _part(rows: Rows, n: int, x: Tensor) -> Tensor:
    index = torch.arange(n, device=x.device) + rows.start * (n // rows.own)
    return x.index_select(0, index)


def summed(ranks: Ranks, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum tensors over the ranks, all of one dtype in one piece.

    Args:
        ranks: who takes part.
        tensors: of any shapes and dtypes.
    """
    out: list[Tensor] = list(tensors)
    for places, total in zip(by_dtype(tensors).values(), all_reduce_joined(tensors, ranks.group), strict=True):
        parts = total.split([tensors[i].numel() for i in places])
        for i, part in zip(places, parts, strict=True):
            out[i] = part.reshape(tensors[i].shape)
    return out
