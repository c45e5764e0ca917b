"""Golden files: what a loss was, to the last digit, on a few inputs that a person can read.

The inputs are in the file, so it says the same when the strategies that drew them have changed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing._arguments import Argument
from ttransfer.testing._golden_file import decoded, encoded, golden_read, golden_written, numbers, part
from ttransfer.testing._law import Broken, Trial
from ttransfer.testing._subject import Inputs, Subject, drawn, for_all

__all__ = ["check_golden", "golden_cases", "write_golden"]

LIMIT = 5000  # numbers in a file that somebody is to review
Measured = tuple[float, dict[str, Tensor]]


def golden_cases(trial: Trial) -> dict[str, Inputs]:
    """Choose the inputs of a golden file: a plain batch and its confident, collapsed and single-row kin.

    Args:
        trial: from `loss_trial`.

    Returns:
        Case -> arguments, float64 numbers of three decimals. "plain"; "confident", with logits or features 50
        times as large and probabilities near 0 and 1; "collapsed", with all rows equal; "one row" (or "2 rows",
        as `min_batch` says). Where the trial has a strategy of its own: "drawn 1", "drawn 2" and so on.

    Example:
        >>> import ttransfer as tt
        >>> from ttransfer.testing._losses import loss_trial
        >>> cases = golden_cases(loss_trial(tt.losses.kd))
        >>> list(cases)
        ['plain', 'confident', 'collapsed', 'one row']
        >>> [x.shape[0] for x in cases["one row"]]
        [1, 1]
    """
    subject: Subject = trial.subject
    if subject.given is not None:
        return {f"drawn {i + 1}": inputs for i, inputs in enumerate(_draws(subject, 4))}
    changes: dict[str, Callable[[Argument, Any], Any]] = {"confident": _confident}
    if any(a.has_rows for a in subject.arguments):
        changes["collapsed"] = _collapsed
        if subject.rows is None:
            few = subject.fewest
            changes["one row" if few == 1 else f"{few} rows"] = lambda a, x: a.take(x, slice(few))
    plain = max(_draws(subject, 8), key=_variety)
    if subject.rows is None and not subject.same_rows:  # n and m that are not equal
        pairs = zip(subject.arguments, plain, strict=True)
        plain = tuple(a.take(x, slice(-1)) if a.rows == "n" else x for a, x in pairs)
    plain = tuple(_rounded(a, x) for a, x in zip(subject.arguments, plain, strict=True))
    changed = {
        name: tuple(change(a, x) for a, x in zip(subject.arguments, plain, strict=True))
        for name, change in changes.items()
    }
    return {"plain": plain, **changed}


def _draws(subject: Subject, examples: int) -> list[Inputs]:
    rows = max(4, subject.fewest) + 1
    found: list[Inputs] = []
    for_all(drawn(subject, "generic", rows=(rows, rows), least=3), found.append, examples=examples)
    return [tuple(x.double() if _is_real(x) else x for x in inputs) for inputs in found]


def _variety(inputs: Inputs) -> int:
    """How many different numbers there are: more labels, masks that are not all true."""
    return sum(x.unique().numel() for x in inputs if isinstance(x, Tensor))


def _rounded(a: Argument, x: Any) -> Any:
    if a.kind != "probabilities":
        return x
    parts = (x.double() * 1000).round()
    rest = 1000 - parts.sum(1, keepdim=True)
    return (parts + rest * _largest(parts)) / 1000


def _largest(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0)


def _confident(a: Argument, x: Any) -> Any:
    if a.kind == "probabilities":
        return _rounded(a, torch.full_like(x, 0.001) * (1 - _largest(x)))
    return (x * 50000).round() / 1000 if a.kind in ("logits", "features") else x


def _collapsed(a: Argument, x: Any) -> Any:
    floating = a.kind in ("logits", "features", "probabilities")
    return x.narrow(a.axis, 0, 1).expand_as(x).clone() if floating and a.has_rows else x


def write_golden(path: str | os.PathLike[str], trial: Trial) -> tuple[str, ...]:
    """Write what a loss is now: inputs, value and gradients of a few cases, every digit of them.

    The file is written beside and renamed, so that it is whole or not there. Of a golden file of the same loss and
    arguments the inputs are kept, so that a reviewer sees only what the change did.

    Args:
        path: a .json file; its folders are made.
        trial: from `loss_trial`.

    Returns:
        The names of the cases written. A case for which the loss raises is left out.

    Raises:
        TransferError: if the loss draws random numbers, if it raises for all cases, if the inputs are too large to
            be reviewed, or if something else than this loss's golden file is at the path.

    Example:
        >>> import tempfile, ttransfer as tt
        >>> from ttransfer.testing._losses import loss_trial
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_golden(f"{folder}/kd.json", loss_trial(tt.losses.kd))
        ...     check_golden(f"{folder}/kd.json", loss_trial(tt.losses.kd))
        ('plain', 'confident', 'collapsed', 'one row')
        ('plain', 'confident', 'collapsed', 'one row')
    """
    path, subject = Path(path), cast(Subject, trial.subject)
    if subject.tags.stochastic:
        raise TransferError(f"{trial.name}: it draws random numbers, so no file can say what it is")
    names = [a.name for a in subject.arguments]
    there = golden_read(path, trial.name) if path.exists() else {}
    kept = there["cases"] if there.get("arguments") == names else {}
    cases = {name: _inputs(path, subject, name, case) for name, case in kept.items()} or golden_cases(trial)
    size = sum(x.numel() for inputs in cases.values() for x in inputs if isinstance(x, Tensor))
    if size > LIMIT:
        raise TransferError(
            f"{trial.name}: its golden file would hold {size} numbers of input, more than the {LIMIT} that "
            "somebody can review; give an example with fewer features or classes"
        )
    written: dict[str, Any] = {}
    error = None
    for name, inputs in cases.items():
        try:
            value, grads = _measured(subject, inputs)
        except Broken as broken:
            error = broken
            continue
        written[name] = {
            "inputs": {a: encoded(x) for a, x in zip(names, inputs, strict=True)},
            "value": encoded(value),
            "gradients": {a: encoded(grad) if bool((grad != 0).any()) else 0 for a, grad in grads.items()},
        }
    if not written:
        raise TransferError(f"{trial.name}: no case could be written; {str(error).splitlines()[0]}") from error
    golden_written(path, trial.name, names, written)
    return tuple(written)


def check_golden(path: str | os.PathLike[str], trial: Trial) -> tuple[str, ...]:
    """Compare a loss with its golden file: values to 1e-9 of their size, gradients to 1e-9 of their largest entry.

    Args:
        path: a file from `write_golden`.
        trial: from `loss_trial`.

    Returns:
        The names of the cases compared.

    Raises:
        Broken: if a number differs: which case, what it was and what it is.
        TransferError: if there is no such file, if it is no golden file, or one of another loss or of other arguments.

    Example:
        >>> from ttransfer.testing._losses import loss_trial
        >>> check_golden("nowhere/kd.json", loss_trial(lambda student, teacher: student.mean()))
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: nowhere/kd.json: there is no such file; write it with ttransfer check --golden
    """
    path, subject = Path(path), cast(Subject, trial.subject)
    there = golden_read(path, trial.name)
    names = [a.name for a in subject.arguments]
    if there["arguments"] != names:
        raise TransferError(
            f"{path}: it was written for {trial.name}({', '.join(map(str, there['arguments']))}), and the arguments "
            f"are ({', '.join(names)}) now; if that is meant, write it anew with --update"
        )
    differences: list[str] = []
    for name, case in there["cases"].items():
        inputs = _inputs(path, subject, name, case)
        then = _then(path, subject, name, case, inputs)
        try:
            differences += _differences(name, then, _measured(subject, inputs))
        except Broken as broken:
            differences.append(f"{name}: {broken}")
    if differences:
        raise Broken("\n".join(differences))
    return tuple(there["cases"])


def _inputs(path: Path, subject: Subject, name: str, case: Any) -> Inputs:
    given = part(path, name, case, "inputs", [a.name for a in subject.arguments])
    return tuple(
        a.value if isinstance(given[a.name], dict) else decoded(given[a.name], f"{path}: {name}: {a.name}")
        for a in subject.arguments
    )


def _then(path: Path, subject: Subject, name: str, case: Mapping[str, Any], inputs: Inputs) -> Measured:
    real = {a.name: tuple(x.shape) for a, x in zip(subject.arguments, inputs, strict=True) if _is_real(x)}
    grads = part(path, name, case, "gradients", list(real))
    what = f"{path}: {name}: the "
    value = numbers(case.get("value"), (), what + "value").item()
    return value, {a: numbers(grads[a], shape, f"{what}gradient of {a}") for a, shape in real.items()}


def _measured(subject: Subject, inputs: Inputs) -> Measured:
    """The value and the gradients by every real tensor, whatever the arguments are taken for."""
    arguments = tuple(
        Argument(a.name, "features" if _is_real(x) else "fixed") for a, x in zip(subject.arguments, inputs, strict=True)
    )
    value, grads = subject._replace(arguments=arguments).gradients(inputs)
    return value.item(), {subject.arguments[i].name: grad for i, grad in grads.items()}


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and bool(x.ndim)


def _differences(name: str, then: Measured, now: Measured) -> list[str]:
    found: list[str] = []
    if not _close(*(torch.tensor(x, dtype=torch.float64) for x in (then[0], now[0]))):
        found.append(f"{name}: the value was {then[0]!r}, and is {now[0]!r}")
    for argument, grad in now[1].items():
        was = then[1][argument]
        if not _close(was, grad):
            gap = (was - grad).abs().nan_to_num(math.inf).reshape(-1)
            worst = int(gap.argmax())
            at = [int(i) for i in torch.unravel_index(torch.tensor(worst), grad.shape)]
            before, after = was.reshape(-1)[worst].item(), grad.reshape(-1)[worst].item()
            found.append(f"{name}: the gradient of {argument} was {before!r} at {at}, and is {after!r}")
    return found


def _close(then: Tensor, now: Tensor) -> bool:
    """Equal to 1e-9 of the largest entry; 1e-12 is what rounding leaves of a zero."""
    finite = then.isfinite()
    same = torch.equal(then[~finite].nan_to_num(), now[~finite].nan_to_num())
    if not same or not torch.equal(finite, now.isfinite()):
        return False
    size = max([x[finite].abs().max().item() for x in (then, now) if bool(finite.any())], default=0.0)
    return not bool(((then - now)[finite].abs() > 1e-9 * size + 1e-12).any())
