"""What images a model was trained on, and two models of different normalisation on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttransfer import Functional, Out, TransferError
from ttransfer._errors import nearest, shown

__all__ = ["DataConfig", "Normalisation", "renormalise", "renormalised"]


class DataConfig(NamedTuple):
    """How a model's pictures are prepared.

    Attributes:
        size: (height, width) in pixels, of what the model sees.
        mean: of each channel, for values from 0 to 1; it is subtracted.
        std: of each channel; what is left is divided by it.
        interpolation: "bilinear", "bicubic", ...
        crop: how much of the resized picture's side is kept: it is resized to size / crop, and cropped to size.

    Example:
        >>> DataConfig((224, 224), (0.5,), (0.5,), "bicubic", 0.875).size
        (224, 224)
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop: float


Normalisation = DataConfig | tuple[Sequence[float], Sequence[float]]
"""A mean and a standard deviation for each channel, or one for all."""


def renormalise(x: Tensor, *, given: Normalisation, wanted: Normalisation) -> Tensor:
    r"""Turn pictures that were normalised in one way into what they were if normalised in another.

    .. math:: x'_c = \frac{x_c \, \sigma_c + \mu_c - \mu'_c}{\sigma'_c}

    Args:
        x: (n, channels, ...).
        given: (mean, std) that the pictures are normalised with, or a `DataConfig`; (0, 1) is none.
        wanted: those that they are to be normalised with.

    Returns:
        As `x`, in its dtype.

    Raises:
        TransferError: for what are no real pictures, for numbers of another count than the channels, or a standard
            deviation that is not positive.

    Example:
        >>> import torch
        >>> from ttransfer_ext.timm import renormalise
        >>> white = torch.ones(1, 3, 2, 2)  # in -1 to 1
        >>> renormalise(white, given=([0.5], [0.5]), wanted=([0.0], [1.0]))[0, :, 0, 0]
        tensor([1., 1., 1.])
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise TransferError(f"renormalise: wanted real pictures (n, channels, ...), got {shown(x)}")
    pairs = list(zip(_numbers("given", given, x), _numbers("wanted", wanted, x), strict=True))
    scale = [s0 / s1 for (_, s0), (_, s1) in pairs]
    shift = [(m0 - m1) / s1 for (m0, _), (m1, s1) in pairs]
    return x * _channels(scale, x) + _channels(shift, x)


def _numbers(what: str, of: Normalisation, x: Tensor) -> list[tuple[float, float]]:
    mean, std = (of.mean, of.std) if isinstance(of, DataConfig) else of
    found: list[list[float]] = []
    for name, values in (("mean", mean), ("std", std)):
        numbers = [float(value) for value in values]
        if len(numbers) not in (1, x.shape[1]):
            raise TransferError(
                f"renormalise: {what} has a {name} of {len(numbers)} channels, the pictures are {shown(x)}"
            )
        found.append(numbers * (x.shape[1] if len(numbers) == 1 else 1))
    if min(found[1]) <= 0:
        raise TransferError(f"renormalise: {what} has a std of {min(found[1])}, wanted one above 0")
    return list(zip(*found, strict=True))


def _channels(values: list[float], x: Tensor) -> Tensor | float:
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.ndim - 2))


def renormalised(
    net: Functional, *, given: Normalisation, wanted: Normalisation, field: str | None = None
) -> Functional:
    """Let a net read pictures that are normalised for another: a teacher and a student on one batch field.

    The net itself is as it was, and so are the names of its parameters and taps; its first layers see what
    `renormalise` makes of the field.

    Args:
        net: such as `tt.functional` makes.
        given: (mean, std) of the batch, or a `DataConfig`, as `data_config` of the student gives it.
        wanted: those of the net.
        field: which of the net's inputs are pictures; the first unless given.

    Returns:
        A Functional.

    Raises:
        TransferError: for a field that is no input of the net; when applied, what `renormalise` raises.

    Example:
        >>> import torch, ttransfer as tt
        >>> from ttransfer_ext.timm import renormalised
        >>> mean = tt.functional(torch.nn.Flatten())
        >>> both = renormalised(mean, given=([0.5], [0.5]), wanted=([0.0], [0.25]))
        >>> both.apply({}, {}, torch.ones(1, 1, 1, 2)).value  # 1 is white: (1 - 0) / 0.25
        tensor([[4., 4.]])
    """
    name = net.inputs[0] if field is None else field
    if name not in net.inputs:
        raise TransferError(f"renormalised: the net takes no {name!r}{nearest(name, net.inputs)}")
    place = net.inputs.index(name)

    def around(apply: Callable[..., Out]) -> Callable[..., Out]:
        def run(params: Any, buffers: Any, *inputs: Any, keys: Tensor | None = None) -> Out:
            pictures = renormalise(inputs[place], given=given, wanted=wanted)
            return apply(params, buffers, *inputs[:place], pictures, *inputs[place + 1 :], keys=keys)

        return run

    def bind(*args: Any, **kwargs: Any) -> Callable[..., Out]:
        return around(net.bind(*args, **kwargs))

    return Functional(net.init, around(net.apply), bind, net.merged, net.layout, net.mode, net.inputs)
