"""Laws on gradients: there where they should be, right, and nowhere else."""

from __future__ import annotations

import torch

from ttransfer.testing._law import Broken, law
from ttransfer.testing._subject import Inputs, Subject, show
from ttransfer.testing.laws._tools import far, finite, whenever

__all__ = ["LAWS"]

STEP = 1e-5


@law(lambda s: bool(s.trained()))
def gradient(subject: Subject) -> None:
    """Every argument that is learned from gets a gradient somewhere.

    Broken by: .detach(), .data, no_grad, argmax, round or a comparison between the argument and the value, or the
    wrong one of two arguments detached.
    """
    largest = dict.fromkeys(subject.trained(), 0.0)
    last: list[Inputs] = []

    def test(inputs: Inputs) -> None:
        _, grads = subject.gradients(inputs)
        last[:] = [inputs]
        for i in largest:
            largest[i] = max(largest[i], grads[i].abs().nan_to_num().max().item() if grads[i].numel() else 0.0)

    whenever(subject, test, "generic", rows=(max(3, subject.fewest), 6), least=3)
    for i, size in largest.items():
        if size == 0.0:
            names = subject.arguments[i].name
            raise Broken(f"{names} gets no gradient for any input, for example\n{show(subject, last[0])}")


@law(lambda s: bool(s.trained()) and not s.tags.stochastic)
def gradcheck(subject: Subject) -> None:
    """The gradient is the derivative of the value, in float64.

    Broken by: a part held constant by detach() (the batch's bandwidth, a weight), a reversed or scaled gradient,
    a straight-through estimate, a custom backward with a slip. If it is meant, say so in expected_failed_checks.
    """

    def test(inputs: Inputs) -> None:
        _, grads = subject.gradients(inputs)
        for i in subject.trained():
            generator = torch.Generator().manual_seed(i)
            direction = torch.randn(inputs[i].shape, generator=generator, dtype=torch.float64)
            ahead, behind = (
                subject.value((*inputs[:i], inputs[i] + sign * STEP * direction, *inputs[i + 1 :]))
                for sign in (1.0, -1.0)
            )
            slope = (ahead - behind) / (2 * STEP)
            said = (grads[i] * direction).sum().item()
            room = 1e-5 * (1 + grads[i].abs().max().item()) + 1e-10 * (1 + abs(ahead)) / STEP
            if not abs(slope - said) <= room:
                raise Broken(
                    f"along a random direction of {subject.arguments[i].name} the value rises by {slope:.9g}, and the "
                    f"gradient says {said:.9g}\n{show(subject, inputs)}"
                )

    whenever(subject, test, "generic", rows=(max(2, subject.fewest), 6), least=2)


@law(lambda s: any(a.name in (s.tags.detaches or ()) for a in s.arguments))
def detached(subject: Subject) -> None:
    """An argument that only shows the way, a teacher's, gets no gradient.

    Broken by: a teacher's output used without .detach(), so that the teacher is pulled towards the student.
    """
    names = subject.tags.detaches or ()

    def test(inputs: Inputs) -> None:
        _, grads = subject.gradients(inputs)
        for i, grad in grads.items():
            if subject.arguments[i].name in names and (not finite(grad) or grad.abs().max() > 1e-12):
                raise Broken(f"{subject.arguments[i].name} gets a gradient\n{show(subject, inputs, gradient=grad)}")

    whenever(subject, test, "generic")


@law()
def every_argument(subject: Subject) -> None:
    """The value, or else its gradient, depends on every argument.

    Broken by: an argument overwritten or forgotten, one used twice in another's place, a weight never applied.
    """
    moved = {i for i, a in enumerate(subject.arguments) if a.kind != "fixed"}
    last: list[Inputs] = []

    def test(pair: Inputs) -> None:
        if not last or any(
            getattr(a, "shape", None) != getattr(b, "shape", None) for a, b in zip(pair, last[0], strict=True)
        ):
            last[:] = [pair]
            return
        value, grads = subject.gradients(pair)
        for i in list(moved):
            other, slopes = subject.gradients((*pair[:i], last[0][i], *pair[i + 1 :]))
            same = all(torch.equal(grads[k], slopes[k]) for k in grads)
            if bool(value == value) and (far(value.item(), other.item(), relative=1e-12) or not same):
                moved.discard(i)

    several = (max(4, subject.fewest), max(4, subject.fewest))
    whenever(subject, test, "generic", rows=several, least=4)
    for i in moved if last else ():
        raise Broken(f"the value is the same whatever {subject.arguments[i].name} is\n{show(subject, last[0])}")


@law(lambda s: s.tags.double_backward if s.trained() and not s.tags.stochastic else False)
def double_backward(subject: Subject) -> None:
    """The gradient can be differentiated again, and rightly.

    Broken by: a custom backward without a second one, or .data.
    """

    def test(inputs: Inputs) -> None:
        i = subject.trained()[0]
        generator = torch.Generator().manual_seed(7)
        along, ahead = (torch.randn(inputs[i].shape, generator=generator, dtype=torch.float64) for _ in range(2))

        def slope(x: torch.Tensor) -> torch.Tensor:
            x = x if x.requires_grad else x.requires_grad_()
            value = subject.fn(*inputs[:i], x, *inputs[i + 1 :])
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            return (grad * along).sum()

        x = inputs[i].detach().clone().requires_grad_()
        first = slope(x)
        said = (torch.autograd.grad(first, x)[0] * ahead).sum().item() if first.requires_grad else 0.0
        up, down = (slope((inputs[i] + sign * STEP * ahead).detach()).item() for sign in (1.0, -1.0))
        seen = (up - down) / (2 * STEP)
        if not abs(seen - said) <= 1e-4 * (1 + abs(seen)) + 1e-9 / STEP:
            raise Broken(f"the second derivative is {seen:.9g}, and it says {said:.9g}\n{show(subject, inputs)}")

    whenever(subject, test, "generic", rows=(max(2, subject.fewest), 4), least=2)


LAWS = (gradient, gradcheck, detached, every_argument, double_backward)
