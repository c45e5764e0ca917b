"""Laws on where a loss is smallest."""

from __future__ import annotations

from ttransfer.testing._law import Broken, law
from ttransfer.testing._subject import Inputs, Subject, show
from ttransfer.testing.laws._tools import differs, far, finite, tag, whenever

__all__ = ["LAWS"]

PLAIN = ("fixed", "mask", "weights")


def _students(subject: Subject) -> tuple[int, int] | None:
    """The student and the teacher, where the loss compares these alone."""
    sides = subject.sides()
    if len(sides) != 1 or subject.arguments[sides[0][0]].role != "student":
        return None
    others = [x for i, x in enumerate(subject.arguments) if i not in sides[0]]
    return None if any(x.kind not in PLAIN for x in others) else sides[0]


def _compares(subject: Subject) -> bool:
    return _students(subject) is not None and not subject.tags.not_stationary


@law(_compares)
def stationary(subject: Subject) -> None:
    """A student that equals its teacher is pulled nowhere.

    Broken by: a softmax of what are probabilities already, a temperature on one side alone, an eps inside a
    logarithm, a normalisation on one side alone. Say not_stationary="why" where it is meant.
    """
    pair = _students(subject)
    assert pair is not None

    def test(inputs: Inputs) -> None:
        same = subject.equal(inputs)
        _, grads = subject.gradients(same)
        grad, size = grads[pair[0]], same[pair[0]].abs().max().item()
        if not finite(grad) or grad.abs().max().item() > 1e-11 * (1 + size):
            raise Broken(f"at equality the student's gradient is not zero\n{show(subject, same, gradient=grad)}")

    whenever(subject, test, "moderate", "generic", "extreme")


@law(_compares)
def lowest_at_equality(subject: Subject) -> None:
    """No student has a lower loss than one that equals its teacher.

    Broken by: a wrong sign, the arguments of a divergence in a wrong order of logarithm and probability.
    """

    def test(inputs: Inputs) -> None:
        here, there = subject.value(inputs), subject.value(subject.equal(inputs))
        if not here >= there - 1e-9 * (1 + abs(there)):
            raise differs(subject, inputs, "here and at equality it is", here, there)

    whenever(subject, test)


def _has_sides(subject: Subject) -> bool:
    return bool(subject.sides())


@law(tag("zero_at_equality", _has_sides))
def zero_at_equality(subject: Subject) -> None:
    """The loss is 0 where both sides are equal.

    Broken by: an entropy left out of a divergence, a count off by one, the diagonal of a Gram matrix kept or lost.
    """

    def test(inputs: Inputs) -> None:
        same = subject.equal(inputs)
        value = subject.value(same)
        size = max(1.0, *(float(same[i].abs().max()) for i, _ in subject.sides()))
        if not abs(value) <= 1e-9 * size**2:
            raise Broken(f"at equality it is {value:.9g}\n{show(subject, same)}")

    whenever(subject, test, "moderate", "generic", "extreme")


@law(lambda s: s.tags.non_negative)
def non_negative(subject: Subject) -> None:
    """The loss is never below 0.

    Broken by: a sign, a distance's factor of two, an estimate without its diagonal.
    """

    def test(inputs: Inputs) -> None:
        value = subject.value(inputs)
        if not value >= -1e-9:
            raise Broken(f"it is {value:.9g}\n{show(subject, inputs)}")

    whenever(subject, test, "moderate", "generic", "extreme")


@law(tag("symmetric", lambda s: _has_sides(s) and not s.tags.stochastic))
def symmetric(subject: Subject) -> None:
    """The two sides may change places.

    Broken by: a weight or a detach on one side, a mean over the wrong one of two counts.
    """

    def test(inputs: Inputs) -> None:
        here, there = subject.value(inputs), subject.value(subject.swapped(inputs))
        if far(here, there):
            raise differs(subject, inputs, "this way round and the other it is", here, there)

    whenever(subject, test)


LAWS = (stationary, lowest_at_equality, zero_at_equality, non_negative, symmetric)
