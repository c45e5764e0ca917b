"""Virtual adversarial training: predictions must not change in the direction in which they change most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, unit, wide
from ttransfer.align._check import want_logits, want_tensors, whole


@claims(coupled=False, non_negative=True, detaches=("x", "direction"))
def vat(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    direction: Tensor,
    *,
    radius: float | Tensor = 8.0,
    iterations: int = 1,
) -> Tensor:
    r"""Divergence of a net's prediction beside an input from that at it, in the direction where that is largest.

    .. math::
        \frac1n \sum_i \mathrm{KL}\bigl( p(x_i) \,\|\, p(x_i + r_i) \bigr), \qquad
        r_i = \varepsilon \frac{H_i d_i}{\|H_i d_i\|}, \quad
        H_i = \nabla_r^2 \, \mathrm{KL}\bigl( p(x_i) \,\|\, p(x_i + r) \bigr) \Big|_{r = 0},
        \quad p = \mathrm{softmax} \circ f

    H d is a step of the power iteration towards the curvature's first eigenvector, from a random d. It is
    :math:`J^\top (\mathrm{diag}(p) - p p^\top) J d` for the net's Jacobian J, which is taken as it is; the paper takes
    the difference of two gradients ξ = 1e-6 apart instead, of which float32 leaves little but rounding. The gradient
    is that of p(x + r) alone: p(x) and r are held constant. The net must be twice differentiable by autograd: around
    fused attention, ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``. A module with batch normalisation must be in
    eval mode, or be what `tt.functional` makes of it: in train mode it writes its statistics, which torch refuses.

    Args:
        fn: inputs (n, ...) -> logits (n, classes) or (n, classes, ...); in a term it is what the path "net:fn" gives,
            and `tt.terms.vat` is that term.
        x: inputs (n, ...); get no gradient.
        direction: d, random numbers of the same shape, from a normal distribution in the paper; only its direction
            counts, row by row.
        radius: ε, the length of r, in units of the inputs. The default is that of the authors' code; it has to be
            chosen for the data.
        iterations: of the power iteration, at least 1.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        TransferError: for a direction of another shape, fewer than one iteration, a net that gives no logits, or
            one that writes into its own tensors.

    Example:
        >>> import torch, ttransfer as tt
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # one of two inputs counts
        >>> x, direction = torch.zeros(1, 2), torch.tensor([[1.0, 5.0]])
        >>> value = tt.align.vat(lambda x: x @ weight, x, direction, radius=1.0)
        >>> round(value.item(), 4)  # log((1 + e) / 2) - 1/2
        0.1201

    Checked against:
        The Hessian by `torch.autograd.functional.hessian` row by row, and pytorch-adapt's VATLoss in float64.

    Peers:
        pytorch-adapt's VATLoss draws d itself, by the global generator, and puts batch normalisation into eval mode
        for it. In float32 its direction, of ξ = 1e-6, is nearly a random one.

    References:
        Takeru Miyato, Shin-ichi Maeda, Masanori Koyama, Shin Ishii. Virtual Adversarial Training: A Regularization
        Method for Supervised and Semi-Supervised Learning. 2018.
        Rui Shu, Hung H. Bui, Hirokazu Narui, Stefano Ermon. A DIRT-T Approach to Unsupervised Domain Adaptation. 2018.
    """
    want_tensors("vat", x=x, direction=direction)
    if x.ndim < 2 or direction.shape != x.shape or not x.is_floating_point():
        raise TransferError(
            f"vat: wanted floating inputs (n, ...) and a direction of their shape, "
            f"got x {shown(x)} and direction {shown(direction)}"
        )
    whole("vat", 1, iterations=iterations)
    x, d = x.detach(), direction.detach().to(x.dtype)
    clean, pull = _pulled(fn, x)
    want_logits("vat", logits=clean)
    clean = clean.detach()
    p = clean.softmax(1)
    # J d, from derivatives backwards alone: forward ones do not pass batch normalisation in a graph.
    _, push = torch.func.vjp(lambda v: pull(v)[0], torch.zeros_like(clean))[:2]
    for _ in range(iterations):
        slope = push(_rows(d))[0]
        d = pull(p * (slope - (p * slope).sum(1, keepdim=True)))[0]
    z, w = wide(fn((x + radius * _rows(d.detach())).to(x.dtype)), clean)
    return divergence(z, w).mean().to(clean.dtype)


def _pulled(fn: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[..., Any]]:
    """The net's value, and its derivative backwards."""
    if torch.compiler.is_compiling():  # an exception handler is no part of a graph
        return torch.func.vjp(fn, x)[:2]
    try:
        return torch.func.vjp(fn, x)[:2]
    except RuntimeError as error:
        if "mutate a captured Tensor" not in str(error):
            raise
        raise TransferError(
            "vat: the net writes into tensors of its own, as batch normalisation in train mode does: put it into eval "
            "mode, or give what tt.functional makes of it, as 'net:fn' reads"
        ) from error


def _rows(x: Tensor) -> Tensor:
    """Each row with length 1."""
    (flat,) = wide(x.flatten(1))
    return unit(flat).reshape(x.shape).to(x.dtype)
