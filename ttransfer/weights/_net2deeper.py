"""A deeper network that computes what the shallow one did."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["net2deeper"]


def net2deeper(layers: Mapping[str, str], *, eps: float = 1e-5) -> WeightMap:
    r"""Insert layers that do nothing: the function stays as it is.

    A linear layer is the identity matrix, a convolution has a one in the middle of its kernel for each channel, and a
    batch norm in eval mode undoes its own eps:

    .. math:: W_{ij} = \delta_{ij}, \qquad b = 0, \qquad \mu = 0, \quad \sigma^2 = 1, \quad \gamma = \sqrt{1 + \epsilon}

    and one without :math:`\gamma` has :math:`\sigma^2 = 1 - \epsilon`. A norm of each example, such as a layer norm, is
    no identity whatever its weights. What follows a new layer must do nothing either to what is done already, as a
    second ReLU does; of the batch's own statistics a batch norm makes something else. The other tensors keep their
    names: rename them first if the deeper network has other ones.

    Args:
        layers: name of a new layer, in the target -> name of the layer in the source whose output it gets.
        eps: of new batch norms.

    Returns:
        A `WeightMap` that passes on all source tensors.

    Raises:
        TransferError: at use, for a new layer that is not in the target, or is in the source; for a layer before it
            that is not in the source; for shapes that hold no identity: other numbers of channels in and out, an even
            kernel, a scale that is no batch norm's.

    Example:
        >>> import torch, ttransfer as tt
        >>> shallow = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> deep = torch.nn.Sequential(*shallow, torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> deeper = tt.weights.net2deeper({"2": "0"})
        >>> deeper.plan(shallow.state_dict(), deep.state_dict()).made["2.weight"].how
        'identity after 0'
        >>> plan = tt.weights.transfer(shallow.state_dict(), deep, deeper)
        >>> x = torch.randn(5, 3)
        >>> torch.equal(shallow(x), deep(x))
        True

    References:
        Chen, Tianqi, Goodfellow, Ian, Shlens, Jonathon. Net2Net: Accelerating Learning via Knowledge Transfer. 2016.
    """

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = {name: taken(name) for name in src}
        for new, before in layers.items():
            if (weight := src.get(f"{before}.weight")) is None:
                raise TransferError(f"net2deeper: the source has no '{before}.weight'{nearest(before, src)}")
            names = [name for name in like if name.startswith(f"{new}.")]
            if not names:
                raise TransferError(f"net2deeper: the target has no {new!r}{nearest(new, like)}")
            if taken_names := [name for name in src if name.startswith(f"{new}.")]:
                raise TransferError(f"net2deeper: {new!r} is no new layer: the source has {taken_names[0]!r}")
            for name in names:
                make = _identity(name, like, weight, eps)
                made[name] = Route((), make, f"identity after {before}")
        return Routes(made)

    return routed(routes)


def _identity(name: str, like: Tensors, before: Tensor, eps: float) -> Callable[[], Tensor]:
    layer, _, leaf = name.rpartition(".")
    target, shape, channels = like[name], like[name].shape, before.shape[0]
    dtype = target.dtype
    if leaf == "weight" and len(shape) > 1:
        if shape[0] != channels or shape[1] != channels or any(size % 2 == 0 for size in shape[2:]):
            raise TransferError(
                f"net2deeper: {name!r} {shown(target)} holds no identity of {channels} channels: want as many out as "
                "in, and a kernel with a middle"
            )
        return lambda: _one_in_the_middle(shape, dtype, before.device)
    # eps is undone by the scale where there is one, else by the variance.
    spread = 1.0 if f"{layer}.weight" in like else 1 - eps
    values = {"weight": (1 + eps) ** 0.5, "bias": 0, "running_mean": 0, "running_var": spread, "num_batches_tracked": 0}
    if leaf not in values or (leaf != "num_batches_tracked" and shape != (channels,)):
        raise TransferError(
            f"net2deeper: {name!r} {shown(target)} holds no identity of {channels} channels: it may be a linear layer, "
            "a convolution or a batch norm"
        )
    if leaf == "weight" and f"{layer}.running_mean" not in like:
        raise TransferError(
            f"net2deeper: {name!r} {shown(target)} holds no identity: without a running_mean beside it, it scales what "
            "a layer, group or instance norm has made of each example; a new norm may be a batch norm"
        )
    return lambda: torch.full(shape, values[leaf], dtype=dtype, device=before.device)


def _one_in_the_middle(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    eye = torch.eye(shape[0], dtype=dtype, device=device)
    middle = [n for size in reversed(shape[2:]) for n in (size // 2, size // 2)]
    return torch.nn.functional.pad(eye.reshape(*eye.shape, *(1,) * len(shape[2:])), middle)
