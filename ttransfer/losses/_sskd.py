"""Distillation of self-supervision: how alike transformed examples are to the originals, by the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, picked, unit, wide
from ttransfer.losses._check import want_floats, want_labels, want_logits


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    scale_invariant=True,
    rotation_invariant=True,
    row_symmetric=False,
    double_backward=True,
)
def sskd(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 0.5, keep: float | Tensor = 0.75) -> Tensor:
    r"""Divergence of similarities between transformed examples and all originals.

    .. math::
        \frac{T^2}{|K|} \sum_{a \in K} \mathrm{KL}\bigl(
        \mathrm{softmax}(A^t_a / T) \,\|\, \mathrm{softmax}(A^s_a / T)\bigr), \qquad A_{ab} = \cos(z_a, z_b)

    a goes over transformed examples, b over originals. K holds those that the teacher puts nearest to their own
    original, and of the others the part `keep` in which it ranks the original highest, rounded down; of equal ranks
    the first rows are kept. All is done by masks: shapes do not depend on the data.

    Rows come in fours, as in the authors' code: an example, then its three transformed versions (such as rotations).
    Among equal similarities the own original ranks first. Whoever trains the teacher's head first has a cross-entropy
    of A with the own originals for labels.

    Args:
        student: embeddings (4 n, d) of a head of its own.
        teacher: embeddings (4 n, e) of the teacher's; get no gradient.
        temperature: T > 0, in units of a cosine.
        keep: which part of the wrong ones stays, from 0 to 1.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over what is kept, 0 if that is nothing.

    Raises:
        TransferError: for what is not (4 n, d), or other rows on either side.

    Example:
        >>> import torch, ttransfer as tt
        >>> z = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
        >>> tt.losses.sskd(z, 3 * z).item()
        0.0
        >>> round(tt.losses.sskd(torch.ones(8, 2), z, temperature=1.0).item(), 4)  # log 2 - the entropy of 0.7311
        0.1109

    Checked against:
        The third part of torchdistill's SSKDLoss, and a loop.

    Peers:
        torchdistill and the authors' code choose rows by indices whose number depends on the data, and copy the
        embeddings 3 n times before each cosine.

    References:
        Guodong Xu, Ziwei Liu, Xiaoxiao Li, Chen Change Loy. Knowledge Distillation Meets Self-Supervision. 2020.
    """
    want_floats("sskd", student=student, teacher=teacher)
    for side, x in (("student", student), ("teacher", teacher)):
        if x.ndim != 2 or x.shape[0] % 4 or x.shape[0] == 0:
            raise TransferError(
                f"sskd: wanted embeddings (4 n, d), an example and its three versions by turns; got {side} {shown(x)}"
            )
    if student.shape[0] != teacher.shape[0]:
        raise TransferError(
            f"sskd: wanted embeddings of the same rows, got student {shown(student)} and teacher {shown(teacher)}"
        )
    s, t = (_similarities(x) for x in wide(student, teacher.detach()))
    own = torch.arange(s.shape[1], device=s.device).repeat_interleave(3)
    value = _divergence(s, t, _kept(t, own, keep), temperature)
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


@claims(
    coupled=True,
    zero_at_equality=True,
    non_negative=True,
    shift_invariant=True,
    class_symmetric=True,
    row_symmetric=False,
    double_backward=True,
)
def sskd_transformed(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 4.0,
    keep: float | Tensor = 1.0,
) -> Tensor:
    r"""Divergence of the predictions for transformed examples, of which the worst ones may be left out.

    .. math::
        \frac{T^2}{|K|} \sum_{a \in K} \mathrm{KL}\bigl(\mathrm{softmax}(t_a / T) \,\|\, \mathrm{softmax}(s_a / T)\bigr)

    K holds the rows that the teacher predicts rightly, and of the others the part `keep` in which it ranks the label
    highest, rounded down; of equal ranks the first rows are kept. With the paper's keep of 1 this is `kd`.

    Args:
        student: logits (n, classes) of transformed examples.
        teacher: logits of the same shape; gets no gradient.
        labels: whole numbers (n,), from 0 to classes - 1.
        temperature: T > 0, in units of the logits.
        keep: which part of the wrong ones stays, from 0 to 1.

    Returns:
        A scalar in nats, at least 0 (up to rounding): the mean over what is kept, 0 if that is nothing.

    Raises:
        TransferError: if the shapes differ or are not (n, classes), or for labels that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> labels = torch.tensor([0, 1])  # the teacher is wrong in the second row
        >>> round(tt.losses.sskd_transformed(student, teacher, labels, temperature=2.0, keep=0.0).item(), 4)
        0.4438

    Checked against:
        The fourth part of torchdistill's SSKDLoss, `kd`, and a loop.

    Peers:
        As for `sskd`.

    References:
        Guodong Xu, Ziwei Liu, Xiaoxiao Li, Chen Change Loy. Knowledge Distillation Meets Self-Supervision. 2020.
    """
    want_logits("sskd_transformed", student=student, teacher=teacher)
    if student.ndim != 2:
        raise TransferError(f"sskd_transformed: wanted logits (n, classes), got student {shown(student)}")
    want_labels("sskd_transformed", student, labels)
    s, t = wide(student, teacher.detach())
    value = _divergence(s, t, _kept(t, labels, keep), temperature)
    return value.to(torch.promote_types(student.dtype, teacher.dtype))


def _similarities(x: Tensor) -> Tensor:
    """Cosines of the versions (rows) with the originals (columns)."""
    fours = unit(x).unflatten(0, (-1, 4))
    return fours[:, 1:].flatten(0, 1) @ fours[:, 0].mT


def _kept(scores: Tensor, right: Tensor, keep: float | Tensor) -> Tensor:
    """Which rows count: those whose right column is largest, and the nearest of the others."""
    rank = (scores > picked(scores, right)[:, None]).sum(1)
    wrong = (rank > 0).sum()
    kept = scores.shape[0] - wrong + (wrong * keep).floor()
    return rank.argsort(stable=True).argsort() < kept


def _divergence(s: Tensor, t: Tensor, kept: Tensor, temperature: float | Tensor) -> Tensor:
    rows = divergence(s / temperature, t / temperature)
    mask = kept.to(rows.dtype)
    return temperature**2 * (mask * rows).sum() / mask.sum().clamp_min(1)
