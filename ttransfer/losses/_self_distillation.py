"""Self-distillation: the exits along a net learn from its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import divergence, wide
from ttransfer.losses._check import want_floats


@claims(coupled=False, non_negative=True, double_backward=True)
def self_distillation(
    student: Tensor | Sequence[Tensor], teacher: Tensor, *, temperature: float | Tensor = 3.0
) -> Tensor:
    r"""Divergence of each shallow exit's softened prediction from the deepest one's, summed over exits.

    .. math::
        T^2 \sum_e \frac1n \sum_i \mathrm{KL}\bigl( \mathrm{softmax}(t_i / T) \,\|\, \mathrm{softmax}(s_{ei} / T) \bigr)

    The deepest exit teaches and is not pulled back. Beside it, each exit has a cross-entropy with the labels; the
    paper weighs that by 1 - α and this by α, and has a small squared distance of features, `F.mse_loss`.

    Args:
        student: the shallow exits' logits: a list of (n, classes), or one tensor (n, exits, classes).
        teacher: the deepest exit's logits (n, classes); get no gradient.
        temperature: T > 0; the authors' code has 3.

    Returns:
        A scalar in nats, at least 0: a mean over examples, a sum over exits, each of which counts once.

    Raises:
        TransferError: for no exits, or shapes that do not fit.

    Example:
        >>> import torch, ttransfer as tt
        >>> shallow, deep = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> round(tt.losses.self_distillation([shallow, shallow, deep], deep, temperature=2.0).item(), 4)  # 2 of 0.4438
        0.8876

    Checked against:
        `kd` for each exit, and a loop.

    Peers:
        neural-compressor 2 adds up within its loop over groups, so that the first of three counts three times, uses
        the temperature for the second group only, drops T² and lets the deepest exit be pulled. The authors' code
        has the cross-entropy with the teacher's predictions, of the same gradient.

    References:
        Linfeng Zhang, Jiebo Song, Anni Gao, Jingwei Chen, Chenglong Bao, Kaisheng Ma.
        Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation. 2019.
    """
    exits = [student] if isinstance(student, Tensor) else list(student)
    if not exits:
        raise TransferError("self_distillation: wanted the logits of at least one shallow exit, got none")
    want_floats("self_distillation", **{f"student[{i}]": x for i, x in enumerate(exits)}, teacher=teacher)
    n, classes = teacher.shape[0], teacher.shape[-1]
    if isinstance(student, Tensor):
        fits = student.ndim == 3 and (student.shape[0], student.shape[2]) == (n, classes)
    else:
        fits = all(x.shape == teacher.shape for x in exits)
    if teacher.ndim != 2 or not fits:
        raise TransferError(
            f"self_distillation: wanted exits of (n, classes), or one tensor (n, exits, classes), "
            f"got {', '.join(map(shown, exits))} and teacher {shown(teacher)}"
        )
    s, t = wide(student if isinstance(student, Tensor) else torch.stack(exits, 1), teacher.detach())
    rows = divergence(s / temperature, (t / temperature)[:, None], 2).sum(1)
    return (temperature**2 * rows).mean().to(teacher.dtype)
