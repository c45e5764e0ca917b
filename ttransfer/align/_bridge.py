"""What a bridge between two domains carries."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import wide
from ttransfer.align._check import items, want_tensors

__all__ = ["bridge"]


@claims(coupled=True, non_negative=True, row_symmetric=True, repeat_invariant=True)
def bridge(source: Tensor, target: Tensor) -> Tensor:
    r"""Mean size of what a bridge takes off, which is to vanish: half the weight for each domain.

    .. math:: \frac12 \Bigl[ \frac{1}{n k} \sum_{i,c} |b^s_{ic}| + \frac{1}{m k} \sum_{j,c} |b^t_{jc}| \Bigr]

    A bridge b stands beside a layer f whose output is used as f(x) - b(x). It takes what only one domain has; while it
    shrinks, f learns to do without.

    Args:
        source: what the bridge takes off in source rows, (n, ...).
        target: likewise for m rows.

    Returns:
        A scalar, at least 0, in the units of the bridge.

    Raises:
        TransferError: for integers or tensors without rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.bridge(torch.tensor([[1.0, -1.0]]), torch.zeros(3, 2)).item()
        0.5

    Checked against:
        pytorch-adapt's AbsLoss, and a loop.

    Peers:
        pytorch-adapt has it.

    References:
        Shuhao Cui, Shuhui Wang, Junbao Zhuo, Chi Su, Qingming Huang, Qi Tian.
        Gradually Vanishing Bridge for Adversarial Domain Adaptation. 2020.
    """
    want_tensors("bridge", source=source, target=target)
    if not all(x.is_floating_point() and x.ndim for x in (source, target)):
        raise TransferError(f"bridge: wanted floating tensors (n, ...), got {items(source=source, target=target)}")
    s, t = wide(source, target)
    return (0.5 * (s.abs().mean() + t.abs().mean())).to(torch.promote_types(source.dtype, target.dtype))
