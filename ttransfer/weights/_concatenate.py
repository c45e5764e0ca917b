"""Several tensors joined into one, and one cut into several: query, key and value, gates, experts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import expanded
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["concatenate", "split"]


def concatenate(parts: Sequence[str], to: str, *, dim: int = 0) -> WeightMap:
    r"""Join tensors along an axis, in the order in which the parts are given: query, key and value into one matrix.

    Each part is a name or a regular expression; what becomes one name of them is one tensor, so that one map does it
    in every layer, for weights and biases.

    Args:
        parts: a name, or a regular expression for whole names, for each part, in order.
        to: the name of the whole, with ``\1`` for what the first group of a part's expression matched.
        dim: the axis: 0 are the outputs of a layer.

    Returns:
        A `WeightMap`; what no part matches is passed on. The whole stands where its first part was.

    Raises:
        TransferError: for fewer than two parts; at use for a part that matches nothing or is missing in some place,
            for two tensors that would be one part, for shapes and dtypes that do not go together, and for a name that
            is taken.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {f"layer.{i}.{x}.weight": torch.ones(4, 4) for i in range(2) for x in ("query", "key", "value")}
        >>> parts = [rf"layer\.(\d)\.{x}\.(weight|bias)" for x in ("query", "key", "value")]
        >>> join = tt.weights.concatenate(parts, r"blocks.\1.qkv.\2")
        >>> for name, one in join.plan(src, {}).made.items():
        ...     print(name, one.sources, one.how)
        blocks.0.qkv.weight ('layer.0.query.weight', 'layer.0.key.weight', 'layer.0.value.weight') rows 4 + 4 + 4
        blocks.1.qkv.weight ('layer.1.query.weight', 'layer.1.key.weight', 'layer.1.value.weight') rows 4 + 4 + 4
    """
    wanted = _several("concatenate", "parts", parts)

    def routes(src: Tensors, like: Tensors) -> Routes:
        found: dict[str, list[str]] = {}
        for i, part in enumerate(wanted):
            for name, whole in _named("concatenate", part, to, src).items():
                have = found.setdefault(whole, [""] * len(wanted))
                if have[i]:
                    raise TransferError(
                        f"concatenate: both {have[i]!r} and {name!r} would be the part {part!r} of {whole!r}"
                    )
                have[i] = name
        for whole, names in found.items():
            for part, name in zip(wanted, names, strict=True):
                if not name:
                    there = " and ".join(repr(n) for n in names if n)
                    raise TransferError(f"concatenate: {whole!r} has no part {part!r}, and has {there}")
        goes: dict[str, list[str]] = {}
        for whole, names in found.items():
            for name in names:
                goes.setdefault(name, []).append(whole)
        made: dict[str, Route] = {}
        for name in src:
            if name in found and name not in goes:
                raise TransferError(f"concatenate: {name!r} is to be joined of parts, and is in the source already")
            if name not in goes:
                made[name] = taken(name)
            for whole in goes.get(name, ()):
                if whole not in made:
                    made[whole] = _joined(whole, found[whole], src, dim)
        return Routes(made)

    return routed(routes)


def split(whole: str, to: Sequence[str], *, sizes: Sequence[int] | None = None, dim: int = 0) -> WeightMap:
    r"""Cut tensors in pieces along an axis; the inverse of `concatenate`.

    Args:
        whole: a name, or a regular expression for whole names.
        to: the name of each piece, in order, with ``\1`` for what the first group of the expression matched.
        sizes: how many entries of the axis each piece has; None makes them equal.
        dim: the axis: 0 are the outputs of a layer.

    Returns:
        A `WeightMap`; what `whole` does not match is passed on. The pieces stand where the whole was, and are views
        of it along axis 0.

    Raises:
        TransferError: for fewer than two pieces, and for another number of sizes; at use if `whole` matches nothing,
            if the sizes do not add up or equal pieces leave a rest, and if two tensors get one name.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"blocks.0.qkv.weight": torch.ones(12, 4), "blocks.0.qkv.bias": torch.ones(12)}
        >>> cut = tt.weights.split(r"(.*)\.qkv\.(.*)", [rf"\1.{x}.\2" for x in ("q", "k", "v")])
        >>> print(tt.weights.show(cut.plan(src, {})))
        blocks.0.q.weight  <- blocks.0.qkv.weight  rows 0-3 of 12
        blocks.0.k.weight  <- blocks.0.qkv.weight  rows 4-7 of 12
        blocks.0.v.weight  <- blocks.0.qkv.weight  rows 8-11 of 12
        blocks.0.q.bias    <- blocks.0.qkv.bias    rows 0-3 of 12
        blocks.0.k.bias    <- blocks.0.qkv.bias    rows 4-7 of 12
        blocks.0.v.bias    <- blocks.0.qkv.bias    rows 8-11 of 12
    """
    names = _several("split", "pieces", to)
    if sizes is not None and (len(sizes) != len(names) or min(sizes) < 0):
        raise TransferError(f"split: wanted a size for each of {len(names)} pieces, got {tuple(sizes)}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        pieces = [_named("split", whole, name, src) for name in names]
        made: dict[str, Route] = {}
        origin: dict[str, str] = {}
        for name, x in src.items():
            new = {name: taken(name)}
            if name in pieces[0]:
                cuts = _cuts(name, x, len(names), sizes, dim)
                new = {}
                for piece, cut in zip(pieces, cuts, strict=True):
                    if piece[name] in new:
                        raise TransferError(f"split: two pieces of {name!r} would be {piece[name]!r}")
                    new[piece[name]] = cut
            for key, route in new.items():
                if key in made:
                    raise TransferError(f"split: both {origin[key]!r} and {name!r} would give {key!r}")
                made[key], origin[key] = route, name
        return Routes(made)

    return routed(routes)


def _several(whose: str, what: str, names: Sequence[str]) -> tuple[str, ...]:
    several = () if isinstance(names, str) else tuple(names)
    if len(several) < 2:
        raise TransferError(f"{whose}: wanted two {what} or more, got {names!r}")
    return several


def _named(whose: str, pattern: str, to: str, src: Tensors) -> dict[str, str]:
    """Source name -> the name that is made of it."""
    if pattern in src and "\\" not in to:
        return {pattern: to}
    return expanded(whose, pattern, to, src)


def _joined(whole: str, names: list[str], src: Tensors, dim: int) -> Route:
    first = src[names[0]]
    axis = _axis("concatenate", names[0], first, dim)
    for name in names[1:]:
        x = src[name]
        alike = x.ndim == first.ndim and all(
            m == n for i, (m, n) in enumerate(zip(x.shape, first.shape, strict=True)) if i != axis
        )
        if not alike or x.dtype != first.dtype:
            raise TransferError(
                f"concatenate: {names[0]!r} {shown(first)} and {name!r} {shown(x)} do not go together in {whole!r}: "
                f"they must agree in dtype, and in all axes but {axis}"
            )
    sizes = " + ".join(str(src[name].shape[axis]) for name in names)
    return Route(
        tuple(names), lambda *xs: torch.cat(xs, axis), f"rows {sizes}" if not axis else f"axis {axis}: {sizes}"
    )


def _cuts(name: str, x: Tensor, count: int, sizes: Sequence[int] | None, dim: int) -> list[Route]:
    axis = _axis("split", name, x, dim)
    length = x.shape[axis]
    if sizes is None and length % count:
        raise TransferError(f"split: {name!r} {shown(x)} gives no {count} equal pieces along axis {axis}; give sizes=")
    if sizes is not None and sum(sizes) != length:
        told = " + ".join(map(str, sizes))
        raise TransferError(f"split: {name!r} {shown(x)} has {length} along axis {axis}, and {told} is {sum(sizes)}")
    steps = [length // count] * count if sizes is None else list(sizes)
    starts = itertools.accumulate(steps, initial=0)
    return [_cut(name, axis, start, step, length) for start, step in zip(starts, steps, strict=False)]


def _cut(name: str, axis: int, start: int, step: int, length: int) -> Route:
    span = f"{start}-{start + step - 1} of {length}" if step else f"none of {length}"
    how = f"rows {span}" if not axis else f"axis {axis}: {span}"
    return Route((name,), lambda x: x.narrow(axis, start, step).contiguous(), how)


def _axis(whose: str, name: str, x: Tensor, dim: int) -> int:
    if not -x.ndim <= dim < x.ndim:
        raise TransferError(f"{whose}: {name!r} {shown(x)} has no axis {dim}")
    return dim % x.ndim
