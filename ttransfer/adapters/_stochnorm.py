"""Stochastic normalisation: batch normalisation that does not rely on the batch."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, shown

__all__ = ["stochnorm"]

_BatchNorm = nn.modules.batchnorm._BatchNorm


class _StochNorm(nn.modules.batchnorm._NormBase):
    """Normalises each channel by the batch's statistics with probability p, by the running ones otherwise.

    The draw is a dropout of its own, which is replaced by a keyed one where the net is made functional.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, p: float) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.affine = norm.affine
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        self.select = nn.Dropout(p)
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (n, channels, ...)."""
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        mean, variance = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        if self.training:
            count = input.numel() // input.shape[1]
            if count < 2:
                raise TransferError(
                    f"stochnorm: wanted more than one value per channel in train mode, got {shown(input)}"
                )
            batch_variance, batch_mean = torch.var_mean(wide, [0, *range(2, input.ndim)], correction=0)
            # One draw for all rows: that of the first.
            by_batch = self.select(wide.detach().new_ones(input.shape[:2]))[0] == 0
            used = torch.where(by_batch, batch_mean, mean), torch.where(by_batch, batch_variance, variance)
            self._remember(batch_mean.detach(), batch_variance.detach() * (count / (count - 1)))
            mean, variance = used
        shape = (1, -1, *[1] * (input.ndim - 2))
        by = (variance + self.eps).rsqrt()
        by = by if self.weight is None else by * self.weight
        out = (wide - mean.view(shape)) * by.view(shape)
        out = out if self.bias is None else out + self.bias.view(shape)
        return out.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, assigning new tensors: a transform's values are not written into old ones."""
        self.num_batches_tracked = cast(Tensor, self.num_batches_tracked) + 1
        by = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        for name, new in (("running_mean", mean), ("running_var", variance)):
            old = getattr(self, name)
            setattr(self, name, old + by * (new.to(old.dtype) - old))


def stochnorm(module: nn.Module, p: float = 0.5) -> nn.Module:
    r"""A copy of a module whose batch normalisation uses the batch's statistics for some channels only.

    .. math::
        y_c = \gamma_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c, \qquad
        (\mu_c, \sigma_c^2) = \begin{cases} \text{the batch's} & \text{with probability } p \\
        \text{the running ones} & \text{otherwise} \end{cases}

    In train mode each forward draws anew for each channel, alike for all rows, so that a pretrained net's running
    statistics take part in fine-tuning. They move as those of batch normalisation do; in eval mode nothing differs.
    Names of parameters and buffers stay, so that weights go to and fro. In a step the draw follows from the state's
    seed and the step's number, as that of dropout does. Over several ranks each normalises its own rows and draws for
    itself, and the running statistics are averaged.

    Args:
        module: with batch normalisation; it is left as it is.
        p: the probability of the batch's statistics, from 0 to 1. At 1 this is batch normalisation.

    Returns:
        The copy. Batch normalisation that keeps no running statistics stays what it is.

    Raises:
        TransferError: for a p out of range, or if there is nothing to replace.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = tt.adapters.stochnorm(torch.nn.BatchNorm1d(1), p=1.0)
        >>> net(torch.tensor([[1.0], [3.0]])).detach().round(decimals=2).flatten()
        tensor([-1.,  1.])

    Checked against:
        `torch.nn.BatchNorm2d` in train mode at p = 1 and with frozen statistics at p = 0, and a choice between the two
        channel by channel.

    Peers:
        The authors' module draws by NumPy and on a GPU only; TLlib's `convert_model` hands p to track_running_stats,
        so that it is always 0.5.

    References:
        Zhi Kou, Kaichao You, Mingsheng Long, Jianmin Wang. Stochastic Normalization. 2020.
    """
    if not 0 <= p <= 1:
        raise TransferError(f"stochnorm: wanted a probability p from 0 to 1, got {p}")
    root = copy.deepcopy(module)
    made = {
        child: _StochNorm(child, p)
        for child in root.modules()
        if isinstance(child, _BatchNorm) and child.running_mean is not None
    }
    if not made:
        raise TransferError(f"stochnorm: {type(module).__name__} has no batch normalisation with running statistics")
    for parent in list(root.modules()):
        # Not named_children, which leaves out the second name of a module that has two.
        for name, child in list(parent._modules.items()):
            if child in made:
                setattr(parent, name, made[cast(Any, child)])
    return made.get(cast(Any, root), root)
