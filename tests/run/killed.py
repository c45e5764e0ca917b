"""Run by test_fit_resumed in a process of its own: runs that are killed, stopped and resumed. Prints what came of them.

Torch is imported once, and every life is a fork of this process, which itself computes nothing: so that a life costs
a tenth of a second and can be ended by real signals. (Nor does it set the number of threads, which would start a
pool of them that a fork cannot take along: OMP_NUM_THREADS does it from outside.)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import ttransfer as tt
from ttransfer.run import checkpoints, domains, fit, loader, save
from ttransfer.run._signals import stopping

STEPS = 24


def problem() -> tuple[tt.Step, Any]:
    """Dropout, BatchNorm, momentum and a schedule, on two domains of unequal length."""
    g = torch.Generator().manual_seed(0)

    def data(rows: int, size: int) -> Any:
        x, y = torch.randn(rows, 4, generator=g), torch.randint(3, (rows,), generator=g)
        return loader({"x": x, "y": y}, batch_size=size, last="keep")

    def net() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3)
        )

    step = tt.step(
        {"net": tt.functional(net)},
        tt.optim.adamw(tt.schedules.cosine(1e-2, STEPS)),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
        entropy=tt.term(lambda z: -(z.softmax(1) * z.log_softmax(1)).sum(1).mean(), "net(target)", weight=0.1),
    )
    return step, domains(source=data(22, 4), target=data(13, 5))


def train(folder: Path, batches: Any = None, at: int = 0, act: Callable[[], object] = int, **options: Any) -> Any:
    """Run to the end, `act` once `at` steps of this life are done, and leave the final state beside the checkpoints."""
    step, own = problem()
    state = step.init(next(problem()[1]), seed=1)
    lived = itertools.count(1)

    def log(done: int, row: dict[str, float]) -> None:
        if next(lived) == at:
            act()

    fitted = fit(step, state, batches or own, steps=STEPS, checkpoint=folder, log=log, log_every=1, **options)
    save(folder / "final", fitted.state)
    return {"stopped": fitted.stopped, "step": int(fitted.state.step)}


def live(life: Callable[[], Any]) -> Any:
    """Fork a life, and return what it says at its end, or None if it was killed by its alarm."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            said = life()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers of a DataLoader, who would wait some seconds
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert status == (0 if said else -signal.SIGALRM), status
    return json.loads(said) if said else None


def fingerprint(folder: Path) -> str:
    return json.loads((folder / "final" / "state.json").read_text())["sha256"]


def killed(folder: Path) -> dict[str, Any]:
    """Kill life after life, each some steps and a moment after its start.

    An alarm that nobody handles ends a process as `kill -9` does: by the kernel, between any two instructions.
    """
    chance = random.Random(0)
    lives: list[list[int]] = []
    said = None
    while said is None:
        # From two steps on, each life leaves a checkpoint more.
        at, pause = chance.randint(2, 8), chance.uniform(1e-6, 0.02)
        act = functools.partial(signal.setitimer, signal.ITIMER_REAL, pause)
        said = live(lambda: train(folder, at=at, act=act, checkpoint_every=1))  # noqa: B023
        lives.append([int(path.name[5:]) for path in checkpoints(folder)])
    return {"end": said, "lives": lives, "sha256": fingerprint(folder)}


def signalled(folder: Path, number: signal.Signals) -> dict[str, Any]:
    first = live(lambda: train(folder, at=7, act=lambda: os.kill(os.getpid(), number)))
    return {"first": first, "then": live(lambda: train(folder)), "sha256": fingerprint(folder)}


def interrupted_loaders(folder: Path) -> dict[str, Any]:
    """Ctrl-C reaches the whole group of processes, and so the workers of a DataLoader."""

    def life(name: str, **options: Any) -> Any:
        data = TensorDataset(torch.randn(400, 4, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 3)
        batches = domains({name: DataLoader(data, batch_size=4, num_workers=1) for name in ("source", "target")})
        warnings.simplefilter("ignore", UserWarning)
        return live(lambda: train(folder / name, batches, **options))

    def group() -> None:
        os.killpg(os.getpgid(0), signal.SIGINT)

    life("unbroken")
    first, then = life("broken", at=7, act=group), life("broken")
    same = fingerprint(folder / "unbroken") == fingerprint(folder / "broken")
    return {"first": first, "then": then, "same": same}


def workers(number: signal.Signals) -> int:
    """Send a signal to a process that was forked by one that is stopping; return how it ended."""
    with stopping() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(3 if stop.signal is None else 4)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    step, batches = problem()
    step.init(next(batches))  # imports what it needs, once for all lives
    live(lambda: train(folder / "unbroken"))
    found = {
        "unbroken": fingerprint(folder / "unbroken"),
        "killed": killed(folder / "killed"),
        "SIGTERM": signalled(folder / "SIGTERM", signal.SIGTERM),
        "SIGINT": signalled(folder / "SIGINT", signal.SIGINT),
        "loaders": interrupted_loaders(folder / "loaders"),
        "workers": {number.name: workers(number) for number in (signal.SIGINT, signal.SIGTERM)},
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
