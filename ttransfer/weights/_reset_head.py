"""A new head, made anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core._keyed import bits, fold
from ttransfer.core._maps import WeightMap
from ttransfer.weights._named import named
from ttransfer.weights._numbers import python_number, want_number
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["reset_head"]

_FIXED = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}


def reset_head(
    patterns: str | Sequence[str],
    *,
    seed: int = 0,
    std: float | Tensor = 0.01,
    bias: float | Tensor = 0.0,
    prior: float | None = None,
) -> WeightMap:
    r"""Make the tensors of a head anew, in the target's shapes, whatever the source has under their names.

    Weights of two axes and more are normal with mean 0; a bias beside such a weight is `bias`. A normalisation inside
    the head starts at its identity. The numbers follow from the seed and the tensor's name by an integer hash: they
    are the same on every device, compiled or not, and resetting one tensor more changes no other.

    Args:
        patterns: names of target tensors, or regular expressions for whole names.
        seed: another one, another head.
        std: of the weights; a scalar.
        bias: where biases start; a scalar, or one for each class, such as the logarithms of their frequencies.
        prior: π in (0, 1), how likely each class is before anything is learned, for sigmoid heads of which few fire:
            the bias is :math:`-\log((1 - \pi) / \pi)`.

    Returns:
        A `WeightMap` with the source's other tensors as they are; its plan says of the old head that it was reset.
        dtype and device are the target's.

    Raises:
        TransferError: for a std that is no number of at least 0, a bias that is not finite, a seed that is no int, a
            prior that is no probability, or beside a bias; at use for a pattern that matches no
            target, and for a tensor of which nobody knows how it starts,
            or with another number of classes than `bias`.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.weight": torch.ones(4), "fc.weight": torch.ones(1000, 4), "fc.bias": torch.ones(1000)}
        >>> like = {"conv.weight": torch.zeros(4), "fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}
        >>> load = tt.weights.chain(tt.weights.reset_head("fc.*", seed=1), tt.weights.match())
        >>> print(tt.weights.show(load.plan(src, like)))
        conv.weight  <- conv.weight
        fc.weight    <- made anew    normal, seed 1
        fc.bias      <- made anew    filled with the bias
        fc.weight    -> nowhere      reset
        fc.bias      -> nowhere      reset

    References:
        Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár. Focal Loss for Dense Object Detection.
        2017.
    """
    want_number("reset_head", "std", std)
    want_number("reset_head", "bias", bias)
    python_number("reset_head", "seed", seed, whole=True)
    if prior is not None:
        python_number("reset_head", "prior", prior)
    if prior is not None and not 0 < prior < 1:
        raise TransferError(f"reset_head: wanted a prior between 0 and 1, got {prior}")
    if prior is not None and (isinstance(bias, Tensor) or bias):
        raise TransferError("reset_head: a prior gives the bias; give one of the two")
    if not isinstance(std, Tensor) and not 0 <= std < math.inf:
        raise TransferError(f"reset_head: wanted a std of at least 0, got {std}")
    if not isinstance(bias, Tensor) and not math.isfinite(bias):
        raise TransferError(f"reset_head: wanted a finite bias, got {bias}")
    if isinstance(std, Tensor) and std.ndim:
        raise TransferError(f"reset_head: wanted one std for all, got {shown(std)}")
    level = bias if prior is None else -math.log((1 - prior) / prior)

    def routes(src: Tensors, like: Tensors) -> Routes:
        head = named("reset_head", patterns, like, "target")
        made = {name: taken(name) for name in src if name not in head}
        for name in head:
            made[name] = _route(name, like, seed, std, level)
        return Routes(made, unused={name: "reset" for name in head if name in src})

    return routed(routes)


def _route(name: str, like: Tensors, seed: int, std: float | Tensor, level: float | Tensor) -> Route:
    x, (module, _, leaf) = like[name], name.rpartition(".")
    beside = like.get(f"{module}.weight" if module else "weight")
    if leaf in _FIXED:
        return Route((), _filled(x, _FIXED[leaf]), f"filled with {_FIXED[leaf]:g}")
    if x.is_floating_point() and x.ndim >= 2:
        return Route((), _normal(x, _number(seed, name), std), f"normal, seed {seed}")
    if x.is_floating_point() and leaf == "bias" and beside is not None:
        of_a_norm = beside.ndim < 2
        if not of_a_norm and isinstance(level, Tensor) and level.ndim and level.shape != x.shape:
            raise TransferError(f"reset_head: bias {shown(level)} is not one for each class of {name!r} {shown(x)}")
        return Route((), _filled(x, 0.0 if of_a_norm else level), f"filled with {'0' if of_a_norm else 'the bias'}")
    if x.is_floating_point() and leaf == "weight" and x.ndim == 1:
        return Route((), _filled(x, 1.0), "filled with 1")
    raise TransferError(
        f"reset_head: how {name!r} {shown(x)} starts is not known: it is no weight with two axes, no bias beside a "
        "weight, and of no normalisation; name it in another pattern's place, and make it yourself"
    )


def _number(seed: int, name: str) -> int:
    """A number for a tensor, which follows from its name and the seed; in Python alone, so that it can be traced."""
    number = 0x811C9DC5
    for letter in f"{seed}/{name}":
        number = ((number ^ ord(letter)) * 0x01000193) & 0xFFFFFFFF
    return number


def _filled(x: Tensor, value: float | Tensor) -> Callable[[], Tensor]:
    shape, dtype, device = x.shape, x.dtype, x.device

    def make() -> Tensor:
        if not isinstance(value, Tensor):
            return torch.full(shape, value, dtype=dtype, device=device)
        return torch.zeros(shape, dtype=dtype, device=device) + value.to(device=device, dtype=dtype)

    return make


def _normal(x: Tensor, number: int, std: float | Tensor) -> Callable[[], Tensor]:
    shape, dtype, device = x.shape, x.dtype, x.device

    def make() -> Tensor:
        key = fold(torch.zeros((), dtype=torch.int64, device=device), number)
        words = bits(key.reshape(1), math.prod(shape)).reshape(shape)
        # The middle of each of the 2**32 parts, so that neither end is infinite.
        return (torch.special.ndtri((words.double() + 0.5) / 2**32) * std).to(dtype)

    return make
