"""Two classifiers side by side, one for each domain."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError
from ttransfer._numeric import wide
from ttransfer.align._check import classes_of, items, row_labels, same_rows, want_logits

__all__ = ["symnets_category", "symnets_confusion", "symnets_domain", "symnets_entropy"]


@claims(coupled=True, non_negative=True, row_symmetric=True, repeat_invariant=True, double_backward=True)
def symnets_domain(
    source_logits: Tensor, target_logits: Tensor, other_source_logits: Tensor, other_target_logits: Tensor
) -> Tensor:
    r"""What the classifiers of SymNets minimise: each takes the rows of its own domain.

    .. math:: -\frac1n \sum_i \log \sum_{c \le C} p^s_{ic} - \frac1m \sum_j \log \sum_{c > C} p^t_{jc}, \qquad
        p = \mathrm{softmax}([z, z'])

    Both classifiers' logits are laid side by side, 2C classes; the first is the source's, the second the target's.

    Args:
        source_logits: of the source's classifier for source rows, (n, classes).
        target_logits: of the source's classifier for target rows, (m, classes).
        other_source_logits: of the target's classifier for source rows, (n, classes).
        other_target_logits: of the target's classifier for target rows, (m, classes).

    Returns:
        A scalar in nats, at least 0; 2 log 2 where neither knows more.

    Raises:
        TransferError: for other shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> even = torch.zeros(1, 2)
        >>> round(tt.align.symnets_domain(even, even, even, even).item(), 4)  # 2 log 2
        1.3863

    Checked against:
        pytorch-adapt's SymNetsDomainLoss, and a loop.

    Peers:
        pytorch-adapt has it. Where the wrong classifier is sure by a margin of 104, in float32 the other's probability
        is 0; it is replaced by a small number, and no gradient passes.

    References:
        Yabin Zhang, Hui Tang, Kui Jia, Mingkui Tan.
        Domain-Symmetric Networks for Adversarial Domain Adaptation. 2019.
    """
    s, s2 = _pair("symnets_domain", source_logits, other_source_logits)
    t, t2 = _pair("symnets_domain", target_logits, other_target_logits)
    want_logits("symnets_domain", source_logits=source_logits, target_logits=target_logits)
    value = -_log_share(s, s2).mean() - _log_share(t2, t).mean()
    return _like(value, source_logits, target_logits, other_source_logits, other_target_logits)


@claims(coupled=False, non_negative=True, row_symmetric=True, repeat_invariant=True, double_backward=True)
def symnets_confusion(logits: Tensor, other_logits: Tensor) -> Tensor:
    r"""What the features of SymNets minimise on target rows: both classifiers take them alike.

    .. math:: -\frac{1}{2m} \sum_j \Bigl[ \log \sum_{c \le C} p_{jc} + \log \sum_{c > C} p_{jc} \Bigr], \qquad
        p = \mathrm{softmax}([z, z'])

    Args:
        logits: of the source's classifier, (m, classes).
        other_logits: of the target's classifier, (m, classes).

    Returns:
        A scalar in nats, at least log 2.

    Raises:
        TransferError: for other shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.symnets_confusion(torch.zeros(1, 2), torch.zeros(1, 2)).item(), 4)  # log 2
        0.6931

    Checked against:
        pytorch-adapt's SymNetsDomainLoss of both halves, and a loop.

    References:
        Yabin Zhang, Hui Tang, Kui Jia, Mingkui Tan.
        Domain-Symmetric Networks for Adversarial Domain Adaptation. 2019.
    """
    z, y = _pair("symnets_confusion", logits, other_logits)
    return _like(-0.5 * (_log_share(z, y) + _log_share(y, z)).mean(), logits, other_logits)


@claims(coupled=False, non_negative=True, row_symmetric=True, repeat_invariant=True, double_backward=True)
def symnets_category(logits: Tensor, other_logits: Tensor, labels: Tensor) -> Tensor:
    r"""What the features of SymNets minimise on source rows: both classifiers find the class alike.

    .. math:: -\frac{1}{2n} \sum_i \bigl[ \log p_{i y_i} + \log p_{i, y_i + C} \bigr], \qquad
        p = \mathrm{softmax}([z, z'])

    Args:
        logits: of the source's classifier, (n, classes).
        other_logits: of the target's classifier, (n, classes).
        labels: (n,) integers from 0 to classes - 1; none is ignored.

    Returns:
        A scalar in nats, at least log 2.

    Raises:
        TransferError: for other shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.symnets_category(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([1])).item(), 4)  # log 4
        1.3863

    Checked against:
        A loop, and torch's cross-entropy.

    Peers:
        pytorch-adapt takes the cross-entropy of the probabilities as if these were logits, of each half by itself, and
        their sum: never below 2 log(1 + (C - 1) exp(-1/2)), at 3 classes 1.59, where this may reach 0.69.

    References:
        Yabin Zhang, Hui Tang, Kui Jia, Mingkui Tan.
        Domain-Symmetric Networks for Adversarial Domain Adaptation. 2019.
    """
    z, y = _pair("symnets_category", logits, other_logits)
    row_labels("symnets_category", logits, labels)
    classes_of("symnets_category", logits.shape[1], labels=labels)
    both = torch.cat([z, y], 1)
    labels = labels.long()
    value = 0.5 * (F.cross_entropy(both, labels) + F.cross_entropy(both, labels + logits.shape[1]))
    return _like(value, logits, other_logits)


@claims(coupled=False, non_negative=True, row_symmetric=True, repeat_invariant=True, double_backward=True)
def symnets_entropy(logits: Tensor, other_logits: Tensor) -> Tensor:
    r"""Entropy of the classes whichever classifier finds them; features minimise it on target rows.

    .. math:: -\frac1m \sum_j \sum_{c \le C} q_{jc} \log q_{jc}, \qquad q_{jc} = p_{jc} + p_{j, c + C}, \quad
        p = \mathrm{softmax}([z, z'])

    Args:
        logits: of the source's classifier, (m, classes).
        other_logits: of the target's classifier, (m, classes).

    Returns:
        A scalar in nats, from 0 to log(classes).

    Raises:
        TransferError: for other shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> round(tt.align.symnets_entropy(torch.zeros(1, 2), torch.zeros(1, 2)).item(), 4)  # log 2
        0.6931

    Checked against:
        A loop; pytorch-adapt's SymNetsEntropyLoss, to the small number that it adds inside the logarithm.

    References:
        Yabin Zhang, Hui Tang, Kui Jia, Mingkui Tan.
        Domain-Symmetric Networks for Adversarial Domain Adaptation. 2019.
    """
    z, y = _pair("symnets_entropy", logits, other_logits)
    first, second = torch.cat([z, y], 1).softmax(1).chunk(2, 1)
    q = first + second
    # What underflows to 0 adds 0, and its logarithm is kept finite for the gradient.
    log_q = q.clamp_min(torch.finfo(q.dtype).tiny).log()
    return _like(-(q * log_q).sum(1).mean(), logits, other_logits)


def _pair(called: str, logits: Tensor, other_logits: Tensor) -> tuple[Tensor, ...]:
    want_logits(called, logits=logits, other_logits=other_logits)
    same_rows(called, logits=logits, other_logits=other_logits)
    if logits.ndim != 2 or other_logits.ndim != 2:
        given = items(logits=logits, other_logits=other_logits)
        raise TransferError(f"{called}: wanted logits (n, classes) of two classifiers, got {given}")
    return wide(logits, other_logits)


def _log_share(own: Tensor, other: Tensor) -> Tensor:
    """The logarithm of the probability that one classifier takes a row, (n,)."""
    return F.logsigmoid(own.logsumexp(1) - other.logsumexp(1))


def _like(value: Tensor, *given: Tensor) -> Tensor:
    return value.to(functools.reduce(torch.promote_types, (x.dtype for x in given)))
