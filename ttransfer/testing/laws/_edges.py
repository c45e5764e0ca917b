"""Laws on hard inputs: one row, confident logits, collapsed features, few bits, odd strides."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer.testing._law import Broken, law
from ttransfer.testing._subject import Inputs, Subject, show
from ttransfer.testing.laws._tools import differs, far, finite, tensors, whenever

__all__ = ["LAWS"]


def _all_finite(subject: Subject, inputs: Inputs, what: str = "") -> None:
    value, grads = subject.gradients(inputs)
    if not finite(value):
        raise Broken(f"the value{what} is {value.item()}\n{show(subject, inputs)}")
    for i in subject.trained():
        if not finite(grads[i]):
            name = subject.arguments[i].name
            raise Broken(f"the gradient of {name}{what} is not finite\n{show(subject, inputs, gradient=grads[i])}")


@law(lambda s: s.fewest <= 1 and not s.rows and any(a.has_rows for a in s.arguments))
def single_row(subject: Subject) -> None:
    """One row is a batch: value and gradient are finite.

    Broken by: a division by n - 1, a squeeze() that takes the batch's axis too, statistics over one row. Say
    min_batch=2 where one row has no loss.
    """
    whenever(subject, lambda inputs: _all_finite(subject, inputs), "moderate", "extreme", rows=(1, 1))


@law()
def hard_inputs(subject: Subject) -> None:
    """Value and gradient are finite for logits of ±1000, ties, and rows that are equal, doubled or zero.

    Broken by: a logarithm of a softmax, exp without its largest value taken off, a root or a norm at zero, 0/0.
    """
    whenever(subject, lambda inputs: _all_finite(subject, inputs), "extreme", rows=(max(2, subject.fewest), 6))


@law(lambda s: bool(s.sides()))
def equal_sides(subject: Subject) -> None:
    """Value and gradient are finite where both sides are equal.

    Broken by: a root or a norm of a difference that is zero, 0/0.
    """
    rows = (max(2, subject.fewest), 6)
    whenever(subject, lambda inputs: _all_finite(subject, subject.equal(inputs)), "moderate", "extreme", rows=rows)


@law(lambda s: bool(s.floats()))
def bfloat16(subject: Subject) -> None:
    """In bfloat16 the loss and its gradient are finite, and of the size that they have in float64.

    Broken by: a sum of squares that is rounded away, an eps below what 8 bits can tell from 0, a cast that overflows.
    """

    def rounded(inputs: Inputs) -> Inputs:
        return tensors(inputs, lambda x: x.bfloat16())

    def near(inputs: Inputs) -> None:
        few = rounded(inputs)
        _all_finite(subject, few, " in bfloat16")
        here, there = subject.value(few), subject.value(tensors(few, torch.Tensor.double))
        if not abs(here - there) <= 0.5 * (1 + abs(there)):
            raise differs(subject, few, "in bfloat16 and in float64 it is", here, there)

    rows = (max(2, subject.fewest), 6)
    whenever(subject, near, "generic", rows=rows)
    whenever(subject, lambda inputs: _all_finite(subject, rounded(inputs), " in bfloat16"), "extreme", rows=rows)


@law(lambda s: bool(s.floats()) and not s.tags.stochastic)
def float32(subject: Subject) -> None:
    """In float32 the loss is within a thousandth of what it is in float64.

    Broken by: a difference of large numbers, an eps that counts, a constant of half precision.
    """

    def test(inputs: Inputs) -> None:
        few = tensors(inputs, torch.Tensor.float)
        here, there = subject.value(few), subject.value(tensors(few, torch.Tensor.double))
        if far(here, there, relative=1e-3):
            raise differs(subject, few, "in float32 and in float64 it is", here, there)

    whenever(subject, test, "generic", rows=(max(2, subject.fewest), 6), least=2)


@law(lambda s: not s.tags.stochastic)
def strides(subject: Subject) -> None:
    """How a tensor lies in memory does not matter.

    Broken by: .view() where .reshape() is meant.
    """

    def test(inputs: Inputs) -> None:
        here = subject.value(inputs)
        for layout in (_rows_inside, _last_two_turned, _spaced):
            other = tuple(layout(x) if isinstance(x, Tensor) and x.ndim > 1 else x for x in inputs)
            try:
                value = subject.fn(*other)  # not by `call`, whose copies might be put in order
            except Exception as error:
                text = str(error).strip().splitlines()[0]
                raise Broken(f"for tensors not contiguous it raised: {text}\n{show(subject, inputs)}") from error
            if far(here, float(value)):
                raise differs(subject, inputs, "contiguous and not it is", here, float(value))

    whenever(subject, test, "generic", rows=(max(2, subject.fewest), 5), least=2)


def _rows_inside(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def _last_two_turned(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def _spaced(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


LAWS = (single_row, hard_inputs, equal_sides, bfloat16, float32, strides)
