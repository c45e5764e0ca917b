"""What maps that merge checkpoints have in common: whom they merge, by what weights, and in what precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.weights._pool import MARK, members
from ttransfer.weights._routes import Route, Routes, Tensors, identity, taken, twins

__all__ = [
    "Number",
    "Numbers",
    "Party",
    "alike",
    "given_for",
    "mean_of",
    "merged",
    "named",
    "numbers",
    "party",
    "real",
    "rest",
    "single",
    "statistic",
    "wide",
]

Number = float | Tensor
Numbers = Number | Sequence[Number] | Mapping[str, Number]


class Party(NamedTuple):
    """Checkpoints to merge.

    Attributes:
        base: the one that the others were tuned from; "" where there is none.
        names: of the others, in the pool's order.
        tensors: names that all of them have, in the order of the first.
    """

    base: str
    names: tuple[str, ...]
    tensors: tuple[str, ...]

    def of(self, tensor: str, *, base: bool = True) -> tuple[str, ...]:
        """The names in the pool of one tensor, the base's first."""
        who = (self.base, *self.names) if base and self.base else self.names
        return tuple(f"{name}{MARK}{tensor}" for name in who)


def party(whose: str, src: Tensors, *, names: Sequence[str] | None = None, base: str = "", least: int = 1) -> Party:
    """Say who is merged, and check that they are alike.

    Args:
        whose: the map that asks.
        src: a pool.
        names: whom to merge; None is all but the base. They count in the pool's order, however they are named.
        base: the member that the others were tuned from.
        least: how many there must be, the base aside.

    Raises:
        TransferError: for a member that is not there, too few, or tensors that differ in name, shape or kind.
    """
    found = members(whose, src)
    for name in (*(names or ()), *((base,) if base else ())):
        if name not in found:
            raise TransferError(f"{whose}: the pool has no {name!r}{nearest(name, found)}")
    if base and names is not None and base in names:
        raise TransferError(f"{whose}: {base!r} is the base, and cannot be among those that were tuned from it")
    chosen = tuple(name for name in found if (name != base if names is None else name in names))
    if len(chosen) < least:
        raise TransferError(f"{whose}: wanted at least {least} checkpoints{' beside the base' if base else ''}, got "
                            f"{', '.join(map(repr, chosen)) or 'none'}")  # fmt: skip
    first, *others = (base, *chosen) if base else chosen
    for other in others:
        _check_alike(whose, first, found[first], other, found[other])
    return Party(base, chosen, tuple(found[first]))


def _check_alike(whose: str, first: str, here: Tensors, other: str, there: Tensors) -> None:
    for one, a, two, b in ((first, here, other, there), (other, there, first, here)):
        if left := [name for name in a if name not in b]:
            raise TransferError(
                f"{whose}: {one!r} has {left[0]!r}, one of {len(left)} tensors that {two!r} has not"
                f"{nearest(left[0], [name for name in b if name not in a])}"
            )
    for name, x in here.items():
        y = there[name]
        if x.shape != y.shape or real(x) != real(y) or x.is_complex() != y.is_complex():
            raise TransferError(
                f"{whose}: {name!r} is {shown(x)} in {first!r} and {shown(y)} in {other!r}; make them fit first"
            )


def real(x: Tensor) -> bool:
    """Whether a tensor holds numbers that can be averaged, and no counters or masks."""
    return x.is_floating_point() or x.is_complex()


def statistic(name: str) -> bool:
    """Whether a tensor is what batch norm has counted: no sum of differences may make a variance negative."""
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def wide(x: Tensor) -> torch.dtype:
    """What to compute a tensor in: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def single(value: Number, x: Tensor) -> Number:
    """A number for tensors of x's kind."""
    return value.to(device=x.device, dtype=_plain(x)) if isinstance(value, Tensor) else value


def _plain(x: Tensor) -> torch.dtype:
    return x.real.dtype if x.is_complex() else x.dtype


def named(weights: Numbers | None) -> tuple[str, ...] | None:
    """Whom a mapping of weights names."""
    return tuple(weights) if isinstance(weights, Mapping) else None


def numbers(whose: str, weights: Numbers, names: Sequence[str], x: Tensor) -> Tensor:
    """Weights as one vector in x's precision, through which gradients go.

    Raises:
        TransferError: unless there is one for each.
    """
    if isinstance(weights, Mapping):
        weights = [weights[name] for name in names]
    if isinstance(weights, Tensor):
        given = weights.reshape(1).expand(len(names)) if weights.ndim == 0 else weights
    elif isinstance(weights, Sequence):
        given = torch.stack([torch.as_tensor(w, dtype=_plain(x), device=x.device) for w in weights]) if weights else x
    else:
        given = torch.full((len(names),), float(weights), dtype=_plain(x), device=x.device)
    if given.shape != (len(names),):
        raise TransferError(f"{whose}: {len(names)} checkpoints want {len(names)} numbers, got {shown(given)}")
    return given.to(device=x.device, dtype=_plain(x))


def mean_of(*tensors: Tensor) -> Tensor:
    """The mean, in the first one's dtype."""
    return sum((x.to(wide(x)) for x in tensors[1:]), tensors[0].to(wide(tensors[0]))).div(len(tensors)).to(
        tensors[0].dtype
    )  # fmt: skip


def given_for(whose: str, what: str, given: Tensors, src: Tensors, who: Party) -> dict[str, tuple[str, ...]]:
    """Of each tensor for which something is given the names that it is under, which may be those of a twin.

    named_parameters() has one name for tied weights, a state dict has all.

    Args:
        whose: the map that asks.
        what: is given.
        given: a pool of it.
        src: a pool of checkpoints.
        who: is merged.

    Raises:
        TransferError: where one tensor is given two under two names.
    """
    same = twins(src, {name: who.of(name) for name in who.tensors})
    found: dict[str, tuple[str, ...]] = {}
    for name in who.tensors:
        have = [other for other in same[name] if any(source in given for source in who.of(other))]
        for other in have[1:]:
            for one, two in zip(who.of(have[0]), who.of(other), strict=True):
                if one in given and two in given and identity(given[one]) != identity(given[two]):
                    raise TransferError(
                        f"{whose}: {one!r} and {two!r} are one tensor, and each has a {what} of its own; give one "
                        "that is for all of its uses"
                    )
        if have:
            found[name] = who.of(have[0])
    return found


def rest(src: Tensors, who: Party, why: str = "not among those that are merged") -> dict[str, str]:
    """Why tensors of members that take no part go nowhere."""
    those = {who.base, *who.names}
    return {name: why for name in src if name.partition(MARK)[0] not in those}


def merged(
    src: Tensors,
    who: Party,
    how: str,
    make: Callable[..., Tensor],
    *,
    statistics: Callable[..., Tensor] | None = None,
) -> Routes:
    """The routes of a map that makes every real tensor in one way.

    Integer tensors are those of the first in the pool, or of the base if there is one. Others are of the base's dtype,
    or of one that holds all. Where there is a base, what batch norm has counted is averaged over those that were tuned,
    unless the map has a way of its own.

    Args:
        src: a pool.
        who: is merged.
        how: in a few words.
        make: (base if there is one, *others) -> tensor, in the precision that they come in.
        statistics: the same for running means and variances.
    """
    made: dict[str, Route] = {}
    unused = rest(src, who)
    for name in who.tensors:
        first, *others = who.of(name)
        if not real(src[first]):
            made[name] = taken(first)
            unused.update(dict.fromkeys(others, f"integers are those of {first.partition(MARK)[0]!r}"))
        elif statistic(name) and statistics is not None:
            made[name] = alike(src, who.of(name), _widely(statistics), f"{how}, as a statistic", who.base and first)
        elif statistic(name) and who.base:
            made[name] = alike(src, tuple(others), mean_of, "mean: a statistic", first)
            unused[first] = "statistics are averaged over those that were tuned"
        else:
            made[name] = alike(src, who.of(name), _widely(make), how, who.base and first)
    return Routes(made, unused=unused)


def alike(src: Tensors, sources: tuple[str, ...], make: Callable[..., Tensor], how: str, of: str = "") -> Route:
    """A route for tensors that may be of several dtypes: computed in one that holds all.

    Args:
        src: a pool.
        sources: the tensors.
        make: gets them in one dtype.
        how: in a few words, to which the dtypes are added if they differ.
        of: the tensor that has the dtype of the result; "" for that which holds all.
    """
    dtypes = [src[source].dtype for source in sources]
    to = src[of].dtype if of else functools.reduce(torch.promote_types, dtypes)
    most = functools.reduce(torch.promote_types, dtypes, to)
    if all(dtype == to for dtype in dtypes):
        return Route(sources, make, how)
    told = " and ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return Route(
        sources,
        lambda *tensors: make(*(x.to(most) for x in tensors)).to(to),
        f"{how}, {told} -> {str(to).removeprefix('torch.')}",
    )


def _widely(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*tensors: Tensor) -> Tensor:
        dtype = wide(tensors[0])
        return make(*(x.to(dtype) for x in tensors)).to(tensors[0].dtype)

    return run
