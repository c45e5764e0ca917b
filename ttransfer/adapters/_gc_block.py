"""Global context of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.adapters._layer import start_layer, want_map
from ttransfer.core._maps import Adapter
from ttransfer.core._types import Params

__all__ = ["gc_block"]


def gc_block(ratio: int = 2) -> Adapter:
    r"""The context of a GcBlock: a map pooled by a learned attention over positions, then two small layers.

    .. math::
        g = W_2 \, \mathrm{relu}\bigl( \mathrm{LN}(W_1 z + b_1) \bigr) + b_2, \qquad
        z = \sum_p \mathrm{softmax}_p(w \cdot x_p) \, x_p

    It starts at 0, for the last layer does. A bias of the scores would have no say, and there is none.
    `tt.losses.fgd_global` adds the context to the map that it was made of: pipe the student's reading through one
    block, and the teacher's through another.

    Args:
        ratio: the layer between has c / ratio channels, one at least.

    Returns:
        An `Adapter` from maps (n, c, h, w) to (n, c).

    Raises:
        TransferError: for a ratio below 1; at init and apply, for what is no map or has another number of channels.

    Example:
        >>> import torch, ttransfer as tt
        >>> block = tt.adapters.gc_block()
        >>> params = block.init(torch.Generator().manual_seed(0), torch.empty(2, 4, 5, 5, device="meta"))
        >>> params["mask.weight"].shape, params["0.weight"].shape, params["3.weight"].shape
        (torch.Size([1, 4]), torch.Size([2, 4]), torch.Size([4, 2]))
        >>> block.apply(params, torch.ones(2, 4, 5, 5))
        tensor([[0., 0., 0., 0.],
                [0., 0., 0., 0.]])

    References:
        Yue Cao, Jiarui Xu, Stephen Lin, Fangyun Wei, Han Hu.
        GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond. 2019.
    """
    if ratio < 1:
        raise TransferError(f"gc_block: wanted a ratio of at least 1, got {ratio}")

    def init(generator: torch.Generator, like: Tensor) -> Params:
        want_map("gc_block", like)
        c = like.shape[1]
        middle = max(1, c // ratio)
        first = start_layer(generator, (middle, c), like.dtype)
        weight = first["weight"]
        return {
            "mask.weight": nn.init.kaiming_normal_(weight.new_empty(1, c), generator=generator),
            "0.weight": weight,
            "0.bias": first["bias"],
            "1.weight": weight.new_ones(middle),
            "1.bias": weight.new_zeros(middle),
            "3.weight": weight.new_zeros(c, middle),
            "3.bias": weight.new_zeros(c),
        }

    def apply(params: Params, feature: Tensor) -> Tensor:
        want_map("gc_block", feature, params["mask.weight"].shape[1])
        x = feature.flatten(2)
        scores = params["mask.weight"] @ x
        z = (x @ scores.softmax(2).mT)[:, :, 0]
        z = F.linear(z, params["0.weight"], params["0.bias"])
        z = F.layer_norm(z, z.shape[1:], params["1.weight"], params["1.bias"])
        return F.linear(z.relu(), params["3.weight"], params["3.bias"])

    return Adapter(init, apply)
