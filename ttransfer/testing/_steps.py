"""Steps on trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ttransfer._errors import TransferError, shown
from ttransfer.core._step import Step
from ttransfer.core._types import Batch
from ttransfer.testing._law import Report, Trial, demand
from ttransfer.testing.laws import _step, _step_modes, _step_shards, _step_sums
from ttransfer.testing.laws._step_tools import copied, subject_of

__all__ = ["check_step", "step_trial"]

LAWS = (*_step.LAWS, *_step_sums.LAWS, *_step_shards.LAWS, *_step_modes.LAWS)


def step_trial(
    step: Step,
    batch: Batch,
    *,
    seed: int = 0,
    steps: int = 3,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str = "step",
) -> Trial:
    """Put a step on trial, without judging it yet: for `judge` and `parametrize_with_checks`.

    The laws compute in float64 where the nets can, since the same thing computed in two ways differs by more in
    float32: Adam turns a gradient that is rounding noise into a whole step. A compiled step is judged as the step that
    it was made from, and compiled anew with the backend "aot_eager".

    Args:
        step: any step: an ensemble, a sweep, an alternation.
        batch: an example. Further batches are made of it, rows in another order and real numbers up to a fifth
            smaller; a small one is enough, and with 4 rows in each domain all laws are asked.
        seed: of the first state.
        steps: how many steps a run takes.
        expected_failed_checks: law -> why it does not hold. A law named here that holds is a failure.
        name: of the step, in ids and reports.

    Raises:
        TransferError: if it is no Step, or takes no step on the batch.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> train = tt.step({"net": tt.functional(torch.nn.Linear(2, 2))}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(F.cross_entropy, "net(source)", "source.y"))
        >>> batch = {"source": {"x": torch.randn(4, 2), "y": torch.tensor([0, 1, 0, 1])}}
        >>> trial = step_trial(train, batch)
        >>> trial.taken
        'nets net; terms task; in float64'
        >>> tt.testing.judge(trial, only=["loss-is-the-sum", "micro-batches"]).failed
        ()
    """
    if not isinstance(cast(Any, step), Step):
        raise TransferError(f"step_trial: expected a Step, got {shown(step)}; make one with tt.step(...)")
    if steps < 2:
        raise TransferError(f"step_trial: steps must be 2 at least, got {steps}")
    subject = subject_of(name, step, batch, seed, steps)
    if not subject.double:
        try:
            subject.step(subject.start(), copied(subject.batch))
        except TransferError as error:
            raise TransferError(f"{name}: {error}") from error
    nets = dict.fromkeys(net for expression, _ in subject.parts.values() for net in expression.nets)
    terms = [f"{phase}.{term}" if phase else term for phase, term, _ in subject.terms()]
    precision = "float64" if subject.double else "the precision given, for in float64 it does not run"
    taken = f"nets {', '.join(nets)}; terms {', '.join(terms)}; in {precision}"
    return Trial(name, subject, LAWS, taken, dict(expected_failed_checks or {}))


def check_step(
    step: Step,
    batch: Batch,
    *,
    seed: int = 0,
    steps: int = 3,
    expected_failed_checks: Mapping[str, str] | None = None,
    name: str = "step",
) -> Report:
    """Judge a step by all laws that hold for steps.

    Args:
        step: as for `step_trial`, and so are the others.
        batch: an example.
        seed: of the first state.
        steps: how many steps a run takes.
        expected_failed_checks: law -> why it does not hold.
        name: of the step.

    Returns:
        The report, which also says which laws the step seems to obey though nobody claimed them.

    Raises:
        LawBroken: for a law that is broken: which, where, the numbers and the likely cause.
        TransferError: if it cannot be put on trial.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> def noisy(logits, labels):
        ...     return F.cross_entropy(logits + 0.1 * torch.randn_like(logits), labels)
        >>> train = tt.step({"net": tt.functional(torch.nn.Linear(2, 2))}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(noisy, "net(source)", "source.y"))
        >>> batch = {"source": {"x": torch.randn(4, 2), "y": torch.tensor([0, 1, 0, 1])}}
        >>> check_step(train, batch)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ttransfer.testing._law.LawBroken: step obeys ... laws and fails ...
        deterministic: A step is a function of state and batch...
    """
    trial = step_trial(step, batch, seed=seed, steps=steps, expected_failed_checks=expected_failed_checks, name=name)
    return demand(trial)
