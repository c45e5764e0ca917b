"""Optimizers on trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer._errors import TransferError, shown
from ttransfer.core._types import Optimizer, Tree
from ttransfer.testing._law import Report, Trial, demand
from ttransfer.testing.laws import (
    _optimizer,
    _optimizer_modes,
    _optimizer_names,
    _optimizer_numerics,
    _optimizer_path,
    _optimizer_probes,
)
from ttransfer.testing.laws._optimizer_tools import OptimizerSubject, Problem, whenever

__all__ = ["check_optimizer", "optimizer_trial"]

GROUPS = (_optimizer, _optimizer_numerics, _optimizer_path, _optimizer_names, _optimizer_modes, _optimizer_probes)
LAWS = tuple(one for group in GROUPS for one in group.LAWS)


def optimizer_trial(
    optimizer: Optimizer,
    *,
    params: Tree = None,
    reference: Callable[[list[Tensor]], Any] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Trial:
    """Put an optimizer on trial, without judging it yet: for `judge` and `parametrize_with_checks`.

    The names of its numbers make claims, by their last part: the first step is proportional to "lr";
    "weight_decay" shrinks; "momentum" is what a step keeps of the one before; "beta1" with "beta2" are decays of
    averages that are corrected for their start, and make steps independent of the gradient's size; "max_norm" is a norm
    of all gradients together. An optimizer that means something else by such a name says so in
    `expected_failed_checks`.

    Args:
        optimizer: the optimizer, whole: a part that hands gradients on is put on trial in a chain,
            ``chain(part, sgd(0.1))``.
        params: an example of the parameters, for an optimizer that goes by their names: a tree of tensors, whose
            names and shapes stay. Without one, trees of small matrices and vectors are drawn.
        reference: parameters, a list in the order of the tree's leaves -> an optimizer of torch, or anything that has
            a ``step()`` which reads their ``.grad`` and writes on them.
        expected_failed_checks: law -> why it does not hold. A law named here that holds is a failure.
        name: of the optimizer, in ids and reports; that of the function that made it unless given.
        examples: how many problems each law draws, at most.

    Raises:
        TransferError: if it is no Optimizer, or its `init` refuses the parameters.

    Example:
        >>> import torch, ttransfer as tt
        >>> trial = optimizer_trial(tt.optim.sgd(0.1, momentum=0.9))
        >>> trial.taken
        'numbers lr, weight_decay, momentum, dampening; on parameters student.fc.weight, student.fc.bias,
        terms.critic.weight'
        >>> tt.testing.judge(trial, only=["momentum-coasts", "scale-free"]).seems
        ()
    """
    if not isinstance(cast(Any, optimizer), Optimizer):
        raise TransferError(f"optimizer_trial: expected an Optimizer, got {shown(optimizer)}; see ttransfer.optim")
    title = name or optimizer.update.__qualname__.split(".")[0]
    subject = OptimizerSubject(title, optimizer, params, reference, examples)
    found: list[Problem] = []
    whenever(subject, found.append, share=examples)
    try:
        optimizer.init(found[-1].params)
    except TransferError as error:
        raise TransferError(f"{title}: {error}. Give an example of the parameters it is for: params=") from error
    numbers = ", ".join(optimizer.hyper) or "none"
    taken = f"numbers {numbers}; on parameters {', '.join(tree.paths(found[-1].params))}"
    return Trial(title, subject, LAWS, taken, dict(expected_failed_checks or {}))


def check_optimizer(
    optimizer: Optimizer,
    *,
    params: Tree = None,
    reference: Callable[[list[Tensor]], Any] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str | None = None,
    examples: int = 15,
) -> Report:
    """Judge an optimizer by all laws that the names of its numbers claim.

    Args:
        optimizer: as for `optimizer_trial`, and so are the others.
        params: an example of the parameters.
        reference: parameters -> an optimizer of torch that does the same.
        expected_failed_checks: law -> why it does not hold.
        name: of the optimizer.
        examples: how many problems each law draws, at most.

    Returns:
        The report, which also says which laws the optimizer seems to obey though nobody claimed them.

    Raises:
        LawBroken: for a law that is broken: which, the smallest problem found, the numbers and the likely cause.
        TransferError: if it cannot be put on trial.

    Example:
        >>> import torch, ttransfer as tt
        >>> report = check_optimizer(tt.optim.adam(1e-2), reference=lambda params: torch.optim.Adam(params, 1e-2))
        >>> report.seems
        ('scalar-parameters', 'wide-state', 'each-parameter-by-itself', 'each-coordinate-by-itself',
        'finite-derivatives-at-rest')
        >>> up = tt.Optimizer(lambda p: {}, lambda g, s, p, h: ({k: h["lr"] * x for k, x in g.items()}, s), {"lr": 0.1})
        >>> check_optimizer(up, params={"w": torch.ones(2)}, name="up")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ttransfer.testing._law.LawBroken: up obeys ... laws and fails 2. ...
        against-the-gradient: The first step goes down the gradient, weight decay apart...
    """
    trial = optimizer_trial(
        optimizer,
        params=params,
        reference=reference,
        expected_failed_checks=expected_failed_checks,
        name=name,
        examples=examples,
    )
    return demand(trial)
