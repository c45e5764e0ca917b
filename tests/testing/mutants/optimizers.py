"""Wrong optimizers, each beside its right twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.testing.mutants._pair import Pair
from ttransfer import optim
from ttransfer.core import _tree as tree
from ttransfer.core._hyper import at_use
from ttransfer.core._types import Optimizer, Tree
from ttransfer.optim._leaf import cast, count, norm, root, safe_ratio, wide, zeros

Hyper = Mapping[str, Tensor]
Rule = Callable[..., tuple[Tensor, ...]]


def leafwise(rule: Rule, slots: tuple[str, ...] = (), first: int = 0, **declared: float) -> Optimizer:
    """Make an optimizer of a rule for one tensor.

    Args:
        rule: (numbers, parameter, gradient, *slots) -> (update, *new slots). The numbers are the declared ones, for
            each beta also "new" = 1 - beta and "whole" = 1 - beta ** t, taken in float64.
        slots: what is kept for each tensor, from 0.
        first: where the count starts.
    """

    def init(params: Tree) -> Tree:
        return {"count": count("mutant", params) + first, **{slot: zeros(params) for slot in slots}}

    def update(grads: Tree, state: Tree, params: Tree, hyper: Hyper) -> tuple[Tree, Tree]:
        t = state["count"] + 1
        numbers = dict(hyper)
        for name in [name for name in hyper if name.startswith("beta")]:
            numbers |= {"new" + name[4:]: 1 - hyper[name], "whole" + name[4:]: 1 - hyper[name] ** t.to(torch.float64)}

        def one(p: Tensor, g: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
            return rule(at_use(numbers, p.dtype), wide(p), cast(g, p), *kept)

        new = tree.map(one, params, grads, *[state[slot] for slot in slots])
        updates, *kept = [tree.map(lambda p, of, i=i: of[i], params, new) for i in range(1 + len(slots))]
        return updates, {"count": t, **dict(zip(slots, kept, strict=True))}

    return Optimizer(init, update, declared)


# Adam, and with it AdamW and LAMB.


def adam_with(rule: Rule, first: int = 0, **numbers: float) -> Optimizer:
    declared = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, **numbers}
    return leafwise(rule, ("mu", "nu"), first, **declared)


def moments(h: Hyper, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return h["beta1"] * m + h["new1"] * g, h["beta2"] * v + h["new2"] * g.square()


def adam(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    m, v = moments(h, g, m, v)
    return -h["lr"] * (m / h["whole1"]) / (root(v / h["whole2"]) + h["eps"]), m, v


def adam_uncorrected(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    m, v = moments(h, g, m, v)
    return -h["lr"] * m / (root(v) + h["eps"]), m, v


def adam_eps_in_root(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    m, v = moments(h, g, m, v)
    return -h["lr"] * (m / h["whole1"]) / root(v / h["whole2"] + h["eps"]), m, v


def adam_of_parameters(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    m, v = h["beta1"] * m + h["new1"] * g, h["beta2"] * v + h["new2"] * p.square()
    return -h["lr"] * (m / h["whole1"]) / (root(v / h["whole2"]) + h["eps"]), m, v


def adam_bare_root(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    m, v = moments(h, g, m, v)
    return -h["lr"] * (m / h["whole1"]) / ((v / h["whole2"]).sqrt() + h["eps"]), m, v


def adamw_in_gradient(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return adam(h, p, g + h["weight_decay"] * p, m, v)


def adamw_without_lr(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    step, m, v = adam(h, p, g, m, v)
    return step - h["weight_decay"] * p, m, v


def lamb(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    towards, m, v = adam({**h, "lr": -torch.ones_like(h["lr"])}, p, g, m, v)
    return -h["lr"] * safe_ratio(norm(p), norm(towards)) * towards, m, v


def lamb_unguarded(h: Hyper, p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    towards, m, v = adam({**h, "lr": -torch.ones_like(h["lr"])}, p, g, m, v)
    return -h["lr"] * norm(p) / norm(towards) * towards, m, v


def adam_counting_in_python() -> Optimizer:
    right = optim.adam(0.1)
    calls = 0

    def update(grads: Tree, state: Tree, params: Tree, hyper: Hyper) -> tuple[Tree, Tree]:
        nonlocal calls
        calls += 1
        return right.update(grads, {**state, "count": torch.full_like(state["count"], calls - 1)}, params, hyper)

    return Optimizer(right.init, update, right.hyper)


# Its older kin.


def rmsprop(h: Hyper, p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    v = h["beta"] * v + h["new"] * g.square()
    return -h["lr"] * g / (root(v) + h["eps"]), v


def rmsprop_swapped(h: Hyper, p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    v = h["new"] * v + h["beta"] * g.square()
    return -h["lr"] * g / (root(v) + h["eps"]), v


def adagrad(h: Hyper, p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    v = v + g.square()
    return -h["lr"] * g / (root(v) + 1e-10), v


def adagrad_of_the_last(h: Hyper, p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return -h["lr"] * g / (root(v + g.square()) + 1e-10), g.square()


# Gradient descent.


def uphill(h: Hyper, p: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    return (h["lr"] * (g + h["weight_decay"] * p),)


def whole(h: Hyper, p: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    return (p - h["lr"] * (g + h["weight_decay"] * p),)


def decay_of_the_norm(h: Hyper, p: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    return (-h["lr"] * (g + h["weight_decay"] * p / (norm(p) + 1e-12)),)


def momentum(h: Hyper, p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    v = h["momentum"] * v + g
    return -h["lr"] * v, v


def momentum_damped(h: Hyper, p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    v = h["momentum"] * v + (1 - h["momentum"]) * g
    return -h["lr"] * v, v


def nesterov(h: Hyper, p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    v = h["momentum"] * v + g
    return -h["lr"] * (g + h["momentum"] * v), v


def momentum_in_place(h: Hyper, p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    v.mul_(h["momentum"]).add_(g)
    return -h["lr"] * v, v


def at_rate(lr: float) -> Rule:
    return lambda h, p, g: (-lr * (g + h["weight_decay"] * p),)


def clip_each(max_norm: float) -> Optimizer:
    def update(grads: Tree, state: Tree, params: Tree, hyper: Hyper) -> tuple[Tree, Tree]:
        def shrunk(g: Tensor) -> Tensor:
            h = at_use(hyper, g.dtype)
            return wide(g) * (h["max_norm"] / (norm(g) + 1e-6)).clamp(max=1.0)

        return tree.map(shrunk, grads), state

    return Optimizer(lambda params: {}, update, {"max_norm": max_norm})


def pair(
    name: str, right: Optimizer, wrong: Optimizer, why: str,
    reference: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
) -> Pair:  # fmt: skip
    return Pair(name, "optimizer", right, wrong, why, reference=reference)


def torch_adam(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 0.1, (0.9, 0.99), 1e-6)


def torch_adamw(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 0.1, (0.9, 0.99), 1e-6, weight_decay=0.1)


def torch_momentum(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1, momentum=0.9)


ADAM = optim.adam(0.1, beta2=0.99, eps=1e-6)
ADAMW = optim.adamw(0.1, beta2=0.99, eps=1e-6, weight_decay=0.1)
MOMENTUM = leafwise(momentum, ("velocity",), lr=0.1, momentum=0.9)

PAIRS: tuple[Pair, ...] = (
    pair("adam-without-bias-correction", ADAM, adam_with(adam_uncorrected),
         "Left out as in BERT's optimizer; the first steps are several times too large.", torch_adam),
    pair("adam-eps-inside-the-root", ADAM, adam_with(adam_eps_in_root),
         "The paper's text and TensorFlow's code put eps in different places.", torch_adam),
    pair("adam-count-starts-at-one", adam_with(adam), adam_with(adam, first=1),
         "The count is raised before its use, and starts at 1 to be sure.", torch_adam),
    pair("adam-second-moment-of-the-parameter", adam_with(adam), adam_with(adam_of_parameters),
         "p for g, in a line where both are at hand.", torch_adam),
    pair("adam-root-without-gradient-at-zero", adam_with(adam), adam_with(adam_bare_root),
         "sqrt has an infinite slope at 0: an unused parameter makes every meta-gradient NaN."),
    pair("adam-counts-in-python", optim.adam(0.1), adam_counting_in_python(),
         "e2eAIOK keeps its iteration count in Python: it is not saved, and two runs share it."),
    pair("adamw-decay-in-the-gradient", ADAMW, adam_with(adamw_in_gradient, weight_decay=0.1),
         "L2 in the gradient is what AdamW was written to avoid.", torch_adamw),
    pair("adamw-decay-without-the-rate", ADAMW, adam_with(adamw_without_lr, weight_decay=0.1),
         "The paper's decay has a schedule of its own, torch's is times the learning rate.", torch_adamw),
    pair("lamb-ratio-unguarded", adam_with(lamb), adam_with(lamb_unguarded),
         "A bias that starts at 0 has norm 0 and never moves; without a gradient it is 0 / 0."),
    pair("rmsprop-weights-swapped", leafwise(rmsprop, ("nu",), lr=0.1, beta=0.9, eps=1e-8),
         leafwise(rmsprop_swapped, ("nu",), lr=0.1, beta=0.9, eps=1e-8),
         "alpha is the weight of the old value in torch and of the new one in signal processing.",
         lambda params: torch.optim.RMSprop(params, 0.1, alpha=0.9)),
    pair("adagrad-does-not-accumulate", leafwise(adagrad, ("sum",), lr=0.1),
         leafwise(adagrad_of_the_last, ("sum",), lr=0.1),
         "The new square is kept where the sum was meant.", lambda params: torch.optim.Adagrad(params, 0.1)),
    pair("sgd-climbs", optim.sgd(0.1, weight_decay=0.1), leafwise(uphill, lr=0.1, weight_decay=0.1),
         "An update is added here; who subtracts it elsewhere returns it with the other sign."),
    pair("sgd-returns-the-new-parameters", optim.sgd(0.1, weight_decay=0.1), leafwise(whole, lr=0.1, weight_decay=0.1),
         "What torch's step would have left in the parameter, where its change is wanted."),
    pair("sgd-decays-by-the-norm", optim.sgd(0.1, weight_decay=0.1),
         leafwise(decay_of_the_norm, lr=0.1, weight_decay=0.1),
         "The gradient of the norm for that of half its square, as INC's L2 is a norm without the square.",
         lambda params: torch.optim.SGD(params, 0.1, weight_decay=0.1)),
    pair("sgd-reads-its-rate-once", optim.sgd(0.1), leafwise(at_rate(0.1), lr=0.1, weight_decay=0.0),
         "The closure's float is nearer than the tensor: schedules and sweeps are without effect."),
    pair("momentum-damped", MOMENTUM, leafwise(momentum_damped, ("velocity",), lr=0.1, momentum=0.9),
         "The average of the gradients for their sum: a learning rate ten times smaller.", torch_momentum),
    pair("momentum-changed-in-place", MOMENTUM, leafwise(momentum_in_place, ("velocity",), lr=0.1, momentum=0.9),
         "As torch.optim does it: a state that is kept to go back to has moved on.", torch_momentum),
    pair("nesterov-forgotten", leafwise(nesterov, ("velocity",), lr=0.1, momentum=0.9), MOMENTUM,
         "The flag is taken and not used.",
         lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True)),
    pair("clipped-tensor-by-tensor", optim.chain(optim.clip_by_norm(1.0), optim.sgd(0.1)),
         optim.chain(clip_each(1.0), optim.sgd(0.1)),
         "Clipping in a loop over the parameters: the direction changes, not the length alone."),
)  # fmt: skip
