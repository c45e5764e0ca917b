"""What it gains to bind oneCCL's workers: two ranks, a step of computing and all-reducing, settings in turn.

`python benchmarks/ccl_affinity.py [ROUNDS]`. oneCCL reads its settings when it starts, so each turn has new ranks,
forked from here. Times are compared within a round only.
"""

from __future__ import annotations

import os
import pathlib
import random
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

import torch
import torch.distributed as dist

from ttransfer_ext.oneccl import register

RANKS = 2
STEPS, WARM = 25, 5


class Setting(NamedTuple):
    """Environment variables, and whether each rank's threads are kept on a core of its own."""

    backend: str
    variables: dict[str, str]
    bound: bool = False


SPIN = {"CCL_YIELD": "pause"}
SETTINGS = {
    "as register() sets it": Setting("ccl", {}),
    "oneCCL's default: workers spin": Setting("ccl", SPIN),
    "workers spin, on the core of their rank": Setting("ccl", SPIN | {"CCL_WORKER_AFFINITY": "0,1"}, bound=True),
    "workers yield (sched_yield)": Setting("ccl", {"CCL_YIELD": "sched_yield"}),
    "rank and worker on one core": Setting("ccl", {"CCL_WORKER_AFFINITY": "0,1"}, bound=True),
    "worker on the other rank's core": Setting("ccl", {"CCL_WORKER_AFFINITY": "1,0"}, bound=True),
    "two workers per rank": Setting("ccl", {"CCL_WORKER_COUNT": "2"}),
    "gloo": Setting("gloo", {}),
    "gloo, rank bound to its core": Setting("gloo", {}, bound=True),
}


def rank_of(setting: Setting, rank: int, place: str) -> None:
    """Write the median seconds of a step: half of the gradient travels while the rest is computed."""
    os.environ.update(setting.variables)
    if setting.bound:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    register()
    dist.init_process_group(setting.backend, init_method=f"file://{place}/store", rank=rank, world_size=RANKS)
    a, gradient = torch.randn(384, 384), torch.randn(2, 500_000)
    times: list[float] = []
    for _ in range(WARM + STEPS):
        started = time.perf_counter()
        for _ in range(3):
            a = torch.tanh(a @ a)
        first = dist.all_reduce(gradient[0], async_op=True)
        for _ in range(3):
            a = torch.tanh(a @ a)
        second = dist.all_reduce(gradient[1], async_op=True)
        for work in (first, second):
            assert work is not None
            work.wait()
        times.append(time.perf_counter() - started)
        gradient /= RANKS
    pathlib.Path(place, str(rank)).write_text(str(statistics.median(times[WARM:])))


def step_time(setting: Setting) -> float:
    with tempfile.TemporaryDirectory() as place:
        children: list[int] = []
        for rank in range(RANKS):
            child = os.fork()
            if child == 0:
                rank_of(setting, rank, place)
                os._exit(0)
            children.append(child)
        for child in children:
            status = os.waitpid(child, 0)[1]
            assert status == 0, status
        return max(float(pathlib.Path(place, str(rank)).read_text()) for rank in range(RANKS))


def main(rounds: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    names, draw = list(SETTINGS), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        draw.shuffle(names)
        for name in names:
            found[name].append(step_time(SETTINGS[name]))
    base = found[next(iter(SETTINGS))]
    cores = len(os.sched_getaffinity(0))
    print(
        f"torch {torch.__version__}, {RANKS} ranks, {cores} cores, 1 compute thread each, load {os.getloadavg()[0]:.1f}"
    )
    print(f"time of a step: median over {rounds} rounds of the ratio to the first line in the same round, [quartiles]")
    for name, times in found.items():
        ratios = [a / b for a, b in zip(times, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  {name:<42}{middle:6.2f}  [{low:.2f}, {high:.2f}]  ({1e3 * statistics.median(times):.1f} ms)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
