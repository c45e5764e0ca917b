"""TIES: task vectors without what is small, and without those that pull the other way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._merging import Number, merged, named, party, real, single, statistic, wide
from ttransfer.weights._numbers import python_number, want_number, want_numbers
from ttransfer.weights._pool import MARK
from ttransfer.weights._routes import Routes, Tensors, routed, spelt

__all__ = ["ties", "ties_thresholds"]


def ties(
    density: float = 0.2,
    *,
    thresholds: Mapping[str, Number] | None = None,
    scale: Number = 1.0,
    base: str = "base",
) -> WeightMap:
    r"""Merge task vectors: trim each to its largest entries, elect a sign for every entry, average those that have it.

    .. math:: \gamma = \operatorname{sgn} \sum_i \hat\tau_i, \qquad
        \tau = \frac{\sum_i \hat\tau_i\, [\operatorname{sgn} \hat\tau_i = \gamma]}
        {\max(1, \sum_i [\operatorname{sgn} \hat\tau_i = \gamma \ne 0])}, \qquad \theta = \theta_0 + \lambda \tau

    where :math:`\hat\tau_i` is :math:`\tau_i = \theta_i - \theta_0` with all but the largest magnitudes set to 0.

    The paper and its code trim a whole task vector at once, so that some tensors lose more than others: give
    `thresholds` of `tt.weights.ties_thresholds` for that. Without them each tensor is trimmed by itself. Running means
    and variances are averaged instead, and integer tensors are the base's, and so are all dtypes.

    Args:
        density: fraction of each tensor's entries to keep, a Python number from 0 to 1; rounded, one at least; equals
            are kept together.
        thresholds: name -> magnitude, for these checkpoints alone: what is smaller is trimmed, whatever `density` is.
        scale: lambda.
        base: its name in the pool.

    Returns:
        A `WeightMap` from a pool to one checkpoint.

    Raises:
        TransferError: for another `density`; at use, for a checkpoint that is not there, or checkpoints that differ in
            names or shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> start, a, b = (
        ...     {"w": torch.tensor(x)} for x in ([0.0, 0.0, 0.0], [3.0, 1.0, 0.1], [-1.0, 2.0, 0.2])
        ... )
        >>> tt.weights.ties(2 / 3).apply(tt.weights.pool(base=start, a=a, b=b), {})["w"]
        tensor([3.0000, 1.5000, 0.0000])

    References:
        Prateek Yadav, Derek Tam, Leshem Choshen, Colin Raffel, Mohit Bansal. TIES-Merging: Resolving Interference When
        Merging Models. 2023. (The authors' code keeps one entry more, and gives entries whose sum is exactly 0 the
        sign of the sum of all entries; here they are 0, as in the paper.)
    """
    _check_density("ties", density)
    want_number("ties", "scale", scale)
    if thresholds is not None:
        if not isinstance(cast(object, thresholds), Mapping):
            raise TransferError(f"ties: wanted name -> magnitude for 'thresholds', got {shown(thresholds)}")
        want_numbers("ties", "thresholds", thresholds)

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("ties", src, names=named(thresholds), base=base)

        def make(start: Tensor, *tuned: Tensor) -> Tensor:
            change = torch.stack(tuned) - start
            if thresholds is None:
                kept = torch.stack([x.abs() >= _threshold(x.abs(), density) for x in change.unbind()])
            else:
                least = [single(thresholds[name], start) for name in who.names]
                kept = torch.stack([x.abs() >= least for x, least in zip(change.unbind(), least, strict=True)])
            trimmed = torch.where(kept, change, torch.zeros_like(change))
            sign = trimmed.sum(0).sign()
            agree = (trimmed.sign() == sign) & (sign != 0)
            total = torch.where(agree, trimmed, torch.zeros_like(trimmed)).sum(0)
            mean = total / agree.sum(0).clamp(min=1)
            mean = torch.where(change.isnan().any(0), torch.nan, mean)  # which no comparison keeps
            return start + single(scale, start) * mean

        trim = f"{spelt(density)} of each kept" if thresholds is None else "trimmed to thresholds"
        return merged(src, who, f"{base} and {len(who.names)} task vectors, {trim}, signs elected", make)

    return routed(routes)


def ties_thresholds(pool: Tensors, density: float = 0.2, *, base: str = "base") -> dict[str, Tensor]:
    """Say which magnitude an entry of each whole task vector must have to be among its largest.

    Args:
        pool: the base and what was tuned from it.
        density: fraction of all entries to keep, 0 to 1; rounded, one at least; statistics of batch norm and integer
            tensors are not counted.
        base: its name in the pool.

    Returns:
        name -> 0-d tensor, for `thresholds` of `tt.weights.ties`.

    Raises:
        TransferError: for another `density`, a base that is not there, or checkpoints that differ in names or shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> tuned = {"w": torch.arange(4.0), "b": torch.tensor([9.0])}
        >>> both = tt.weights.pool(base={name: torch.zeros_like(x) for name, x in tuned.items()}, a=tuned)
        >>> tt.weights.ties_thresholds(both, density=0.4)
        {'a': tensor(3.)}

    References:
        Prateek Yadav, Derek Tam, Leshem Choshen, Colin Raffel, Mohit Bansal. TIES-Merging: Resolving Interference When
        Merging Models. 2023.
    """
    _check_density("ties_thresholds", density)
    who = party("ties_thresholds", pool, base=base)
    names = [name for name in who.tensors if real(pool[f"{base}{MARK}{name}"]) and not statistic(name)]
    if not names:
        raise TransferError("ties_thresholds: there is no tensor of real numbers")

    def change(member: str, name: str) -> Tensor:
        x, start = pool[f"{member}{MARK}{name}"], pool[f"{base}{MARK}{name}"]
        return (x.to(wide(x)) - start.to(wide(x))).abs().flatten()

    return {who: _threshold(torch.cat([change(who, name) for name in names]), density) for who in who.names}


def _threshold(sizes: Tensor, density: float) -> Tensor:
    """The smallest of the largest; what no entry reaches is kept nowhere if there are none."""
    sizes, count = sizes.flatten(), sizes.numel()
    if not count:
        return sizes.sum()
    return sizes.kthvalue(count - max(1, round(density * count)) + 1).values


def _check_density(whose: str, density: float) -> None:
    python_number(whose, "density", density)
    if not 0 < density <= 1:
        raise TransferError(f"{whose}: density must be above 0 and at most 1, got {density!r}")
