"""Laws that need somebody's word: a slow formula, and values that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer.testing._law import Broken, Law, law
from ttransfer.testing._subject import Inputs, Subject, show
from ttransfer.testing.laws._tools import differs, far, finite, whenever

__all__ = ["LAWS", "limit_laws"]


def _has(subject: Subject) -> bool:
    return subject.reference is not None and not subject.tags.stochastic


@law(_has)
def reference(subject: Subject) -> None:
    """The value is that of the slow formula, wherever that is finite, and it is finite somewhere.

    Broken by: a factor dropped, a mean over the wrong count, the two sides of a divergence exchanged, a term twice.
    """
    compared = 0

    def test(inputs: Inputs) -> None:
        nonlocal compared
        here, there = subject.value(inputs), _slow(subject, inputs).item()
        if math.isfinite(there):
            compared += 1
            if far(here, there):
                raise differs(subject, inputs, "the loss and its reference are", here, there)

    whenever(subject, test, "moderate", "generic", "extreme")
    if not compared:
        raise Broken("the reference is finite for no input that was drawn, so that nothing was compared")


def _slow(subject: Subject, inputs: Inputs) -> Tensor:
    assert subject.reference is not None
    return torch.as_tensor(subject.reference(*(x.clone() if isinstance(x, Tensor) else x for x in inputs)))


@law(lambda s: _has(s) and bool(s.trained()))
def reference_gradient(subject: Subject) -> None:
    """The gradient is that of the slow formula, where that has one.

    Broken by: a factor on the gradient alone, something held constant that is not in the formula, or the other way.
    """
    slow = subject._replace(fn=lambda *x: torch.as_tensor(subject.reference(*x)))  # type: ignore[misc]

    def test(inputs: Inputs) -> None:
        try:
            value, wanted = slow.gradients(inputs)
        except Broken:
            return  # the formula has no gradient here
        _, found = subject.gradients(inputs)
        if not any(bool(wanted[i].any()) for i in subject.trained()) or not finite(value):
            return
        for i in subject.trained():
            size = 1 + wanted[i].abs().max().item()
            if finite(wanted[i]) and not (found[i] - wanted[i]).abs().max().item() <= 1e-8 * size:
                more = {"gradient": found[i], "by_the_reference": wanted[i]}
                raise Broken(f"the gradients of {subject.arguments[i].name} differ\n{show(subject, inputs, **more)}")

    whenever(subject, test, "generic", rows=(max(2, subject.fewest), 5), least=2)


def limit_laws(limits: Mapping[str, Callable[[Any], tuple[Any, Any]]]) -> tuple[Law, ...]:
    """Make a law of each known value; a limit is reached to four digits only."""
    return tuple(_limit(name, both) for name, both in limits.items())


def _limit(name: str, both: Callable[[Any], tuple[Any, Any]]) -> Law:
    def check(subject: Subject) -> None:
        found, wanted = (torch.as_tensor(x, dtype=torch.float64).detach() for x in both(subject.fn))
        if not torch.allclose(found, wanted, rtol=1e-4, atol=1e-6):
            raise Broken(f"it is {found.tolist()}, and should be {wanted.tolist()}")

    check.__doc__ = f"A known value: {name}.\n\n    Broken by: an error of scale, or a wrong limit.\n    "
    return Law("limit-" + "-".join(name.split()), check, lambda subject: True)


LAWS = (reference, reference_gradient)
