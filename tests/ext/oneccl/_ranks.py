"""Ranks that are forked from one process which has imported torch: that import costs more than what is tested.

`python -m tests.ext.oneccl._ranks JOBS OUT` runs pickled jobs one after the other, and pickles what their ranks gave.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[3]


class Job(NamedTuple):
    """A program, `module:function` beside this file, called on each of `world` ranks with `argument`."""

    program: str
    world: int
    argument: Any = None
    timeout: float = 60.0
    limit: float = 100.0


class Outcome(NamedTuple):
    """What a rank returned, or the traceback of what it raised; its exit status (a signal's is negative); its end."""

    value: Any
    error: str
    status: int
    seconds: float
    said: str = ""


def run(jobs: list[Job], **environment: str) -> list[list[Outcome]]:
    """Run jobs in a new process; return the outcomes of the ranks of each."""
    with tempfile.TemporaryDirectory() as place:
        given, found = pathlib.Path(place, "jobs"), pathlib.Path(place, "outcomes")
        given.write_bytes(pickle.dumps(jobs))
        command = [sys.executable, "-W", "error", "-m", "tests.ext.oneccl._ranks", str(given), str(found)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        outcomes: list[list[Outcome]] = pickle.loads(found.read_bytes())
    return [[outcome._replace(said=done.stderr[-4000:]) for outcome in ranks] for ranks in outcomes]


def _rank(job: Job, rank: int, store: str, out: pathlib.Path) -> None:
    import torch.distributed as dist

    value, error = None, ""
    faulthandler.dump_traceback_later(0.9 * job.limit)  # a rank that hangs says where
    try:
        dist.init_process_group(
            "ccl",
            init_method=f"file://{store}",
            rank=rank,
            world_size=job.world,
            timeout=timedelta(seconds=job.timeout),
        )
        module, function = job.program.split(":")
        value = getattr(importlib.import_module(f"tests.ext.oneccl.{module}"), function)(job.argument)
    except BaseException:
        error = traceback.format_exc()
    part = pathlib.Path(f"{out}.part")
    part.write_bytes(pickle.dumps((value, error)))
    part.replace(out)


def _main(given: str, found: str) -> None:
    import torch

    from ttransfer_ext.oneccl import register

    torch.set_num_threads(1)
    register()
    jobs: list[Job] = pickle.loads(pathlib.Path(given).read_bytes())
    outcomes: list[list[Outcome]] = []
    for number, job in enumerate(jobs):
        started = time.monotonic()
        outs = [pathlib.Path(f"{found}.{number}.{rank}") for rank in range(job.world)]
        children: dict[int, int] = {}
        for rank, out in enumerate(outs):
            child = os.fork()
            if child == 0:
                _rank(job, rank, f"{found}.{number}.store", out)
                return  # through the interpreter's own end, which is part of what is tested
            children[child] = rank
        outcomes.append(_collect(children, outs, started, job.limit))
    pathlib.Path(found).write_bytes(pickle.dumps(outcomes))


def _collect(children: dict[int, int], outs: list[pathlib.Path], started: float, limit: float) -> list[Outcome]:
    ended: dict[int, tuple[int, float]] = {}
    late: set[int] = set()
    while len(ended) < len(children):
        child, status = os.waitpid(-1, os.WNOHANG)
        passed = time.monotonic() - started
        if child:
            ended[children[child]] = os.waitstatus_to_exitcode(status), passed
        else:
            for child, rank in children.items():
                if passed > limit and rank not in ended and child not in late:
                    late.add(child)
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
    results: list[Outcome] = []
    for rank, out in enumerate(outs):
        value, error = pickle.loads(out.read_bytes()) if out.exists() else (None, "")
        results.append(Outcome(value, error, *ended[rank]))
    return results


if __name__ == "__main__":
    # As the module that the tests import, so that what is pickled is of its types.
    from tests.ext.oneccl import _ranks

    _ranks._main(*sys.argv[1:])
