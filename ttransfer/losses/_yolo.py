"""Distillation of one-stage detectors of the YOLO kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_alike


def _images(student: Any, *_: Any) -> int:
    return student.shape[0] if isinstance(student, Tensor) else student[0].shape[0]


@claims(coupled=False, count=_images, zero_at_equality=True, non_negative=True, double_backward=True)
def yolo_kd(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    *,
    box: float | Tensor = 0.05,
    objectness: float | Tensor = 1.0,
    classes: float | Tensor = 0.5,
) -> Tensor:
    r"""Squared distance of raw predictions from the teacher's, where the teacher sees an object.

    .. math::
        \sum_k \frac{1}{N_k} \sum_q \sigma(o^t_{kq}) \Bigl( \frac{\lambda_b}{4} \| b_{kq} - b^t_{kq} \|^2
        + \lambda_o (o_{kq} - o^t_{kq})^2 + \frac{\lambda_c}{C} \| c_{kq} - c^t_{kq} \|^2 \Bigr)

    k are the scales, q the N anchors of all images and positions of one; o is the logit of objectness. Nearly all
    anchors lie in the background, where the teacher's boxes and classes mean nothing: its objectness takes them out.
    The default weights are those of YOLOv5's own loss; Adlik weighs the whole by 10.

    Args:
        student: prediction maps (n, anchors, h, w, 5 + C), before any sigmoid: four numbers of a box, objectness, C
            classes. One for each scale.
        teacher: maps of the same shapes; they get no gradient.
        box: the weight of boxes.
        objectness: the weight of objectness.
        classes: the weight of classes.

    Returns:
        A scalar, at least 0, in squared logits: for each scale the mean over anchors, and the sum over scales.

    Raises:
        TransferError: for maps of fewer than five numbers, for shapes or numbers of scales that differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> student, teacher = torch.zeros(1, 1, 1, 1, 7), torch.tensor([0.0, 0, 0, 2, 0, 4, 0]).view(1, 1, 1, 1, 7)
        >>> tt.losses.yolo_kd(student, teacher, box=1.0, classes=0.5).item()  # half of 4 / 4 + 16 / 2 / 2
        2.5

    Checked against:
        A loop over anchors.

    Peers:
        Adlik has it, with its teacher in train mode; it is no paper's, nor has it a test. The paper named here scales
        boxes and classes by the teacher's objectness, but not objectness itself.

    References:
        Rakesh Mehta, Cemalettin Ozturk. Object Detection at 200 Frames Per Second. 2018.
    """
    students, teachers = ([x] if isinstance(x, Tensor) else list(x) for x in (student, teacher))
    if not students or len(students) != len(teachers):
        raise TransferError(
            f"yolo_kd: wanted as many scales of the teacher as of the student, got {len(teachers)} and {len(students)}"
        )
    total = sum(
        (_scale(s, t, box, objectness, classes) for s, t in zip(students, teachers, strict=True)),
        start=torch.zeros((), dtype=torch.float32, device=students[0].device),
    )
    return total.to(torch.promote_types(students[0].dtype, teachers[0].dtype))


def _scale(
    student: Tensor, teacher: Tensor, box: float | Tensor, objectness: float | Tensor, classes: float | Tensor
) -> Tensor:
    want_alike("yolo_kd", rank=5, student=student, teacher=teacher)
    number = student.shape[-1] - 5
    if number < 0:
        raise TransferError(f"yolo_kd: wanted maps (n, anchors, h, w, 5 + classes), got {shown(student)}")
    s, t = wide(student, teacher.detach())
    squares = (s - t).square()
    # Of a detector of one class there may be no class at all.
    parts = box * squares[..., :4].mean(-1) + objectness * squares[..., 4]
    parts = parts + classes * squares[..., 5:].sum(-1) / max(number, 1)
    return (t[..., 4].sigmoid() * parts).mean()
