"""Fishr: the gradients of single rows must vary alike in every domain."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer.align._check import want_tensors
from ttransfer.align._invariance import Domains, domains_of, paired


@claims(coupled=True, non_negative=True, double_backward=True)
def fishr(features: Domains, logits: Domains, labels: Domains, *, variant: str = "paper") -> Tensor:
    r"""Squared distance of each domain's variances of the head's gradients from their mean.

    .. math:: \frac1{|E|} \sum_e \| v_e - \bar v \|^2, \qquad
        v_e = \frac1{n_e - 1} \sum_i (g_i - \bar g_e)^2, \qquad
        g_i = \bigl( (\mathrm{softmax}(z_i) - e_{y_i}) f_i^\top, \; \mathrm{softmax}(z_i) - e_{y_i} \bigr)

    g is what one row's cross-entropy gives the weights and biases of a linear head; squares are taken entry by entry.
    That formula stands for the gradients, so that no second derivative and no array of n · d · classes is needed. The
    paper keeps a running mean of v: `tt.terms.fishr`. Weights between 10 and 10⁴ are tried there, with 1000 for
    DomainBed, whose loss is that of "code".

    Args:
        features: what the linear head is given, (n, d) for each domain, of any numbers of rows.
        logits: what it gives, (n, classes) for each domain.
        labels: whole numbers (n,) for each domain; a row with -100 is left out.
        variant: "paper", or "code" for the authors' code: variances by n rather than n - 1, and the mean over the
            head's weights where the paper has the sum.

    Returns:
        A scalar in the fourth power of the features' units, at least 0.

    Raises:
        TransferError: for what are no features, logits and labels of the same domains and rows, for one row where the
            variance is by n - 1, or for another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> reads = [f"net({d}).fc:in" for d in "ab"], [f"net({d})" for d in "ab"], [f"{d}.y" for d in "ab"]
        >>> term = tt.term(tt.align.fishr, *reads, variant="code", weight=1000.0)
        >>> wide, still = torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1)
        >>> flat, labels = torch.zeros(2, 2), torch.tensor([0, 0])
        >>> tt.align.fishr([wide, still], [flat, flat], [labels, labels]).item()  # 2 weights, (1/2 - 1/4)² each
        0.125

    Checked against:
        The gradients of single rows by `torch.func.vmap(grad)`, and a loop over them.

    Peers:
        DomainBed takes the gradients by backpack.

    References:
        Alexandre Ramé, Corentin Dancette, Matthieu Cord.
        Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization. 2022.
    """
    variances = head_variances(features, logits, labels, variant=variant, called="fishr")
    first = logits if isinstance(logits, Tensor) else logits[0]
    return variance_gap(variances, variant=variant).to(first.dtype)


def head_variances(
    features: Domains, logits: Domains, labels: Domains, *, variant: str = "paper", called: str = "head_variances"
) -> Tensor:
    """Variances, over the rows of each domain, of what a row's cross-entropy gives a linear head.

    Args:
        features: what the head is given, (n, d) for each domain.
        logits: what it gives, (n, classes) for each domain.
        labels: whole numbers (n,) for each domain; a row with -100 is left out.
        variant: as of `fishr`.
        called: the function to name in an error.

    Returns:
        (domains, classes · d + classes): the weights, then the biases; in float64 where there is one.

    Raises:
        TransferError: as `fishr`.

    Example:
        >>> import torch, ttransfer as tt
        >>> flat, labels = torch.zeros(2, 2), torch.tensor([0, 0])
        >>> tt.align.head_variances(torch.tensor([[1.0], [-1.0]]), flat, labels, variant="code").tolist()
        [[0.25, 0.25, 0.0, 0.0]]
    """
    if variant not in ("paper", "code"):
        raise TransferError(f"{called}: wanted variant 'paper' or 'code', got {variant!r}")
    fs = domains_of(called, "features", features)
    pairs = paired(called, logits, labels)
    if len(fs) != len(pairs):
        raise TransferError(f"{called}: wanted features of the {len(pairs)} domains, got {len(fs)}")
    variances: list[Tensor] = []
    for f, (z, y) in zip(fs, pairs, strict=True):
        n = z.shape[0]
        if f.ndim != 2 or f.shape[0] != n or not f.is_floating_point():
            raise TransferError(f"{called}: wanted features (n, d) of the rows of {shown(z)}, got {shown(f)}")
        if variant == "paper" and n < 2:
            raise TransferError(f"{called}: wanted at least 2 rows in each domain, got {shown(z)}")
        # Variances as differences of squares: in float64, where there is one.
        precise = z.dtype if z.device.type == "mps" else torch.float64
        f, z = f.to(precise), z.to(precise)
        f = torch.cat([f, torch.ones_like(f[:, :1])], 1)  # the bias is the weight of a 1
        error = z.softmax(1) - (y[:, None] == torch.arange(z.shape[1], device=y.device)).to(precise)
        there = y != -100
        error, n = torch.where(there[:, None], error, 0), there.sum().to(precise)
        spread = error.square().mT @ f.square() / n - (error.mT @ f / n).square()
        spread = spread * (n / (n - 1)) if variant == "paper" else spread
        variances.append(torch.cat([spread[:, :-1].flatten(), spread[:, -1]]))
    if any(v.shape != variances[0].shape for v in variances):
        raise TransferError(f"{called}: wanted features and logits of one width in all domains")
    return torch.stack(variances)


def variance_gap(variances: Tensor, *, variant: str = "paper") -> Tensor:
    """Mean squared distance of the domains' variances from their mean: `fishr` of what is already known.

    Args:
        variances: (domains, weights), such as `head_variances`.
        variant: "paper" for the sum over weights, "code" for their mean.

    Returns:
        A scalar, at least 0.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.variance_gap(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), variant="code").item()
        0.5
    """
    want_tensors("variance_gap", variances=variances)
    squares = (variances - variances.mean(0)).square()
    return squares.sum(1).mean() if variant == "paper" else squares.mean()
