"""Laws on where an optimizer goes: downhill, by its rate, and as the names of its numbers say."""

from __future__ import annotations

import torch

import ttransfer.core._tree as tree
from ttransfer.core._types import Tree
from ttransfer.testing._law import Broken, law
from ttransfer.testing.laws._optimizer_tools import (
    OptimizerSubject,
    Problem,
    apart,
    constant,
    inner,
    scaled,
    size,
    told,
    whenever,
)

__all__ = ["LAWS"]


@law()
def against_the_gradient(subject: OptimizerSubject) -> None:
    """The first step goes down the gradient, weight decay apart.

    Broken by: a sign; the updates are added to the parameters. A part of a chain, which hands gradients on, is put on
    trial in one: chain(part, sgd(0.1)).
    """

    def test(problem: Problem) -> None:
        if not size(problem.grads[0]):
            return
        first = subject.run(problem, subject.numbers(decay=0.0))[0].updates
        rise = inner(first, problem.grads[0])
        if not rise < 0.0:
            raise Broken(f"along the first step the loss rises by {rise:.9g}\n{told(problem, update=first)}")

    whenever(subject, test)


@law()
def descends(subject: OptimizerSubject) -> None:
    """Forty small steps on a bowl end lower than they began.

    Broken by: a sign, an average of the wrong things, a rate multiplied twice, a buffer that grows.
    """
    gentle = 1.0 if subject.names("lr") else 0.1

    def test(problem: Problem) -> None:
        # The bottom is at least 1 away in each coordinate: a step that has a size of its own goes to and fro there.
        bottom = tree.map(lambda p, g: p + g.sign() + g + (g == 0).to(g), problem.params, problem.grads[0])
        curve = tree.map(lambda p: gentle * torch.linspace(0.2, 1.0, max(1, p.numel())).to(p).reshape(p.shape), bottom)
        params, numbers = problem.params, subject.numbers(lr=0.02, decay=0.0)
        start = _height(params, bottom, curve)
        state: Tree = None
        for _ in range(40):
            slope = tree.map(lambda p, b, c: c * (p - b), params, bottom, curve)
            moment = subject.run(Problem(params, (slope,)), numbers, state=state)[0]
            params, state = moment.params, moment.state
        end = _height(params, bottom, curve)
        if not end < start:
            raise Broken(f"from {start:.9g} it went to {end:.9g}\n{told(Problem(problem.params, ()), bottom=bottom)}")

    whenever(subject, test, share=5)


def _height(params: Tree, bottom: Tree, curve: Tree) -> float:
    parts = tree.map(lambda p, b, c: (c * (p - b).square()).sum().item() / 2, params, bottom, curve)
    return sum(tree.leaves(parts))


@law(lambda s: bool(s.names("lr")))
def proportional_to_the_rate(subject: OptimizerSubject) -> None:
    """The first step is proportional to the learning rate, and at rate 0 nothing ever moves.

    Broken by: a rate applied twice or not to a part of the step, weight decay that is not multiplied by it.
    """
    own = subject.numbers(decay=0.1)
    three = {name: 3.0 * x if name in subject.names("lr") else x for name, x in own.items()}

    def test(problem: Problem) -> None:
        for t, moment in enumerate(subject.run(problem, subject.numbers(lr=0.0, decay=0.1))):
            if size(moment.updates) != 0.0:
                raise Broken(f"at rate 0, step {t + 1} moves\n{told(problem, update=moment.updates)}")
        one = problem._replace(grads=problem.grads[:1])
        once, thrice = (subject.run(one, n)[0].updates for n in (own, three))
        if found := apart(thrice, scaled(once, 3.0), relative=1e-9):
            raise Broken(f"at three times the rate, and as three times the step: {found}\n{told(one)}")

    whenever(subject, test, steps=3, share=2)


@law()
def at_rest(subject: OptimizerSubject) -> None:
    """Where gradients are 0 from the start nothing moves, weight decay apart, which only shrinks.

    Broken by: noise, 0/0 made 1, a decay of the wrong sign.
    """

    def test(problem: Problem) -> None:
        still = problem._replace(grads=tree.map(torch.zeros_like, problem.grads))
        built_in = not subject.names("decay")
        for t, moment in enumerate(subject.run(still, subject.numbers(decay=0.0), still=True)):
            for name, u in tree.paths(moment.updates).items():
                p = tree.paths(problem.params)[name]
                shrinks = bool(((u * p <= 0) & (u.abs() <= p.abs())).all())
                if not (shrinks if built_in else size({"": u}) <= 1e-12):
                    raise Broken(f"with gradients of 0, step {t + 1} moves {name}\n{told(still, update=u)}")

    whenever(subject, test, steps=2, share=2)


@law()
def bounded_steps(subject: OptimizerSubject) -> None:
    """Under a constant gradient steps stop growing.

    Broken by: a buffer that only adds up, momentum without its factor, a correction that goes the wrong way.
    """

    def test(problem: Problem) -> None:
        numbers = subject.numbers(momentum=0.5, decay=0.0)
        moments = subject.run(constant(problem, 40), numbers, still=True)
        half, whole = (size(moments[t].updates) for t in (19, 39))
        if not whole <= 1.9 * half + 1e-12:
            raise Broken(f"step 20 is {half:.6g} long and step 40 {whole:.6g}\n{told(problem)}")

    whenever(subject, test, share=5)


@law(lambda s: s.reference is not None)
def reference(subject: OptimizerSubject) -> None:
    """Step by step the parameters are those of the reference, gradients of 0 among them.

    Broken by: a factor, a power or a sign; decay before momentum rather than after, or the other way round; a count
    that is off by one; an eps in another place.
    """

    def test(problem: Problem) -> None:
        assert subject.reference is not None
        # In the midst some gradients are 0, and then all of them.
        some = tree.map(lambda g: g * (torch.arange(g.numel()).reshape(g.shape) % 2), problem.grads[2])
        none = tree.map(torch.zeros_like, problem.grads[0])
        problem = problem._replace(grads=(*problem.grads[:2], some, none, *problem.grads[3:]))
        numbers = [subject.numbers(t) for t in range(len(problem.grads))]
        leaves = [p.clone().requires_grad_() for p in tree.leaves(problem.params)]
        slow = subject.reference(leaves)
        for t, moment in enumerate(subject.run(problem, numbers)):
            for leaf, grad in zip(leaves, tree.leaves(problem.grads[t]), strict=True):
                leaf.grad = grad.clone()
            slow.step()
            wanted = tree.unflatten(problem.params, [leaf.detach() for leaf in leaves])
            if found := apart(moment.params, wanted, relative=1e-10, least=1e-12):
                raise Broken(f"after step {t + 1}, the parameters and the reference's: {found}\n{told(problem)}")

    whenever(subject, test, steps=4, share=2)


LAWS = (
    against_the_gradient,
    descends,
    proportional_to_the_rate,
    at_rest,
    bounded_steps,
    reference,
)
