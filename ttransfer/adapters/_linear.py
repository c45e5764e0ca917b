"""Linear layers and small perceptrons over the last axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.adapters._layer import start_layer
from ttransfer.core._maps import Adapter
from ttransfer.core._types import Params


def linear(out: int, *, bias: bool = True) -> Adapter:
    r"""Affine map of the last axis, :math:`x \mapsto x W^\top + b`.

    It starts as `torch.nn.Linear` does, from the generator given: W and b uniform in ±1/√d. The parameters
    are "weight" (out, d) and "bias" (out,), in float32, or float64 where the feature is.

    Args:
        out: width of the result.
        bias: whether there is a b.

    Returns:
        An `Adapter` from features (n, d) or (n, tokens, d) to the same with `out` in the place of d.

    Raises:
        TransferError: for an `out` below 1; at init and apply, for a map or another width. A map (n, c, h, w)
            is never flattened silently: pool it, or bring its channels last as tokens.

    Example:
        >>> import torch, ttransfer as tt
        >>> adapter = tt.adapters.linear(3)
        >>> params = adapter.init(torch.Generator().manual_seed(0), torch.empty(8, 5, device="meta"))
        >>> {name: tuple(p.shape) for name, p in params.items()}
        {'weight': (3, 5), 'bias': (3,)}
        >>> adapter.apply(params, torch.ones(8, 5)).shape
        torch.Size([8, 3])
    """
    _want_widths("linear", (out,))

    def init(generator: torch.Generator, like: Tensor) -> Params:
        _want_feature("linear", like)
        return start_layer(generator, (out, like.shape[-1]), like.dtype, bias)

    def apply(params: Params, feature: Tensor) -> Tensor:
        _want_feature("linear", feature, params["weight"].shape[1])
        return F.linear(feature, params["weight"], params.get("bias"))

    return Adapter(init, apply)


def mlp(*hidden: int, out: int = 1) -> Adapter:
    """Perceptron over the last axis with ReLU between its layers; by default the critic of adversarial alignment.

    The parameters carry the names that `nn.Sequential(nn.Linear(...), nn.ReLU(), nn.Linear(...))` gives them
    ("0.weight", "0.bias", "2.weight", ...), and start as those layers do, from the generator given.

    Args:
        hidden: widths of the hidden layers; none makes it a linear map.
        out: width of the result; 1 gives one logit per item.

    Returns:
        An `Adapter` from features (n, d) or (n, tokens, d) to the same with `out` in the place of d.

    Raises:
        TransferError: for a width below 1; at init and apply, for a map or another width, as `linear` does.

    Example:
        >>> import torch, ttransfer as tt
        >>> critic = tt.adapters.mlp(256)
        >>> params = critic.init(torch.Generator().manual_seed(0), torch.empty(8, 512, device="meta"))
        >>> {name: tuple(p.shape) for name, p in params.items()}
        {'0.weight': (256, 512), '0.bias': (256,), '2.weight': (1, 256), '2.bias': (1,)}
        >>> critic.apply(params, torch.ones(8, 512)).shape
        torch.Size([8, 1])
    """
    widths = (*hidden, out)
    _want_widths("mlp", widths)

    def init(generator: torch.Generator, like: Tensor) -> Params:
        _want_feature("mlp", like)
        params: Params = {}
        for i, (fan_in, fan_out) in enumerate(zip((like.shape[-1], *hidden), widths, strict=True)):
            layer = start_layer(generator, (fan_out, fan_in), like.dtype)
            params.update({f"{2 * i}.{name}": value for name, value in layer.items()})
        return params

    def apply(params: Params, feature: Tensor) -> Tensor:
        _want_feature("mlp", feature, params["0.weight"].shape[1])
        for i in range(len(widths)):
            if i:
                feature = feature.relu()
            feature = F.linear(feature, params[f"{2 * i}.weight"], params[f"{2 * i}.bias"])
        return feature

    return Adapter(init, apply)


def _want_widths(called: str, widths: tuple[int, ...]) -> None:
    if min(widths) < 1:
        raise TransferError(f"{called}: wanted widths of at least 1, got {widths}")


def _want_feature(called: str, x: Tensor, width: int | None = None) -> None:
    wanted = "a feature (n, d) or (n, tokens, d)"
    if x.ndim > 3:
        cure = "x.mean((-2, -1)) pools a map, x.flatten(2).mT makes its positions tokens"
        raise TransferError(f"{called}: wanted {wanted}, got {shown(x)}; {cure}")
    if x.ndim < 2 or x.shape[-1] == 0 or not x.is_floating_point():
        raise TransferError(f"{called}: wanted {wanted} of floating numbers, got {shown(x)}")
    if width is not None and x.shape[-1] != width:
        raise TransferError(f"{called}: wanted d = {width}, as at init, got {shown(x)}")
