"""Laws on what a loss does not see: order, numbering, scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttransfer.testing._law import law
from ttransfer.testing._subject import Inputs, Subject
from ttransfer.testing.laws._tools import differs, far, logit_positions, move_rows, tag, whenever

__all__ = ["LAWS"]


def _same(
    subject: Subject, change: Callable[[Inputs], Inputs], what: str, *families: str, relative: float = 1e-9
) -> None:
    def test(inputs: Inputs) -> None:
        here, there = subject.value(inputs), subject.value(change(inputs))
        if far(here, there, relative=relative):
            raise differs(subject, inputs, what, here, there)

    whenever(subject, test, *families)


def _known_rows(subject: Subject) -> bool | None:
    if not any(a.has_rows for a in subject.arguments) or subject.tags.stochastic:
        return False
    if subject.tags.row_symmetric is not None:
        return subject.tags.row_symmetric
    return True if any(a.role or a.kind == "labels" for a in subject.arguments) else None


@law(_known_rows)
def row_symmetric(subject: Subject) -> None:
    """Rows may change places: all arguments' alike, or each domain's by themselves.

    Broken by: a softmax or a norm over the rows' axis, a neighbour taken by its index, source and target rows
    paired though they have nothing to do with each other.
    """

    def change(inputs: Inputs) -> Inputs:
        orders = {}
        for a, x in zip(subject.arguments, inputs, strict=True):
            if a.has_rows and isinstance(x, Tensor) and a.rows not in orders:
                generator = torch.Generator().manual_seed(len(orders) + 1)
                orders[a.rows] = torch.randperm(x.shape[a.axis], generator=generator)
        return move_rows(subject, inputs, orders)

    _same(subject, change, "before and after the rows changed places it is")


def _has_classes(subject: Subject) -> bool:
    return bool(_with_classes(subject)) and not subject.tags.stochastic


def _with_classes(subject: Subject) -> list[int]:
    """The positions of what has classes on axis 1: logits, and if that is claimed whatever is learned from."""
    found = [i for i, a in enumerate(subject.arguments) if a.kind == "logits"]
    wide = [i for i in subject.floats() if subject.wants(i) and len(subject.arguments[i].shape) > 1]
    return found or (wide if subject.tags.class_symmetric else [])


@law(tag("class_symmetric", _has_classes))
def class_symmetric(subject: Subject) -> None:
    """The classes may be numbered otherwise, in logits and labels alike.

    Broken by: a label index off by one, a class that is singled out, arguments sorted apart.
    """

    def change(inputs: Inputs) -> Inputs:
        positions = _with_classes(subject)
        classes = inputs[positions[0]].shape[1]
        order = torch.randperm(classes, generator=torch.Generator().manual_seed(classes + 3))
        place = order.argsort()
        out: list[object] = []
        for i, (a, x) in enumerate(zip(subject.arguments, inputs, strict=True)):
            if i in positions or a.kind == "probabilities":
                out.append(x[:, order])
            elif a.kind == "labels":
                inside = (x >= 0) & (x < classes)
                out.append(torch.where(inside, place[x.clamp(0, classes - 1)], x))
            else:
                out.append(x)
        return tuple(out)

    _same(subject, change, "before and after the classes were numbered anew it is", "generic")


def _has_floats(subject: Subject) -> bool:
    return any(subject.wants(i) for i in subject.floats()) and not subject.tags.stochastic


@law(tag("shift_invariant", lambda s: bool(logit_positions(s)) and not s.tags.stochastic))
def shift_invariant(subject: Subject) -> None:
    """A number may be added to each row of logits.

    Broken by: a mask by a large negative number, a norm or a clamp of logits, a softmax over a wrong axis.
    """

    def change(inputs: Inputs, sizes: tuple[float, ...] = (1.0, 3000.0)) -> Inputs:
        out = list(inputs)
        for number, i in enumerate(logit_positions(subject)):
            x = inputs[i]
            if x.ndim < 2:
                continue
            rows = torch.arange(x.shape[0], dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            out[i] = x + (rows + 1 - number) * sizes[int(x.sum().item() * 4) % 2]
        return tuple(out)

    _same(subject, change, "before and after a number was added to each row it is", relative=1e-8)


@law(tag("scale_invariant", _has_floats))
def scale_invariant(subject: Subject) -> None:
    """All features, or logits, may be multiplied by one positive number.

    Broken by: a norm over a wrong axis or of a wrong power, a margin or a bandwidth in fixed units, an eps that counts.
    """

    def change(inputs: Inputs) -> Inputs:
        positions = [i for i in subject.floats() if subject.wants(i)]
        return tuple(x * 3.0 if i in positions else x for i, x in enumerate(inputs))

    _same(subject, change, "before and after a multiplication by 3 it is", "generic", relative=1e-6)


def _has_vectors(subject: Subject) -> bool:
    return bool(_vectors(subject)) and not subject.tags.stochastic


def _vectors(subject: Subject) -> list[int]:
    kinds = ("features", "logits") if subject.tags.rotation_invariant else ("features",)
    return [i for i, a in enumerate(subject.arguments) if a.kind in kinds and len(a.shape) == 2 and a.has_rows]


@law(tag("rotation_invariant", _has_vectors))
def rotation_invariant(subject: Subject) -> None:
    """All features may be turned by one orthogonal matrix.

    Broken by: a covariance or a norm over the wrong axis, channels compared one by one.
    """

    def change(inputs: Inputs) -> Inputs:
        out = list(inputs)
        for i in _vectors(subject):
            width = inputs[i].shape[1]
            generator = torch.Generator().manual_seed(width)
            q = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
            out[i] = inputs[i] @ q.to(inputs[i].dtype)
        return tuple(out)

    _same(subject, change, "before and after a rotation it is", "generic", relative=1e-8)


@law(tag("repeat_invariant", lambda s: any(a.has_rows for a in s.arguments) and not s.rows and not s.tags.stochastic))
def repeat_invariant(subject: Subject) -> None:
    """A batch given twice over has the same loss, as a mean has.

    Broken by: a sum for a mean, a division by the wrong count, n - 1 for n.
    """

    def change(inputs: Inputs) -> Inputs:
        pairs = zip(subject.arguments, inputs, strict=True)
        return tuple(torch.cat([x, x], a.axis) if a.has_rows and isinstance(x, Tensor) else x for a, x in pairs)

    _same(subject, change, "once and twice over it is")


LAWS = (
    row_symmetric,
    class_symmetric,
    shift_invariant,
    scale_invariant,
    rotation_invariant,
    repeat_invariant,
)
