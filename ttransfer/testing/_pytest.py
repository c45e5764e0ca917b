"""Trials as pytest cases: one id for each part and law."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from ttransfer._errors import TransferError
from ttransfer.testing._law import Trial, demand
from ttransfer.testing._losses import loss_trial

__all__ = ["parametrize_with_checks"]


def parametrize_with_checks(parts: Iterable[Trial | Callable[..., Any]]) -> Callable[[Any], Any]:
    """Make one pytest case of each law of each part, with ids such as ``kd-gradcheck``.

    The test takes one argument, ``check``, and calls it. Laws that nobody claims are not among the cases.

    Args:
        parts: trials (`loss_trial`, `adapter_trial`, ...), or losses as they are.

    Raises:
        TransferError: if two parts have one name, since no id would then say which is meant.

    Example:
        >>> import ttransfer as tt
        >>> @parametrize_with_checks([tt.losses.kd, tt.align.coral])
        ... def test_losses(check):
        ...     check()
        >>> [case.id for case in test_losses.pytestmark[0].args[1]][:3]
        ['kd-scalar', 'kd-is-finite', 'kd-dtype']
    """
    import pytest

    trials = [part if isinstance(part, Trial) else loss_trial(part) for part in parts]
    names = [trial.name for trial in trials]
    for name in names:
        if names.count(name) > 1:
            raise TransferError(f"parametrize_with_checks: two parts are called {name!r}; give one a name=")
    cases = [
        pytest.param(functools.partial(demand, trial, [law.name]), id=f"{trial.name}-{law.name}")
        for trial in trials
        for law in trial.asked
        if law.claim(trial.subject) or law.name in trial.expected
    ]
    return pytest.mark.parametrize("check", cases)
