"""Critics of maps: one logit for each patch, or one for the whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.adapters._layer import start_layer
from ttransfer.core._maps import Adapter
from ttransfer.core._types import Params

__all__ = ["patch", "pooled"]

_SLOPE = 0.2


def patch(*channels: int, kernel: int = 4, stride: int = 2) -> Adapter:
    """Critic of maps with a logit for each patch: strided convolutions with leaky ReLU (0.2) between them.

    ``patch(64, 128, 256, 512)`` is the discriminator of AdaptSegNet and AdvEnt: five convolutions of 4 x 4, each of
    which halves height and width, the last to one channel. Small maps, as deep in a U-Net, want ``kernel=3, stride=1``.
    The parameters carry the names that `nn.Sequential` of convolutions and activations gives them ("0.weight",
    "0.bias", "2.weight", ...), and start as those layers do, from the generator given.

    Args:
        channels: what each convolution but the last gives.
        kernel: width of all of them; the edge is filled with (kernel - 1) // 2 zeros on each side.
        stride: of all of them.

    Returns:
        An `Adapter` from maps (n, c, h, w), or volumes (n, c, d, h, w), to logits (n, 1, ...).

    Raises:
        TransferError: for channels, a kernel or a stride below 1; at init and apply, for what is no map or has another
            number of channels; at init, for a map too small for so many strides.

    Example:
        >>> import torch, ttransfer as tt
        >>> critic = tt.adapters.patch(8, 16)
        >>> like = torch.empty(2, 3, 16, 16, device="meta")
        >>> critic.apply(critic.init(torch.Generator(), like), torch.ones(2, 3, 16, 16)).shape
        torch.Size([2, 1, 2, 2])

    References:
        Yi-Hsuan Tsai, Wei-Chih Hung, Samuel Schulter, Kihyuk Sohn, Ming-Hsuan Yang, Manmohan Chandraker.
        Learning to Adapt Structured Output Space for Semantic Segmentation. 2018.
        Tuan-Hung Vu, Himalaya Jain, Maxime Bucher, Matthieu Cord, Patrick Pérez.
        ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic Segmentation. 2019.
    """
    if min((*channels, kernel, stride)) < 1:
        raise TransferError(f"patch: wanted numbers of at least 1, got {channels}, kernel={kernel}, stride={stride}")
    outs = (*channels, 1)
    edge = (kernel - 1) // 2

    def init(generator: torch.Generator, like: Tensor) -> Params:
        _want_map("patch", like)
        sizes = tuple(like.shape[2:])
        for _ in outs:
            sizes = tuple((size + 2 * edge - kernel) // stride + 1 for size in sizes)
            if min(sizes) < 1:
                cure = "fewer channels, or kernel=3, stride=1"
                raise TransferError(f"patch: {shown(like)} is too small for {len(outs)} convolutions; take {cure}")
        params: Params = {}
        for i, (into, out) in enumerate(zip((like.shape[1], *channels), outs, strict=True)):
            layer = start_layer(generator, (out, into, *[kernel] * (like.ndim - 2)), like.dtype)
            params.update({f"{2 * i}.{name}": value for name, value in layer.items()})
        return params

    def apply(params: Params, feature: Tensor) -> Tensor:
        _want_map("patch", feature, params["0.weight"].shape[1])
        convolve = F.conv2d if feature.ndim == 4 else F.conv3d
        for i in range(len(outs)):
            if i:
                feature = F.leaky_relu(feature, _SLOPE)
            weight, bias = params[f"{2 * i}.weight"], params[f"{2 * i}.bias"]
            feature = convolve(feature, weight, bias, stride=stride, padding=edge)
        return feature

    return Adapter(init, apply)


def pooled(critic: Adapter) -> Adapter:
    """Let a critic of features look at maps: the mean over positions comes first.

    Args:
        critic: features (n, c) -> anything, such as `tt.adapters.mlp(256)`; its parameters keep their names.

    Returns:
        An `Adapter` from maps (n, c, h, w), or volumes (n, c, d, h, w), to what the critic gives.

    Raises:
        TransferError: at init and apply, for what is no map.

    Example:
        >>> import torch, ttransfer as tt
        >>> critic = tt.adapters.pooled(tt.adapters.mlp(8))
        >>> params = critic.init(torch.Generator(), torch.empty(2, 3, 5, 5, device="meta"))
        >>> critic.apply(params, torch.ones(2, 3, 5, 5)).shape
        torch.Size([2, 1])
    """

    def init(generator: torch.Generator, like: Tensor) -> Params:
        _want_map("pooled", like)
        return critic.init(generator, like.flatten(2).mean(2))

    def apply(params: Params, feature: Tensor) -> Tensor:
        _want_map("pooled", feature)
        return critic.apply(params, feature.flatten(2).mean(2))

    return Adapter(init, apply)


def _want_map(called: str, x: Tensor, channels: int | None = None) -> None:
    if x.ndim not in (4, 5) or x.shape[1] == 0 or not x.is_floating_point():
        raise TransferError(f"{called}: wanted a map (n, c, h, w) or (n, c, d, h, w), got {shown(x)}")
    if channels is not None and x.shape[1] != channels:
        raise TransferError(f"{called}: wanted c = {channels}, as at init, got {shown(x)}")
