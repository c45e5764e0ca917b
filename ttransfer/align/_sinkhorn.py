"""Sinkhorn divergence: entropic optimal transport without its bias."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer.align._check import features, in_range, whole
from ttransfer.align._distances import squared_distances
from ttransfer.align._kernels import mean_square
from ttransfer.align._transport import dual_value, potentials

__all__ = ["sinkhorn_divergence"]


@claims(coupled=True, zero_at_equality=True, non_negative=True, symmetric=True, rotation_invariant=True)
def sinkhorn_divergence(
    source: Tensor, target: Tensor, *, epsilon: float | Tensor | None = None, iterations: int = 100
) -> Tensor:
    r"""Entropic transport between the domains, less half of that within each: from transport to `mmd` by epsilon.

    .. math::
        \mathrm{OT}_\varepsilon(s, t) - \tfrac12 \mathrm{OT}_\varepsilon(s, s)
        - \tfrac12 \mathrm{OT}_\varepsilon(t, t), \qquad
        \mathrm{OT}_\varepsilon(x, y) = \min_\pi \sum_{i,j} \pi_{ij} \frac{\|x_i - y_j\|^2}{2}
        + \varepsilon \sum_{i,j} \pi_{ij} \log (nm \, \pi_{ij})

    The plans π give every row the same mass. For ε to 0 it is half of the squared Wasserstein distance, for large ε
    half of the squared distance between the means. The gradient is that of the costs at the plans found, by the
    envelope theorem: memory nm, whatever the iterations. Second derivatives leave out how the plans would move. Where
    the iterations do not suffice the value is a little off, and so is the gradient.

    Args:
        source: features (n, d).
        target: features (m, d); m need not be n.
        epsilon: the temperature, in the squares of the features' units; the square of what geomloss calls blur.
            None takes a twentieth of the mean squared distance between two rows of the pooled batch, without
            gradient, so that plans do not depend on the features' scale.
        iterations: of Sinkhorn; the first quarter goes from a high temperature to epsilon.

    Returns:
        A scalar, at least 0 up to what the iterations leave, in the squares of the features' units.

    Raises:
        TransferError: for maps, for widths that differ, for no rows, for no iterations.

    Example:
        >>> import torch, ttransfer as tt
        >>> rows = torch.tensor([[0.0], [10.0]])
        >>> round(tt.align.sinkhorn_divergence(rows, rows + 1, epsilon=0.1).item(), 4)  # 1² / 2
        0.5

    Checked against:
        POT's solve_sample(debias=True), geomloss's "sinkhorn", SciPy's linear programme at a small epsilon.

    Peers:
        geomloss has it; at its default scaling of 0.5 its value is 0.4 % off on 5 and 7 rows at blur 1. POT's costs are
        not halved, and its empirical_sinkhorn_divergence leaves out the entropies (6 % on the same).

    References:
        Jean Feydy, Thibault Séjourné, François-Xavier Vialard, Shun-ichi Amari, Alain Trouvé, Gabriel Peyré.
        Interpolating between Optimal Transport and MMD using Sinkhorn Divergences. 2019.
        Aude Genevay, Gabriel Peyré, Marco Cuturi. Learning Generative Models with Sinkhorn Divergences. 2018.
    """
    s, t = features("sinkhorn_divergence", source, target, rows=1)
    in_range("sinkhorn_divergence", epsilon=epsilon)
    whole("sinkhorn_divergence", 1, iterations=iterations)
    if epsilon is None:
        epsilon = mean_square(torch.cat([s, t]).detach()) / 20

    def transport(x: Tensor, y: Tensor) -> Tensor:
        cost = squared_distances(x, y) / 2
        return dual_value(cost, *potentials(cost, epsilon, iterations), epsilon)

    value = transport(s, t) - (transport(s, s) + transport(t, t)) / 2
    return value.to(torch.promote_types(source.dtype, target.dtype))
