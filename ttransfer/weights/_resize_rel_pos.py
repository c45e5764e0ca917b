"""Tables of relative position biases for another window."""

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

__all__ = ["resize_rel_pos", "resize_rel_pos_geometric"]

Size = tuple[int, int]


def resize_rel_pos(
    patterns: str | Sequence[str] = r".*relative_position_bias_table",
    *,
    window: Size | None = None,
    old_window: Size | None = None,
    extra_tokens: int = 0,
) -> WeightMap:
    """Resample tables of relative position biases for another attention window: bicubic, as Swin's authors do.

    A window of h by w has (2h - 1)(2w - 1) offsets, each with a bias for every head. Tables of indices and masks,
    which nets keep beside them as buffers, belong to the new window: drop them from the source.

    Args:
        patterns: names of tables, or regular expressions for whole names: (offsets + extra, heads), or
            (heads, 2h - 1, 2w - 1).
        window: h and w in the target; None takes the offsets from each target's shape, a square if it counts them.
        old_window: of the source; None is a square if the table counts offsets.
        extra_tokens: rows at the end of the table that are no offsets (3 in BEiT, for the class token); passed on.

    Returns:
        A `WeightMap`; tensors that no pattern matches are passed on, and so are tables of the right size. It
        computes in at least float32.

    Raises:
        TransferError: for a window or a number below one and zero; at use for a pattern that matches no source, a
            table that the target lacks if it is asked for the window, one of another form, and offsets that are
            not those of the window, or of no square.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"attn.relative_position_bias_table": torch.ones(13 * 13, 4)}
        >>> load = tt.weights.resize_rel_pos(window=(12, 12))
        >>> print(tt.weights.show(load.plan(src, {})))
        attn.relative_position_bias_table  <- attn.relative_position_bias_table  offsets 13x13 -> 23x23, bicubic
        >>> load.apply(src, {})["attn.relative_position_bias_table"].shape
        torch.Size([529, 4])

    Checked against: timm's resize_rel_pos_bias_table_simple.

    References:
        Ze Liu, Yutong Lin, Yue Cao, Han Hu, Yixuan Wei, Zheng Zhang, Stephen Lin, Baining Guo. Swin Transformer:
        Hierarchical Vision Transformer using Shifted Windows. 2021.
    """
    return _resizing("resize_rel_pos", patterns, window, old_window, extra_tokens, "bicubic", _bicubic)


def resize_rel_pos_geometric(
    patterns: str | Sequence[str] = r".*relative_position_bias_table",
    *,
    window: Size | None = None,
    old_window: Size | None = None,
    extra_tokens: int = 0,
) -> WeightMap:
    r"""Resample tables of relative position biases for another attention window, as BEiT's authors do.

    What is near keeps its place, what is far is stretched. Of S offsets along an axis, the k-th from the middle is
    laid at a distance of

    .. math::
        \pm \sum_{i < k} q^i, \qquad q \in [1.01, 1.5]
        \; \text{ with } \sum_{i < \lfloor S/2 \rfloor} q^i = \lfloor D/2 \rfloor

    and the D new offsets, one apart, are read off between them: linearly, as timm does, where the authors have cubic
    splines of a function that SciPy has dropped. Beyond the last the bias stays what it is there.

    Args:
        patterns: as for `resize_rel_pos`, and so are the others.
        window: h and w in the target.
        old_window: of the source.
        extra_tokens: rows at the end of the table that are no offsets.

    Returns:
        A `WeightMap` as `resize_rel_pos` gives it.

    Raises:
        TransferError: as for `resize_rel_pos`.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"relative_position_bias_table": torch.eye(9)[:, 4:5]}  # a window of 2: 1 in the middle
        >>> new = tt.weights.resize_rel_pos_geometric(window=(3, 3)).apply(src, {})
        >>> new["relative_position_bias_table"].reshape(5, 5)[2]
        tensor([0., 0., 1., 0., 0.])

    Checked against: timm's resize_rel_pos_bias_table, and SciPy's RegularGridInterpolator.
    Peers: timm computes in float32 whatever the dtype: in float64 it is off by 1e-6.

    References:
        Hangbo Bao, Li Dong, Songhao Piao, Furu Wei. BEiT: BERT Pre-Training of Image Transformers. 2022.
    """
    whose = "resize_rel_pos_geometric"
    return _resizing(whose, patterns, window, old_window, extra_tokens, "geometric", _geometric)


def _bicubic(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x[None], size=size, mode="bicubic", align_corners=False)[0]


def _geometric(x: Tensor, size: Size) -> Tensor:
    rows, columns = (_between(old, new, x) for old, new in zip(x.shape[1:], size, strict=True))
    return rows @ x @ columns.T


def _between(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix (new, old) that reads one axis of a table off at its new offsets."""
    ratio, half = _ratio(old // 2, new // 2), [0.0]
    for i in range(old // 2):
        half.append(half[-1] + ratio**i)
    places = [-x for x in half[:0:-1]] + half
    rows: list[list[float]] = []
    for i in range(new):
        at = min(max(i - new // 2, places[0]), places[-1])
        # Each old offset is felt up to its neighbours.
        row = [0.0] * old
        right = next(k for k in range(old) if places[k] >= at)
        left = max(right - 1, 0)
        share = (at - places[left]) / (places[right] - places[left]) if right != left else 1.0
        row[left] += 1.0 - share
        row[right] += share
        rows.append(row)
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _ratio(count: int, length: int) -> float:
    """How much further each offset lies than the one before; the authors' search, as coarse as theirs."""
    low, high, q = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**count) / (1 - q) > length:
            high = q
        else:
            low = q
    return q


def _resizing(
    whose: str,
    patterns: str | Sequence[str],
    window: Size | None,
    old_window: Size | None,
    extra: int,
    told: str,
    resample: Callable[[Tensor, Size], Tensor],
) -> WeightMap:
    if extra < 0:
        raise TransferError(f"{whose}: wanted no or more extra tokens, got {extra}")
    for given in (window, old_window):
        if given is not None and (len(given) != 2 or min(given) < 1):
            raise TransferError(f"{whose}: wanted a window as (rows, columns), got {given}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {name: taken(name) for name in src}
        for name in named(whose, patterns, src):
            old = _offsets(whose, name, src, extra, old_window, "source", "old_window")
            if window is None and name not in like:
                raise TransferError(
                    f"{whose}: the target has no {name!r}, and window= is not given{nearest(name, like)}"
                )
            new = _wide(window) if window else _offsets(whose, name, like, extra, None, "target", "window")
            if old != new:
                how = f"offsets {spelled(old)} -> {spelled(new)}, {told}"
                made[name] = Route((name,), lambda x, o=old, n=new: _resized(x, o, n, extra, resample), how)
        return Routes(made)

    return routed(routes)


def _wide(window: Size) -> Size:
    return 2 * window[0] - 1, 2 * window[1] - 1


def _offsets(whose: str, name: str, tensors: Tensors, extra: int, given: Size | None, where: str, option: str) -> Size:
    x = tensors[name]
    if x.ndim not in (2, 3) or (x.ndim == 3 and extra):
        wanted = f"(offsets + {extra}, heads)" if extra else "(offsets, heads) or (heads, rows, columns)"
        raise TransferError(f"{whose}: wanted the {where}'s {name!r} as {wanted}, got {shown(x)}")
    if x.ndim == 3:
        return x.shape[1], x.shape[2]
    count = x.shape[0] - extra
    side = math.isqrt(max(count, 0))
    size = _wide(given) if given else (side, side)
    if math.prod(size) != count or not count or not (given or side % 2):
        why = f"a window of {given} has {math.prod(size)}" if given else f"no odd square; give {option}=(rows, columns)"
        raise TransferError(f"{whose}: the {where}'s {name!r} {shown(x)} has {count} offsets, {why}")
    return size


def _resized(table: Tensor, old: Size, new: Size, extra: int, resample: Callable[[Tensor, Size], Tensor]) -> Tensor:
    wide = torch.promote_types(table.dtype, torch.float32)
    if table.ndim == 3:
        return resample(table.to(wide), new).to(table.dtype)
    offsets, rest = table[: math.prod(old)], table[math.prod(old) :]
    image = resample(offsets.T.to(wide).unflatten(1, old), new)
    return torch.cat([image.flatten(1).T.to(table.dtype), rest])
