"""Laws that any loss obeys: a finite scalar, of its input's dtype, of its inputs alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer.testing._law import Broken, law
from ttransfer.testing._subject import Inputs, Subject, show
from ttransfer.testing.laws._tools import differs, far, finite, tensors, whenever

__all__ = ["LAWS"]


@law()
def scalar(subject: Subject) -> None:
    """A loss is one real number: a 0-d floating tensor.

    Broken by: a reduction left out, a tuple returned, or a Python number made with .item().
    """

    def test(inputs: Inputs) -> None:
        value = subject.call(inputs)
        if not value.is_floating_point():
            raise Broken(f"it returned {value.dtype}\n{show(subject, inputs)}")

    whenever(subject, test)


@law()
def is_finite(subject: Subject) -> None:
    """A loss and its gradient are finite on plain inputs.

    Broken by: a logarithm or root of zero, a division by a count or a norm that can be zero.
    """

    def test(inputs: Inputs) -> None:
        value, grads = subject.gradients(inputs)
        if not finite(value):
            raise Broken(f"the value is {value.item()}\n{show(subject, inputs)}")
        for i in subject.trained():
            if not finite(grads[i]):
                name = subject.arguments[i].name
                raise Broken(f"the gradient of {name} is not\n{show(subject, inputs, gradient=grads[i])}")

    whenever(subject, test, rows=(max(2, subject.fewest), 6))  # for one row there is a law of its own


@law()
def dtype(subject: Subject) -> None:
    """A loss has the dtype of its inputs.

    Broken by: a constant made without dtype=, .float() or .double(), a NumPy number.
    """

    def test(inputs: Inputs) -> None:
        for wanted in (torch.float32, torch.float64):
            value = subject.call(tensors(inputs, lambda x, d=wanted: x.to(d)))
            if value.dtype != wanted:
                raise Broken(f"inputs of {wanted} gave {value.dtype}\n{show(subject, inputs)}")

    if subject.floats():
        whenever(subject, test, "generic")


@law(lambda s: not s.tags.stochastic)
def deterministic(subject: Subject) -> None:
    """A loss is a function of its arguments: the same call gives the same bits, and no random number is drawn.

    Broken by: dropout or noise from the global generator, a running average or a counter kept between calls.
    """
    seen: list[Inputs] = []

    def test(inputs: Inputs) -> None:
        state = torch.get_rng_state()
        once = subject.value(inputs)
        if not torch.equal(state, torch.get_rng_state()):
            raise Broken(f"it draws from the global generator\n{show(subject, inputs)}")
        for other in seen[-1:]:
            subject.call(other)
        twice = subject.value(inputs)
        seen.append(inputs)
        if once != twice and not (once != once and twice != twice):
            raise differs(subject, inputs, "two calls gave", once, twice)

    whenever(subject, test)


@law()
def inputs_untouched(subject: Subject) -> None:
    """A loss leaves its arguments as they were.

    Broken by: an operation in place (x -= ..., x[...] = ..., a method that ends in _) on an argument or its view.
    """

    def test(inputs: Inputs) -> None:
        passed = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
        with torch.no_grad():
            subject.fn(*passed)
        for argument, before, after in zip(subject.arguments, inputs, passed, strict=True):
            if isinstance(before, Tensor) and not torch.equal(before.nan_to_num(), after.nan_to_num()):
                raise Broken(f"it changed {argument.name}\n{show(subject, inputs, afterwards=after)}")

    whenever(subject, test)


@law()
def device_of_inputs(subject: Subject) -> None:
    """Whatever a loss makes itself is on its inputs' device and of their dtype.

    Broken by: torch.ones(n), torch.eye(n), torch.tensor(x) without device= and dtype=; it fails on a GPU, or
    counts in float32 what came in float64.
    """

    def on_meta(inputs: Inputs) -> None:
        copies = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
        try:
            with torch.device("meta"):
                value = subject.fn(*copies)
        except Exception as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Broken(f"with another default device it raised: {text}\n{show(subject, inputs)}") from error
        if isinstance(value, Tensor) and value.is_meta:
            raise Broken(f"the value is on the default device, not on the inputs'\n{show(subject, inputs)}")

    def in_double(inputs: Inputs) -> None:
        for kind in (torch.float32, torch.float64):
            same = tensors(inputs, lambda x, d=kind: x.to(d))
            plain, usual = subject.call(same), torch.get_default_dtype()
            try:
                torch.set_default_dtype(torch.float64)
                other = subject.call(same)
            finally:
                torch.set_default_dtype(usual)
            if plain.dtype != other.dtype or far(plain.item(), other.item(), relative=1e-13):
                what = f"inputs of {kind}, with a default dtype of float32 and of float64"
                raise differs(subject, inputs, what, plain.item(), other.item())

    whenever(subject, on_meta, "generic")
    if not subject.tags.stochastic:
        whenever(subject, in_double, "generic")


LAWS = (scalar, is_finite, dtype, deterministic, inputs_untouched, device_of_inputs)
