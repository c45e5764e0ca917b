"""Keyed dropout: masks that follow from (seed, step, net, pass, domain, row, module, element).

The masks come from an integer hash computed inside the graph, never from a generator. So the same
state and batch give the same masks eagerly, compiled, as a member of a vmap and as a shard of a
larger batch, and a resumed run replays them.

Arithmetic is on 32-bit words held in int64, with multipliers below 2**31, so that no product
overflows: every backend agrees on it.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError

__all__ = [
    "Box",
    "bits",
    "drop_alpha",
    "drop_channels",
    "drop_elements",
    "drops",
    "fold",
    "key_modules",
    "next_call",
    "row_keys",
    "salt",
]

_WORD = 0xFFFFFFFF

Box = dict[Any, Any]
"""What one apply of a skeleton carries to its modules and hooks; emptied before apply returns."""


Word = TypeVar("Word", Tensor, int)


def _mix(x: Word) -> Word:
    """Hash 32-bit words (multiply, xor-shift; the constants have low bias and small products)."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _WORD
    x = (x ^ (x >> 15)) * 0x735A2D97 & _WORD
    return x ^ (x >> 15)


def _word(x: Word) -> Word:
    """Bring any int64 down to a 32-bit word; a word stays as it is, for zero mixes to zero."""
    return (x & _WORD) ^ _mix((x >> 32) & _WORD)


def fold(key: Tensor, data: Tensor | int) -> Tensor:
    """Derive a new key from a key and an integer."""
    return _mix(_word(key) ^ _mix(_word(cast(Tensor, data)) + 0x9E3779B9 & _WORD))


def salt(net: str, number: int, domain: str) -> int:
    """The part of the keys that tells one forward from another."""
    return zlib.crc32(f"{net}({domain})#{number}".encode())


def row_keys(seed: Tensor, step: Tensor, salt: int, rows: Tensor) -> Tensor:
    """Return one key per row.

    Args:
        seed: 0-d int64.
        step: 0-d int64.
        salt: of the forward.
        rows: (n,) int64, the rows' numbers in the whole batch.

    Returns:
        (n,) int64.
    """
    key = fold(fold(fold(torch.zeros_like(seed), seed), step), salt)
    return fold(key.expand(rows.shape), rows)


def drops(root: nn.Module) -> bool:
    """Say whether any module drops at random."""
    return any(_rule(module) is not None for module in root.modules())


def bits(keys: Tensor, count: int) -> Tensor:
    """Return so many 32-bit words for each key, (n,) -> (n, count), in int64."""
    element = torch.arange(count, device=keys.device)
    return _mix(_mix(element + 1)[None, :] ^ keys[:, None])


def _bits(box: Box, module: int, shape: torch.Size) -> Tensor:
    """Return 32 random bits for each element of a tensor whose first dimension goes by rows."""
    keys = box.get("keys")
    if keys is None or keys.dtype != torch.int64 or keys.ndim != 1:
        raise TransferError(
            "this net drops at random: apply it with keys=..., one int64 per row, or run it in eval mode"
        )
    keys = fold(keys, module)
    n = keys.shape[0]
    if shape[0] % n == 0:  # batch first; windows and heads folded into the batch are batch-major
        inner = math.prod(shape) // n
        return bits(keys, inner).reshape(shape)
    element = torch.arange(math.prod(shape), device=keys.device)
    return _mix(_mix(element + 1) ^ keys[0]).reshape(shape)


def _keep(box: Box, module: int, x: Tensor, p: float, shape: torch.Size) -> Tensor:
    """Return a mask of ones and zeros: an element is kept with probability 1 - p."""
    return (_bits(box, module, shape) >= round(p * 2**32)).to(x.dtype)


def _spread(x: Tensor, batch_dims: int) -> torch.Size:
    """The shape of a mask that is shared by all but the leading dimensions."""
    return torch.Size((*x.shape[:batch_dims], *(1,) * (x.ndim - batch_dims)))


def _scaled(x: Tensor, keep: Tensor, p: float, rescale: bool = True) -> Tensor:
    return x * keep / (1.0 - p) if rescale and p < 1.0 else x * keep


def next_call(box: Box, number: int) -> int:
    """Tell the calls of one module in one forward apart: called again, it draws again."""
    call = box[number] = box.get(number, -1) + 1
    return (call << 20) + number


class _Keyed(nn.Module):
    """What stands in the skeleton for a module that drops at random."""

    def __init__(self, box: Box, number: int, drop: Callable[..., Tensor], p: float) -> None:
        super().__init__()
        self.box, self.number, self.drop, self.p = box, number, drop, p

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return self.drop(self.box, next_call(self.box, self.number), x, self.p)


def drop_elements(box: Box, number: int, x: Tensor, p: float) -> Tensor:
    """Drop single elements."""
    return _scaled(x, _keep(box, number, x, p, x.shape), p)


def drop_channels(box: Box, number: int, x: Tensor, p: float) -> Tensor:
    """Drop whole channels."""
    return _scaled(x, _keep(box, number, x, p, _spread(x, min(2, x.ndim))), p)


def _paths(box: Box, number: int, x: Tensor, p: float, rescale: bool = True) -> Tensor:
    return _scaled(x, _keep(box, number, x, p, _spread(x, 1)), p, rescale)


def _whole(box: Box, number: int, x: Tensor, p: float) -> Tensor:
    """Stochastic depth in "batch" mode: one draw for all rows."""
    return _scaled(x, _keep(box, number, x, p, _spread(x, 1))[:1], p)


def drop_alpha(box: Box, number: int, x: Tensor, p: float, batch_dims: int | None = None) -> Tensor:
    """Alpha dropout keeps the mean and variance of SELU units."""
    low = -1.7580993408473766
    keep = _keep(box, number, x, p, x.shape if batch_dims is None else _spread(x, batch_dims))
    if p == 1.0:
        return x * keep
    scale = ((1.0 - p) * (1.0 + p * low**2)) ** -0.5
    return scale * (x * keep + low * (1.0 - keep)) - scale * low * p


_DROPOUTS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Dropout: drop_elements,
    nn.Dropout1d: drop_channels,
    nn.Dropout2d: drop_channels,
    nn.Dropout3d: drop_channels,
    nn.AlphaDropout: drop_alpha,
    nn.FeatureAlphaDropout: functools.partial(drop_alpha, batch_dims=2),
}


def _rule(module: nn.Module) -> tuple[Callable[..., Tensor], float] | None:
    """How a module drops, and with what probability; None if it does not, or does it in a way of its own.

    DropPath and StochasticDepth have no common class: they are known by name and attributes.
    """
    for kind, drop in _DROPOUTS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return drop, float(cast(Any, module).p)
    name = type(module).__name__
    if name == "DropPath" and hasattr(module, "drop_prob"):
        rescale = bool(getattr(module, "scale_by_keep", True))
        return functools.partial(_paths, rescale=rescale), float(cast(Any, module).drop_prob or 0.0)
    if name == "StochasticDepth" and hasattr(module, "mode"):
        return (_paths if cast(Any, module).mode == "row" else _whole), float(cast(Any, module).p)
    return None


def _keyed(module: nn.Module, box: Box, number: int) -> nn.Module | None:
    if (rule := _rule(module)) is None:
        return None
    return _Keyed(box, number, *rule).train(module.training)


def key_modules(root: nn.Module, box: Box) -> nn.Module:
    """Replace every module that drops at random by its keyed twin."""
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(root.modules()):
        # Not named_children, which leaves out the second name of a module that has two.
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            if (keyed := made.get(child) or _keyed(child, box, len(made))) is not None:
                made[child] = keyed
                setattr(parent, name, keyed)
        # timm's fused attention drops inside the kernel, from the generator; its plain path uses attn_drop.
        drop = getattr(parent, "attn_drop", None)
        if getattr(parent, "fused_attn", False) and isinstance(drop, _Keyed) and drop.p > 0.0:
            cast(Any, parent).fused_attn = False
    return _keyed(root, box, 0) or root
