"""Named tensors: changed, compared, told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

__all__ = [
    "Tensors",
    "at_random",
    "change",
    "clones",
    "differing",
    "equal",
    "gap",
    "moved",
    "reals",
    "seeded",
    "shapes",
    "spread",
    "turned",
    "unlike",
]

Tensors = dict[str, Tensor]
MARK = "/"  # between the name of a checkpoint in a pool and a tensor's


def seeded(seed: int) -> torch.Generator:
    """A generator of one's own."""
    return torch.Generator().manual_seed(seed)


def change(tensors: Mapping[str, Tensor], fn: Callable[[Tensor], Tensor]) -> Tensors:
    """Change what is real, and keep the rest."""
    return {name: fn(x) if x.is_floating_point() else x for name, x in tensors.items()}


def clones(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copy every tensor; gradients go through."""
    return {name: x.clone() for name, x in tensors.items()}


def reals(tensors: Mapping[str, Tensor]) -> Tensors:
    """Those that can be differentiated by."""
    return {name: x for name, x in tensors.items() if x.is_floating_point()}


def at_random(tensors: Mapping[str, Tensor], seed: int) -> Tensors:
    """Draw real tensors of these shapes, float64; what is positive throughout, as a variance is, stays so."""
    generator = seeded(seed)

    def drawn(x: Tensor) -> Tensor:
        noise = (torch.randn(x.shape, generator=generator, dtype=torch.float64, device=x.device) * 1000).round() / 1000
        return noise.abs() + 0.1 if x.numel() and bool((x > 0).all()) else noise

    return change(tensors, drawn)


def moved(tensors: Mapping[str, Tensor], seed: int) -> Tensors:
    """Leave a special point: zeros become small numbers, others are scaled and keep their sign."""
    generator = seeded(seed + 1000)

    def drawn(x: Tensor) -> Tensor:
        noise = torch.rand(x.shape, generator=generator, dtype=torch.float64, device=x.device).to(x.dtype) - 0.5
        return torch.where(x == 0, noise, x * (1 + noise))

    return change(tensors, drawn)


def spread(tensors: Mapping[str, Tensor], seed: int) -> Tensors:
    """Draw tensors of the size that these have, of any sign but where they are positive throughout."""
    sizes = change(tensors, lambda x: (x.square().mean().sqrt() if x.numel() else x.sum()).expand(x.shape))
    drawn = at_random(tensors, seed + 2000)
    return {
        name: x * torch.where(sizes[name] == 0, 0.5, sizes[name]).to(x.dtype) if x.is_floating_point() else x
        for name, x in drawn.items()
    }


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, by their size where that is above 1; inf if they differ in kind."""
    if a.shape != b.shape or a.is_floating_point() != b.is_floating_point() or a.is_meta or b.is_meta:
        return float("inf")
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else float("inf")
    a, b = a.detach().double(), b.detach().double()
    if not a.numel() or torch.equal(a, b):
        return 0.0
    plain = ((a - b).abs().max() / (1 + b.abs().max())).item()
    if math.isfinite(plain):
        return plain
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(nan=float("inf"))
    size = torch.where(b.isfinite(), b.abs(), 0.0)
    return (apart.max() / (1 + size.max())).item()


def unlike(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], room: float = 1e-9) -> str | None:
    """The first name under which two trees differ by more than rounding, or that one of them lacks."""
    return next(differing(found, wanted, room), None)


def differing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], room: float = 1e-9) -> Iterator[str]:
    """All names under which two trees differ."""
    for name in dict.fromkeys((*wanted, *found)):
        if name not in found or name not in wanted or not gap(found[name], wanted[name]) <= room:
            yield name


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two trees have the same names, dtypes and bits."""
    return a.keys() == b.keys() and all(x.dtype == b[name].dtype and gap(x, b[name]) == 0 for name, x in a.items())


def shapes(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes, in words."""
    items = [f"{name} {tuple(x.shape)}" for name, x in tensors.items()]
    return ", ".join(items[:8]) + (f", ... ({len(items)} in all)" if len(items) > 8 else "") if items else "none"


def turned(tree: Tensors) -> Tensors:
    """The same names the other way round; in a pool of checkpoints those of each, which stay in their order."""
    members = dict.fromkeys(name.partition(MARK)[0] for name in tree) if all(MARK in name for name in tree) else [""]
    return {
        name: tree[name]
        for member in members
        for name in reversed(tree)
        if not member or name.partition(MARK)[0] == member
    }
