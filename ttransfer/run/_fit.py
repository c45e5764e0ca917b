"""The loop around a step: data, logs, evaluation, checkpoints, signals."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._step import Step
from ttransfer.core._transforms import Outside, outside_of
from ttransfer.core._types import Batch, Logs, State
from ttransfer.run._checkpoint import latest, load, prune, save
from ttransfer.run._domains import Cursor, warn_of_replay
from ttransfer.run._guard import Guard
from ttransfer.run._logs import Log, Row, row_of, writing
from ttransfer.run._progress import showing
from ttransfer.run._signals import Stop, stopping

__all__ = ["Fitted", "fit"]


class Fitted(NamedTuple):
    """What `fit` returns.

    Attributes:
        state: after the last update.
        history: the rows that were logged in this call, each with its "step".
        stopped: the signal that came during the run, "SIGINT" or "SIGTERM", or None.

    Example:
        >>> from ttransfer.run import Fitted
        >>> Fitted(state=None, history=[{"step": 10, "loss": 0.5}], stopped=None).history[-1]["loss"]
        0.5
    """

    state: Any
    history: list[Row]
    stopped: str | None


def fit(
    step: Callable[[State, Batch], tuple[State, Logs]],
    state: State,
    batches: Iterable[Batch],
    *,
    steps: int,
    evaluate: Callable[[State], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    log: Log | None = None,
    log_every: int = 10,
    progress: bool | None = None,
) -> Fitted:
    """Run a step until `state.step` reaches `steps`.

    A sharded step runs on every rank, each with its own batches (`tt.dist.sliced`). The first rank alone writes logs,
    progress and checkpoints; a checkpoint holds the whole state, so that any number of ranks, or one process, can go on
    from it. A signal to one rank stops all.

    With `checkpoint`, the run first goes on from the newest checkpoint there, if there is one, data order included,
    and then equals bit for bit the run that was never cut off. Ctrl-C and SIGTERM finish the step under way, save and
    return; a second Ctrl-C raises KeyboardInterrupt. The device is waited for only where a row is logged, the state
    evaluated or saved.

    An update that was refused because something in it was not finite ends the run with an error, at the next such
    place and after the state before it was saved. In an ensemble the other members go on, with a warning.

    Args:
        step: a Step, or any function (state, batch) -> (state, logs). If it donates, `state` is used up.
        state: where to begin; also the template for a checkpoint.
        batches: yields {domain: {field: tensor}}, most simply `domains(...)`. It is started again when it ends, and
            its batches are moved to the state's device.
        steps: the number of updates in all, those before this call included.
        evaluate: state -> {name: number, or tensor of shape () or (n,)}, logged.
        evaluate_every: every how many updates; it is always done at the end.
        checkpoint: directory for checkpoints.
        checkpoint_every: every how many updates; it is always done at the end.
        keep: how many checkpoints stay.
        log: a path that ends in .jsonl, a directory for TensorBoard, or a function of (step, row). In an ensemble
            "name" is the mean over the finite members and "name/i" a member.
        log_every: every how many updates to log; the last is always logged.
        progress: True shows the loss and the terms, as a bar in a terminal and else as about 20 lines; False shows
            nothing; None shows the bar in a terminal only.

    Returns:
        The state, the rows logged in this call, and the signal that came, if any.

    Raises:
        TransferError: for an option out of range, batches that are empty or cannot start again, a checkpoint that
            does not fit, or an update that was refused.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> from ttransfer.run import domains, fit, loader
        >>> net = tt.functional(torch.nn.Linear(2, 2))
        >>> step = tt.step({"net": net}, tt.optim.sgd(0.1), trainable=("net",),
        ...                task=tt.term(F.cross_entropy, "net(source)", "source.y"))
        >>> batches = domains(source=loader({"x": torch.eye(2), "y": torch.arange(2)}, batch_size=2))
        >>> fitted = fit(step, step.init(next(batches)), batches, steps=20)
        >>> [row["step"] for row in fitted.history], fitted.stopped
        ([10, 20], None)
    """
    _check_counts(steps=steps, keep=keep, log_every=log_every)
    _check_every("evaluate", evaluate, evaluate_every)
    _check_every("checkpoint", checkpoint, checkpoint_every)
    cursor = Cursor("batches", batches)
    folder = None if checkpoint is None else Path(checkpoint)
    outside = outside_of(step.spec.transforms) if isinstance(step, Step) else None
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise TransferError(f"fit: checkpoint={str(folder)!r} is a file, wanted a directory")
        state = _resume(folder, state, cursor, outside)
    done = _updates(state)
    history: list[Row] = []
    if done >= steps:
        if evaluate is not None:
            history.append({"step": done, **row_of(evaluate(state), "evaluate")})
        return Fitted(state, history, None)

    guard, problem, device = Guard(done), None, _device(state)
    first = outside is None or outside.first
    with (
        stopping() as stop,
        writing(log if first else None, done) as write,
        showing(steps, done, progress if first else False) as show,
    ):
        while done < steps and not _stops(stop, outside):
            try:
                batch = _moved(cursor.take(), device)
            except Exception:
                if stop.signal is None:
                    raise
                break  # the signal reached the loader's own processes too, and they have ended
            state, logs = step(state, batch)
            done += 1
            guard.add(logs)

            last = done == steps
            logged = last or _due(done, log_every)
            evaluated = evaluate is not None and (last or _due(done, evaluate_every))
            saved = folder is not None and _due(done, checkpoint_every)
            if (logged or evaluated or saved or guard.full) and (problem := guard.check()):
                break
            row = row_of({name: value for name, value in logs.items() if name != "finite"}) if logged else {}
            if evaluate is not None and evaluated:
                row = _joined(row, row_of(evaluate(state), "evaluate"))
            show(done, row)
            if row:
                write(done, row)
                history.append({"step": done, **row})
            if folder is not None and saved:
                _store(folder, state, cursor, keep, outside)

        problem = problem or guard.check()
        if folder is not None:
            _store(folder, state, cursor, keep, outside)
    if problem:
        raise TransferError(problem + ("" if folder is None else f"; the state before it is in {str(folder)!r}"))
    return Fitted(state, history, stop.signal)


def _stops(stop: Stop, outside: Outside | None) -> bool:
    """Whether to stop between steps: ranks decide it together, for those who go on would wait for those who do not."""
    if outside is None:
        return stop.signal is not None
    if outside.agree(stop.signal is not None):
        stop.signal = stop.signal or "SIGTERM"
        return True
    return False


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        least = 0 if name == "steps" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise TransferError(f"fit: {name}={value!r}, wanted a whole number, at least {least}")


def _check_every(name: str, given: Any, every: int | None) -> None:
    if every is not None:
        _check_counts(**{f"{name}_every": every})
        if given is None:
            raise TransferError(f"fit: {name}_every={every} without {name}")


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def _updates(state: State) -> int:
    """Return how many updates are done; in an ensemble, by the member that is furthest."""
    return int(state.step.max())


def _device(state: State) -> torch.device:
    return cast(Tensor, tree.leaves(state)[0]).device


def _moved(batch: Any, device: torch.device) -> dict[str, dict[str, Tensor]]:
    """Return a batch on a device, after a look at its form."""
    if not isinstance(batch, Mapping) or not all(isinstance(part, Mapping) for part in cast(Any, batch).values()):
        raise TransferError(
            f"fit: batches yields a {type(cast(Any, batch)).__name__}, wanted {{domain: {{field: tensor}}}}; "
            "zip loaders with tt.domains(source=loader)"
        )
    return {
        domain: {field: value.to(device, non_blocking=True) for field, value in part.items()}
        for domain, part in cast(Batch, batch).items()
    }


def _joined(logs: Row, evaluated: Row) -> Row:
    if clash := sorted(logs.keys() & evaluated.keys()):
        raise TransferError(f"fit: evaluate returns {clash[0]!r}, which the step logs; give it another name")
    return {**logs, **evaluated}


def _resume(folder: Path, state: State, cursor: Cursor, outside: Outside | None) -> State:
    """Return the state of the newest checkpoint, with the data moved to where it was; or the state as given."""
    found = latest(folder)
    if outside is not None and outside.agree(found is None) != (found is None):
        raise TransferError(
            f"fit: other ranks see no checkpoint in {str(folder)!r}, and this one {str(found)!r}; the directory must "
            "be one that all ranks share"
        )
    if found is None:
        return state
    loaded, extra = load(found, state if outside is None else outside.whole(state))
    loaded = loaded if outside is None else outside.part(loaded)
    if "batches" not in extra:
        raise TransferError(f"fit: {str(found)!r} was not written by fit: it has no place in the data")
    if _updates(loaded) < _updates(state):
        raise TransferError(
            f"fit: the state given is at step {_updates(state)}, {str(found)!r} at {_updates(loaded)}; "
            "give another directory, or a state to go on from the checkpoint"
        )
    _compare(found, loaded, state)
    if cursor.load_state_dict(extra["batches"]):
        warn_of_replay([cursor.name])
    return loaded


def _compare(found: Path, loaded: State, state: State) -> None:
    """Refuse another run's checkpoint; say which numbers of the state given give way to the checkpoint's."""
    if not torch.equal(loaded.seed, state.seed):
        raise TransferError(
            f"fit: {str(found)!r} is of a run with seed {loaded.seed.tolist()}, the state given has "
            f"{state.seed.tolist()}; give each run a directory of its own"
        )
    changed = [name for name, value in loaded.hyper.items() if not torch.equal(value, state.hyper[name])]
    if changed:
        told = ", ".join(f"{n} {loaded.hyper[n].tolist()} (given {state.hyper[n].tolist()})" for n in changed[:4])
        warnings.warn(
            f"fit: going on from {str(found)!r} with its own numbers: {told}; to change them, load the checkpoint "
            "and use tt.set_hyper",
            RuntimeWarning,
            stacklevel=3,
        )


def _store(folder: Path, state: State, cursor: Cursor, keep: int, outside: Outside | None) -> None:
    path = folder / f"step-{_updates(state):08d}"
    if outside is not None:
        state = outside.whole(state)  # by all ranks, whoever writes
        if not outside.first:
            return
    if not path.exists():
        save(path, state, extra={"batches": cursor.state_dict()})
        prune(folder, keep)
