"""Position embeddings for another grid of patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import named, spelled
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["interpolate_pos_embed", "interpolate_pos_embed_corners"]

Grid = tuple[int, int]
Prefix = int | tuple[int, int]
Resample = Callable[[Tensor, Grid], Tensor]


def interpolate_pos_embed(
    name: str | Sequence[str] = "pos_embed",
    *,
    prefix_tokens: Prefix = 1,
    grid: Grid | None = None,
    old_grid: Grid | None = None,
) -> WeightMap:
    """Resample a table of absolute position embeddings for another grid of patches: bicubic, antialiased, as timm.

    Args:
        name: of the table, or expressions for several: (1, tokens, d), (tokens, d) or (1, h, w, d). The last has no
            prefix tokens.
        prefix_tokens: how many tokens stand before the grid (class, distillation, registers); a pair for the source's
            and the target's. They are passed on as they are; those that the target has not are left out, the last
            first, and those that the source has not are zeros, after the others.
        grid: rows and columns of patches in the target; None takes them from the target's shape, a square if it
            counts tokens.
        old_grid: of the source; None is a square if it counts tokens.

    Returns:
        A `WeightMap`; other tensors are passed on. It computes in at least float32. A table whose grid is right
        already is passed on as it is.

    Raises:
        TransferError: for a grid or a number of tokens below one and zero; at use if the name is not there, for
            numbers of tokens that are not those of the grid, and where no grid is given and it is no square.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"pos_embed": torch.ones(1, 1 + 14 * 14, 192)}
        >>> like = {"pos_embed": torch.ones(1, 1 + 16 * 16, 192)}
        >>> print(tt.weights.show(tt.weights.interpolate_pos_embed().plan(src, like)))
        pos_embed  <- pos_embed  grid 14x14 -> 16x16, bicubic
        >>> wide = tt.weights.interpolate_pos_embed(prefix_tokens=(1, 0), grid=(16, 24))
        >>> wide.apply(src, {})["pos_embed"].shape
        torch.Size([1, 384, 192])

    Checked against: timm's resample_abs_pos_embed and resample_abs_pos_embed_nhwc.
    Peers: timm computes in float32 whatever the dtype: in float64 it is off by 5e-6. Without `old_size` it takes the
    integer part of the root of a number of tokens that is no square, and then fails in a reshape.
    """
    return _interpolating("interpolate_pos_embed", name, prefix_tokens, grid, old_grid, "bicubic", _antialiased)


def interpolate_pos_embed_corners(
    name: str | Sequence[str] = "encoder.pos_embedding",
    *,
    prefix_tokens: Prefix = 1,
    grid: Grid | None = None,
    old_grid: Grid | None = None,
) -> WeightMap:
    """Resample a table of absolute position embeddings for another grid of patches, as torchvision.

    Bicubic, the corners of one grid on those of the other, and not antialiased.

    Args:
        name: as for `interpolate_pos_embed`, and so are the others.
        prefix_tokens: how many tokens stand before the grid.
        grid: rows and columns of patches in the target.
        old_grid: of the source.

    Returns:
        A `WeightMap` as `interpolate_pos_embed` gives it.

    Raises:
        TransferError: as for `interpolate_pos_embed`.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"encoder.pos_embedding": torch.arange(4.0).repeat(3)[:10].reshape(1, 10, 1)}
        >>> new = tt.weights.interpolate_pos_embed_corners(grid=(5, 5)).apply(src, {})["encoder.pos_embedding"]
        >>> new[0, 0], new[0, 1], new[0, -1]
        (tensor([0.]), tensor([1.]), tensor([1.]))

    Checked against: torchvision's interpolate_embeddings.
    """
    return _interpolating(
        "interpolate_pos_embed_corners", name, prefix_tokens, grid, old_grid, "bicubic, corners aligned", _cornered
    )


def _antialiased(x: Tensor, grid: Grid) -> Tensor:
    return F.interpolate(x, size=grid, mode="bicubic", antialias=True)


def _cornered(x: Tensor, grid: Grid) -> Tensor:
    return F.interpolate(x, size=grid, mode="bicubic", align_corners=True)


def _interpolating(
    whose: str,
    names: str | Sequence[str],
    prefix_tokens: Prefix,
    grid: Grid | None,
    old_grid: Grid | None,
    told: str,
    resample: Resample,
) -> WeightMap:
    prefixes = (prefix_tokens, prefix_tokens) if isinstance(prefix_tokens, int) else prefix_tokens
    if min(prefixes) < 0:
        raise TransferError(f"{whose}: wanted no or more prefix tokens, got {prefix_tokens}")
    for given in (grid, old_grid):
        if given is not None and (len(given) != 2 or min(given) < 1):
            raise TransferError(f"{whose}: wanted a grid as (rows, columns), got {given}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {name: taken(name) for name in src}
        for name in named(whose, names, src):
            laid = src[name].ndim == 4
            if laid and prefix_tokens not in (1, 0, (0, 0)):
                raise TransferError(f"{whose}: {name!r} {shown(src[name])} has no place for prefix tokens")
            have, want = (0, 0) if laid else prefixes
            old = _grid(whose, name, src, have, old_grid, "source", "old_grid")
            if grid is None and name not in like:
                raise TransferError(f"{whose}: the target has no {name!r}, and grid= is not given{nearest(name, like)}")
            new = _grid(whose, name, like, want, None, "target", "grid") if grid is None else grid
            how = [f"grid {spelled(old)} -> {spelled(new)}, {told}"] * (old != new)
            how += [f"prefix tokens {have} -> {want}"] * (have != want)
            if how:
                move = _mover(old, new, have, want, resample)
                made[name] = Route((name,), move, "; ".join(how))
        return Routes(made)

    return routed(routes)


def _grid(whose: str, name: str, tensors: Tensors, prefix: int, given: Grid | None, where: str, option: str) -> Grid:
    x = tensors[name]
    if x.ndim not in (2, 3, 4) or (x.ndim > 2 and x.shape[0] != 1):
        raise TransferError(
            f"{whose}: wanted the {where}'s {name!r} as (1, tokens, d), (tokens, d) or (1, h, w, d), got {shown(x)}"
        )
    if x.ndim == 4:
        return x.shape[1], x.shape[2]
    count = x.shape[-2] - prefix
    if given is not None:
        if math.prod(given) != count:
            raise TransferError(
                f"{whose}: the {where}'s {name!r} {shown(x)} has {count} tokens after {prefix}, no grid of {given}"
            )
        return given
    side = math.isqrt(max(count, 0))
    if not side or side * side != count:
        squares = [k for k in range(6) if math.isqrt(max(x.shape[-2] - k, 0)) ** 2 == x.shape[-2] - k > 0]
        near = f"; with {squares[0]} prefix tokens it would be one" if squares else ""
        raise TransferError(
            f"{whose}: the {where}'s {name!r} {shown(x)} has {count} tokens after {prefix}, no square; give "
            f"{option}=(rows, columns){near}"
        )
    return side, side


def _mover(old: Grid, new: Grid, have: int, want: int, resample: Resample) -> Callable[[Tensor], Tensor]:
    def move(table: Tensor) -> Tensor:
        tokens = table.flatten(0, -2)
        first, patches = tokens[: min(have, want)], tokens[have:]
        if old != new:
            wide = torch.promote_types(patches.dtype, torch.float32)
            image = patches.to(wide).unflatten(0, old).permute(2, 0, 1)[None]
            patches = resample(image, new)[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)
        blank = tokens.new_zeros(max(want - have, 0), tokens.shape[1])
        tokens = torch.cat([first, blank, patches])
        return tokens.reshape(*(table.shape[:-2] if table.ndim < 4 else (1, new[0])), -1, table.shape[-1])

    return move
