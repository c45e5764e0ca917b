"""Arithmetic on one parameter, and the zeros that a state begins with.

All of it is done in float32 at least, whatever the parameter's dtype: bfloat16 moments lose small
gradients. Numbers are float64 until they meet a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer._errors import TransferError
from ttransfer.core._hyper import at_use
from ttransfer.core._types import Tree

__all__ = ["cast", "count", "each", "norm", "root", "safe_ratio", "wide", "zeros"]

T = TypeVar("T")


def cast(x: Tensor, like: Tensor) -> Tensor:
    """Cast to the dtype that arithmetic with `like` is done in, so that no dtype drifts."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return x if x.dtype == dtype else x.to(dtype)  # a cast that does nothing still costs tracing time


def wide(x: Tensor) -> Tensor:
    """Cast to float32 at least."""
    return cast(x, x)


def root(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0, not infinite: a meta-gradient multiplies it by 0."""
    above = x > 0
    return torch.where(above, torch.where(above, x, 1.0).sqrt(), 0.0)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of all elements, with gradient 0 at 0."""
    return root(wide(x).square().sum())


def safe_ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return ``above / below``, and 1 where either is 0."""
    both = (above > 0) & (below > 0)
    return torch.where(both, above / torch.where(both, below, 1.0), 1.0)


def each(rule: Callable[..., Tensor], numbers: Mapping[str, Tensor], params: T, *rest: Tree) -> T:
    """Apply ``rule(numbers, leaf, *leaves)`` to corresponding leaves.

    The numbers come in the dtype that arithmetic with the leaf of `params` is done in. They are cast
    once for each dtype, not once for each leaf: tracing time is counted in operations.
    """
    at = {dtype: at_use(numbers, dtype) for dtype in dict.fromkeys(p.dtype for p in tree.leaves(params))}
    return tree.map(lambda p, *others: rule(at[p.dtype], p, *others), params, *rest)


def zeros(params: T) -> T:
    """Fresh zeros in the shape of the parameters, float32 at least."""
    return tree.map(lambda p: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)), params)


def count(caller: str, params: Tree) -> Tensor:
    """A fresh counter at 0: on the parameters' device and, under vmap, one for each member.

    Raises:
        TransferError: if there are no parameters.
    """
    for leaf in tree.leaves(params):
        return leaf.new_zeros((), dtype=torch.int64)
    raise TransferError(f"optim.{caller}: there are no parameters to update")
