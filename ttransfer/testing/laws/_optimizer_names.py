"""Laws that the names of an optimizer's numbers claim."""

from __future__ import annotations

from collections.abc import Sequence

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


@law(lambda s: bool(s.names("decay")))
def weight_decay_shrinks(subject: OptimizerSubject) -> None:
    """Where gradients are 0 weight decay draws parameters towards 0.

    Broken by: its sign, or a decay that is declared and never applied.
    """

    def test(problem: Problem) -> None:
        one = problem._replace(grads=(tree.map(torch.zeros_like, problem.grads[0]),))
        updates = subject.run(one, subject.numbers(lr=1e-3, decay=0.1))[0].updates
        there, moved = tree.paths(problem.params), False
        for name, u in tree.paths(updates).items():
            moved = moved or bool((u != 0).any())
            if bool((u * there[name] > 0).any()):
                raise Broken(f"with gradients of 0, the decay makes {name} grow\n{told(one, update=u)}")
        if not moved and all(bool((p != 0).all()) for p in there.values()):
            raise Broken(f"with gradients of 0 and a decay of 0.1 nothing shrinks\n{told(one)}")

    whenever(subject, test, share=2)
    whenever(subject, test, smooth=True, share=5)


@law(lambda s: s.covers("beta1", "beta2") or None)
def averages_are_corrected(subject: OptimizerSubject) -> None:
    """Under a constant gradient every step is as long as the first. Claimed by numbers called beta1 and beta2.

    Broken by: a mean of past gradients that is not corrected for its start at 0, a count that starts at 0 or is
    increased twice, one beta in place of the other, a mean whose two parts do not add up to 1.
    """

    def test(problem: Problem) -> None:
        moments = subject.run(constant(problem, 6), subject.numbers(decay=0.0), still=True)
        for t, moment in enumerate(moments):
            if found := apart(moment.updates, moments[0].updates, relative=1e-6):
                raise Broken(f"with one gradient throughout, step {t + 1} and step 1: {found}\n{told(problem)}")

    claimed = subject.covers("beta1", "beta2")  # what is only looked at need not shrink
    whenever(subject, test, smooth=not claimed, share=2)


@law(lambda s: s.covers("beta1", "beta2"))
def first_step_is_the_rate(subject: OptimizerSubject) -> None:
    """The first step is as long as the learning rate in every coordinate, or that part of each parameter's norm.

    Claimed by numbers called beta1 and beta2. Broken by: a mean whose parts do not add up to 1, one beta where the
    other is meant, a root left out.
    """
    rate = 0.01

    def test(problem: Problem) -> None:
        plain = problem._replace(grads=tree.map(torch.round, problem.grads))  # 0, or 1 at least
        updates = subject.run(plain, subject.numbers(lr=rate, decay=0.0, eps=1e-12))[0].updates
        there = tree.paths(plain.params)
        for name, g in tree.paths(plain.grads[0]).items():
            u = tree.paths(updates)[name]
            each = bool(((u.abs() - rate * (g != 0)).abs() <= 1e-6 * rate).all())
            gap = u.norm() - rate * there[name].norm()
            if not each and not abs(gap.item()) <= 1e-6 * rate:
                raise Broken(f"at a rate of {rate}, the first step of {name}\n{told(plain, update=u)}")

    whenever(subject, test, share=2)


def _like_sgd(subject: OptimizerSubject) -> bool | None:
    names = {name.rsplit(".", 1)[-1] for name in subject.optimizer.hyper}
    known = {"lr", "momentum", "dampening", "weight_decay"}
    if not names or not names <= known:
        return False
    return True if subject.covers("momentum") else None


@law(_like_sgd)
def plain_step(subject: OptimizerSubject) -> None:
    """Without momentum the first step is ``-lr * (gradient + weight_decay * parameter)``.

    Claimed by numbers called lr and momentum, and no others but dampening and weight_decay. Broken by: a factor, a
    gradient that is averaged or normalised, a decay that is scaled otherwise.
    """
    decays = bool(subject.names("decay"))

    def test(problem: Problem) -> None:
        updates = subject.run(problem, subject.numbers(lr=0.5, momentum=0.0, decay=0.125))[0].updates
        wanted = tree.map(lambda g, p: -0.5 * (g + 0.125 * p * decays), problem.grads[0], problem.params)
        if found := apart(updates, wanted, relative=1e-6):
            raise Broken(
                f"at a rate of 0.5 and a decay of 0.125, the step and what it should be: {found}\n{told(problem)}"
            )

    whenever(subject, test, share=2)


@law(lambda s: s.covers("beta1", "beta2") or None)
def scale_free(subject: OptimizerSubject) -> None:
    """The first step depends on the gradient's direction, not on its size. Claimed by beta1 and beta2.

    Broken by: a root left out or taken twice, an eps inside the root, or one that counts.
    """
    eps = max([0.0, *(float(subject.numbers()[name]) for name in subject.names("eps"))])
    # Added to a root, as it is meant, an eps changes steps by this part; under the root it would by far more.
    small = max(1e-6, eps**0.5)

    def test(problem: Problem) -> None:
        rounded = problem._replace(grads=tree.map(torch.round, problem.grads))  # 0, or 1 at least
        few, many = (rounded._replace(grads=scaled(rounded.grads, by)) for by in (small, 1e3))
        numbers = subject.numbers(decay=0.0)
        here, there = (subject.run(p, numbers)[0].updates for p in (few, many))
        if found := apart(here, there, relative=4 * eps / small + 1e-6):
            raise Broken(f"for gradients {small:.3g} and 1000 times those below: {found}\n{told(rounded)}")

    whenever(subject, test, smooth=not subject.covers("beta1", "beta2"), share=2)


@law(lambda s: s.covers("momentum"))
def momentum_coasts(subject: OptimizerSubject) -> None:
    """When gradients end, each step is the one before times the momentum. Claimed by a number of that name.

    Broken by: the factor and its rest exchanged, a buffer that is not kept, or kept of the wrong step.
    """

    def test(problem: Problem) -> None:
        none = tree.map(torch.zeros_like, problem.grads[0])
        coasting = problem._replace(grads=(*problem.grads, none, none, none))
        moments = subject.run(coasting, subject.numbers(momentum=0.6, decay=0.0), still=True)
        if size(problem.grads[0]) and not size(moments[1].updates):
            raise Broken(f"with a momentum of 0.6 nothing coasts\n{told(coasting)}")
        for t in (2, 3):
            before, after = moments[t - 1].updates, moments[t].updates
            if found := apart(after, scaled(before, 0.6), relative=1e-9):
                raise Broken(f"coasting, a step and 0.6 times the one before: {found}\n{told(coasting)}")

    whenever(subject, test, share=2)


@law(lambda s: s.covers("momentum") or s.covers("beta1"))
def no_momentum_no_memory(subject: OptimizerSubject) -> None:
    """With momentum, or beta1, at 0 every step goes down the gradient of its moment. Claimed by these names.

    Broken by: one beta in place of the other, a buffer of old gradients used before it is renewed.
    """

    def test(problem: Problem) -> None:
        if not size(problem.grads[0]):
            return
        to_and_fro = problem._replace(grads=tuple(scaled(problem.grads[0], by) for by in (1.0, -0.5, 0.25)))
        moments = subject.run(to_and_fro, subject.numbers(momentum=0.0, beta1=0.0, decay=0.0), still=True)
        for t, (moment, grads) in enumerate(zip(moments, to_and_fro.grads, strict=True)):
            rise = inner(moment.updates, grads)
            if not rise < 0.0:
                raise Broken(f"without momentum, along step {t + 1} the loss rises by {rise:.9g}\n{told(to_and_fro)}")

    whenever(subject, test, share=2)


@law(lambda s: s.covers("clip"))
def clips_to_the_norm(subject: OptimizerSubject) -> None:
    """Gradients up to the norm, of all together, pass unchanged; longer ones count as if they had it.

    Claimed by a number called max_norm. Broken by: a norm of each parameter by itself, of a wrong power, its square, a
    division that also lengthens short gradients, gradients clipped one by one.
    """

    def test(problem: Problem) -> None:
        norms = [inner(grads, grads) ** 0.5 for grads in problem.grads]
        if min(norms) < 1e-3:
            return
        brim = [scaled(grads, (1.0 - 1e-9) / norm) for grads, norm in zip(problem.grads, norms, strict=True)]

        def last(factors: Sequence[float], max_norm: float) -> Tree:
            grads = tuple(scaled(g, by) for g, by in zip(brim, factors, strict=True))
            numbers = subject.numbers(clip=max_norm, decay=0.0)
            return subject.run(problem._replace(grads=grads), numbers, still=True)[-1].updates

        room = 1e-4  # for the 1e-6 by which the norm is often made longer
        for factors in ((1.0, 1.0), (0.5, 1.0), (0.1, 0.3)):
            if found := apart(last(factors, 1.0), last(factors, 1e9), relative=room, least=1e-9):
                raise Broken(f"max_norm is 1, the norms are {factors}, and it clips: {found}\n{told(problem)}")
        for factors in ((3.0, 1.0), (1.0, 3.0), (1e3, 2.0)):
            if found := apart(last(factors, 1.0), last((1.0, 1.0), 1.0), relative=room, least=1e-9):
                what = f"max_norm is 1; for norms of {factors} and of 1"
                raise Broken(f"{what}: {found}\n{told(problem)}")

    whenever(subject, test, steps=2, share=2)


LAWS = (
    weight_decay_shrinks,
    averages_are_corrected,
    first_step_is_the_rate,
    plain_step,
    scale_free,
    momentum_coasts,
    no_momentum_no_memory,
    clips_to_the_norm,
)
