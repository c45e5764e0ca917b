"""A head's rows under other classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import named
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["remap_head"]


def remap_head(
    old_classes: Sequence[str],
    new_classes: Sequence[str],
    *,
    names: str | Sequence[str],
    new: Literal["refuse", "zeros", "mean"] = "refuse",
) -> WeightMap:
    """Give a head's rows to the classes of another label set, by the classes' names.

    Each class that both have keeps its logit, so that among these classes the answers stay as they were.

    Args:
        old_classes: the source's classes, in the order of its rows.
        new_classes: the target's, in the order of its.
        names: of the head's tensors (classes, ...), or regular expressions: its weight and its bias.
        new: what classes get that the source has not: "mean" is the mean of the source's rows, the logit of a class
            that nothing speaks for or against; "zeros" is a logit of 0; "refuse" is an error.

    Returns:
        A `WeightMap`; other tensors are passed on.

    Raises:
        TransferError: for a class given twice, no class in common, a new class that is refused, and another choice;
            at use for a pattern that matches no source, and for a tensor with another number of rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"fc.weight": torch.eye(3), "fc.bias": torch.tensor([1.0, 2.0, 3.0])}
        >>> load = tt.weights.remap_head(["cat", "dog", "cow"], ["cow", "cat"], names="fc.*")
        >>> load.apply(src, {})["fc.bias"]
        tensor([3., 1.])
        >>> load.plan(src, {}).made["fc.bias"].how
        'rows of 2 of 3 classes'
    """
    old, wanted = list(old_classes), list(new_classes)
    for what, classes in (("old", old), ("new", wanted)):
        if twice := [name for i, name in enumerate(classes) if name in classes[:i]]:
            raise TransferError(f"remap_head: {twice[0]!r} is twice in the {what} classes")
    if new not in ("refuse", "zeros", "mean"):
        raise TransferError(f"remap_head: new must be 'refuse', 'zeros' or 'mean', got {new!r}")
    place = {name: i for i, name in enumerate(old)}
    unknown = [name for name in wanted if name not in place]
    if unknown and new == "refuse":
        raise TransferError(
            f"remap_head: {len(unknown)} of {len(wanted)} new classes are not among the old, the first "
            f"{unknown[0]!r}{nearest(unknown[0], old)} "
            "(if they are new indeed, new= says what they get)"
        )
    if len(unknown) == len(wanted):
        raise TransferError("remap_head: no class is in both; make the head anew with tt.weights.reset_head")
    rows = [place.get(name, len(old)) for name in wanted]
    if rows == list(range(len(old))):
        how = ""
    else:
        how = f"rows of {len(wanted) - len(unknown)} of {len(old)} classes"
        how += f", {len(unknown)} new: {new}" if unknown else ""

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {name: taken(name) for name in src}
        for name in named("remap_head", names, src):
            if not src[name].ndim or src[name].shape[0] != len(old):
                raise TransferError(
                    f"remap_head: {name!r} {shown(src[name])} has no row for each of {len(old)} old classes"
                )
            if how:
                made[name] = Route((name,), _picker(rows, new if unknown else ""), how)
        return Routes(made)

    return routed(routes)


def _picker(rows: list[int], new: str) -> Callable[[Tensor], Tensor]:
    def pick(x: Tensor) -> Tensor:
        if new:
            row = x.mean(0, keepdim=True) if new == "mean" else torch.zeros_like(x[:1])
            x = torch.cat([x, row])
        return x.index_select(0, torch.tensor(rows, device=x.device))

    return pick
