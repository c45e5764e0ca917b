"""Wasserstein distance by a critic whose slope is held near 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import root, wide
from ttransfer.align._check import features, items, one_logit, want_tensors

__all__ = ["gradient_penalty", "wdgrl"]


@claims(coupled=True, row_symmetric=True, repeat_invariant=True, shift_invariant=False, double_backward=True)
def wdgrl(source_values: Tensor, target_values: Tensor) -> Tensor:
    r"""How much higher a critic finds the source than the target: an estimate of their Wasserstein distance.

    .. math:: \frac1n \sum_i f(s_i) - \frac1m \sum_j f(t_j)

    The distance is the largest such difference over critics of slope at most 1. A critic maximises it less a
    multiple of `gradient_penalty`; the features minimise it.

    Args:
        source_values: the critic's value of each item: (n,), (n, 1), tokens (n, tokens, 1) or a map (n, 1, h, w).
        target_values: the same for m items.

    Returns:
        A scalar of either sign, in the units of the features.

    Raises:
        TransferError: for more than one value per item.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.wdgrl(torch.tensor([1.0, 3.0]), torch.tensor([0.5])).item()
        1.5

    Checked against:
        A loop; POT's emd2_1d for the best critic of two samples on a line.

    Peers:
        ADAPT has it.

    References:
        Jian Shen, Yanru Qu, Weinan Zhang, Yong Yu.
        Wasserstein Distance Guided Representation Learning for Domain Adaptation. 2018.
    """
    one_logit("wdgrl", source=source_values, target=target_values)
    s, t = wide(source_values, target_values)
    return (s.mean() - t.mean()).to(torch.promote_types(source_values.dtype, target_values.dtype))


@claims(coupled=True)
def gradient_penalty(critic: Callable[[Tensor], Tensor], source: Tensor, target: Tensor, mixing: Tensor) -> Tensor:
    r"""How far a critic's slope is from 1, at the rows of both domains and between them.

    .. math:: \frac{1}{2n + m} \sum_h \bigl( \| \nabla f(h) \| - 1 \bigr)^2, \qquad
        h \in \{s_i\} \cup \{t_j\} \cup \{ \epsilon_i s_i + (1 - \epsilon_i) t_{i \bmod m} \}

    Each source row is mixed with one target row; where there are fewer of these they are taken again. The critic alone
    gets a gradient, through its slope: it must be differentiable twice. Where it is flat its slope is 0 and has no
    direction.

    Args:
        critic: features (k, d) -> one value per row, (k,) or (k, 1), each from its row alone.
        source: features (n, d); get no gradient.
        target: features (m, d); get no gradient.
        mixing: (n,), from 0 to 1, such as `tt.uniform` draws.

    Returns:
        A scalar, at least 0, in the square of the critic's slope.

    Raises:
        TransferError: for features of different widths, for maps, or mixing numbers that are not one for each source
            row.

    Example:
        >>> import torch, ttransfer as tt
        >>> x, half = torch.randn(4, 2), torch.full((4,), 0.5)
        >>> tt.align.gradient_penalty(lambda h: 3 * h[:, 0], x, x, half).item()  # (3 - 1)^2
        4.0

    Checked against:
        A loop over rows with torch.autograd.

    References:
        Jian Shen, Yanru Qu, Weinan Zhang, Yong Yu.
        Wasserstein Distance Guided Representation Learning for Domain Adaptation. 2018.
        Ishaan Gulrajani, Faruk Ahmed, Martin Arjovsky, Vincent Dumoulin, Aaron Courville.
        Improved Training of Wasserstein GANs. 2017.
    """
    want_tensors("gradient_penalty", source=source, target=target, mixing=mixing)
    s, t = features("gradient_penalty", source.detach(), target.detach(), rows=1)
    if mixing.shape != source.shape[:1] or not mixing.is_floating_point():
        raise TransferError(
            "gradient_penalty: wanted a mixing number for each source row, got "
            + items(source=source, target=target, mixing=mixing)
        )
    other = t[torch.arange(s.shape[0], device=s.device) % t.shape[0]]
    by = mixing.detach().to(s.dtype)[:, None]
    points = torch.cat([s, t, by * s + (1 - by) * other])

    def total(h: Tensor) -> Tensor:
        value = critic(h)
        if value.numel() != h.shape[0]:
            raise TransferError(
                f"gradient_penalty: wanted a critic of one value per row, (k,) or (k, 1), got {shown(value)} for "
                f"{shown(h)}"
            )
        return value.sum()

    slopes = torch.func.grad(total)(points)
    return (root(slopes.square().sum(1)) - 1).square().mean()
