"""Risks of several domains that are to be alike: invariant risk minimisation and risk extrapolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.align._check import classes_of, want_logits

Domains = Tensor | Sequence[Tensor]


@claims(coupled=True, non_negative=True, class_symmetric=True, double_backward=True)
def irm(logits: Domains, labels: Domains) -> Tensor:
    r"""Squared slope of each domain's risk by a number that scales all logits: is the head best for every domain?

    .. math:: \frac1{|E|} \sum_e \bigl\| \nabla_{w \mid w = 1} R_e(w \cdot z) \bigr\|^2, \qquad
        \nabla_w R_e = \frac1{n_e} \sum_i \sum_c \bigl( \mathrm{softmax}(z_i)_c - [y_i = c] \bigr) z_{ic}

    R is the cross-entropy. The slope is that formula, so that no second derivative is taken. The weight is 100 in
    DomainBed, from the 500th step on. As an estimate of the square of a mean it is too large, by the variance of the
    slope over batches; `irm_unbiased` is not.

    Args:
        logits: one tensor (n, classes) for each domain, of any numbers of rows; a single tensor is a single domain.
        labels: whole numbers (n,) for each domain; a row with -100 is left out of the means.

    Returns:
        A scalar in squared nats, at least 0: the mean over domains.

    Raises:
        TransferError: for what are no logits and labels of the same domains and rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> term = tt.term(tt.align.irm, ["net(a)", "net(b)"], ["a.y", "b.y"], weight=100.0)
        >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
        >>> round(tt.align.irm(logits, labels).item(), 4)  # (2 sigmoid(2))²
        3.1032

    Checked against:
        The gradient by the number, by autograd, as the authors' code takes it.

    Peers:
        The authors' code is the same for binary logits. DomainBed and TLlib have `irm_unbiased`.

    References:
        Martin Arjovsky, Léon Bottou, Ishaan Gulrajani, David Lopez-Paz. Invariant Risk Minimization. 2019.
    """
    return _mean("irm", logits, labels, lambda z, y: _kept(_slopes(z, y), y).square())


@claims(coupled=True, class_symmetric=True, row_symmetric=False, double_backward=True)
def irm_unbiased(logits: Domains, labels: Domains) -> Tensor:
    r"""`irm` by two halves of each batch, which **may be negative**.

    .. math:: \frac1{|E|} \sum_e
        \nabla_w R_e^{\mathrm{even}} \cdot \nabla_w R_e^{\mathrm{odd}} \Big|_{w = 1}

    The rows of even and of odd number are independent, so that the mean over batches is the square of the mean slope.

    Args:
        logits: one tensor (n, classes) for each domain, of at least two rows; a single tensor is a single domain.
        labels: whole numbers (n,) for each domain; a row with -100 is left out of the means.

    Returns:
        A scalar in squared nats, of either sign: the mean over domains.

    Raises:
        TransferError: for what are no logits and labels of the same domains and rows, or for a single row.

    Example:
        >>> import torch, ttransfer as tt
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1])
        >>> round(tt.align.irm_unbiased(logits, labels).item(), 4)  # 2 sigmoid(2) times sigmoid(1) - 1
        -0.4738

    Checked against:
        The gradients by the number, by autograd, as DomainBed takes them.

    Peers:
        DomainBed and TLlib have it.

    References:
        Martin Arjovsky, Léon Bottou, Ishaan Gulrajani, David Lopez-Paz. Invariant Risk Minimization. 2019.
        Ishaan Gulrajani, David Lopez-Paz. In Search of Lost Domain Generalization. 2021.
    """

    def product(z: Tensor, y: Tensor) -> Tensor:
        if z.shape[0] < 2:
            raise TransferError(f"irm_unbiased: wanted at least 2 rows in each domain, got {shown(z)}")
        slopes = _slopes(z, y)
        return _kept(slopes[::2], y[::2]) * _kept(slopes[1::2], y[1::2])

    return _mean("irm_unbiased", logits, labels, product)


@claims(coupled=True, non_negative=True, class_symmetric=True, double_backward=True)
def vrex(logits: Domains, labels: Domains) -> Tensor:
    r"""Variance of the domains' risks.

    .. math:: \frac1{|E|} \sum_e (R_e - \bar R)^2, \qquad \bar R = \frac1{|E|} \sum_e R_e

    R is the cross-entropy; for other risks take ``torch.stack(risks).var(correction=0)``. Its weight β beside the mean
    risk is 10 in DomainBed.

    Args:
        logits: one tensor (n, classes) for each domain, of any numbers of rows.
        labels: whole numbers (n,) for each domain; a row with -100 is left out of the means.

    Returns:
        A scalar in squared nats, at least 0; 0 for a single domain.

    Raises:
        TransferError: for what are no logits and labels of the same domains and rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> term = tt.term(tt.align.vrex, ["net(a)", "net(b)"], ["a.y", "b.y"], weight=10.0)
        >>> even, sure = torch.zeros(1, 2), torch.tensor([[99.0, 0.0]])
        >>> round(tt.align.vrex([even, sure], [torch.tensor([0])] * 2).item(), 4)  # (log(2) / 2)²
        0.1201

    Checked against:
        A loop over domains.

    Peers:
        DomainBed and TLlib have it.

    References:
        David Krueger, Ethan Caballero, Joern-Henrik Jacobsen, Amy Zhang, Jonathan Binas, Dinghuai Zhang,
        Remi Le Priol, Aaron Courville. Out-of-Distribution Generalization via Risk Extrapolation (REx). 2021.
    """
    risks = domain_risks(logits, labels, called="vrex")
    return (risks - risks.mean()).square().mean().to(paired("vrex", logits, labels)[0][0].dtype)


def domain_risks(logits: Domains, labels: Domains, *, called: str = "domain_risks") -> Tensor:
    """Cross-entropy of each domain.

    Args:
        logits: one tensor (n, classes) for each domain.
        labels: whole numbers (n,) for each domain; a row with -100 is left out of the means.
        called: the function to name in an error.

    Returns:
        (domains,), in nats, float32 at least.

    Raises:
        TransferError: for what are no logits and labels of the same domains and rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.align.domain_risks([torch.zeros(1, 2), torch.zeros(3, 2)], [torch.tensor([0]), torch.tensor([0, 1, 1])])
        tensor([0.6931, 0.6931])
    """
    return torch.stack([F.cross_entropy(wide(z)[0], y) for z, y in paired(called, logits, labels)])


def paired(called: str, logits: Domains, labels: Domains) -> list[tuple[Tensor, Tensor]]:
    """Pair the logits and labels of each domain, checked.

    Raises:
        TransferError: for what are no logits and labels of the same domains and rows.
    """
    zs, ys = domains_of(called, "logits", logits), domains_of(called, "labels", labels)
    if len(zs) != len(ys) or not zs:
        raise TransferError(
            f"{called}: wanted logits and labels of the same domains, got {len(zs)} of logits and {len(ys)} of labels"
        )
    for z, y in zip(zs, ys, strict=True):
        want_logits(called, logits=z)
        if z.ndim != 2 or y.shape != z.shape[:1] or y.is_floating_point():
            raise TransferError(
                f"{called}: wanted logits (n, classes) and whole labels (n,) of each domain, "
                f"got logits {shown(z)} and labels {shown(y)}"
            )
        classes_of(called, z.shape[1], ignored=-100, labels=y)
    return [(z, y.long()) for z, y in zip(zs, ys, strict=True)]  # as uint8, 156 would be -100


def domains_of(called: str, name: str, given: Domains) -> list[Tensor]:
    """A list of a tensor for each domain, checked; one tensor is one domain.

    Raises:
        TransferError: for what is neither.
    """
    if isinstance(given, Tensor):
        return [given]
    if not isinstance(given, Sequence) or not all(isinstance(x, Tensor) for x in given):
        raise TransferError(f"{called}: wanted a tensor, or a list of one for each domain, got {name} {shown(given)}")
    return list(given)


def _slopes(z: Tensor, y: Tensor) -> Tensor:
    """The slope of each row's cross-entropy by a number that scales its logits, at 1: (n,); 0 where y is -100."""
    (z,) = wide(z)
    # (p - y)·z, by differences from the label's logit: a number added to all logits then cancels before it rounds.
    there = y != -100
    z = z - z.gather(1, torch.where(there, y, 0)[:, None])
    return torch.where(there, (z.softmax(1) * z).sum(1), 0)


def _kept(rows: Tensor, y: Tensor) -> Tensor:
    """The mean over rows whose label is not -100."""
    return rows.sum() / (y != -100).sum()


def _mean(called: str, logits: Domains, labels: Domains, one: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    pairs = paired(called, logits, labels)
    return torch.stack([one(z, y) for z, y in pairs]).mean().to(pairs[0][0].dtype)
