"""Our compiled step against an imperative loop and against a step written by hand on torch.func.

One training, KD + MMD + DANN on a network with batch normalisation, with AdamW and a cosine schedule, done
by all. That they compute the same is checked first. Then: time per step, interleaved in one process; kernels;
compile time, cold and cached; memory; what a smaller last batch costs. Run with ``make bench``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _cases import CASES, Case, batch_of
from _child import floor
from _measure import arithmetic, interleaved, mathematics, stepping
from _programs import (
    DYNAMIC,
    HAND,
    HAND_BARE,
    HAND_DEFAULTS,
    HAND_DONATED,
    IMPERATIVE,
    OPTIONS,
    OURS,
    OURS_BARE,
    OURS_DONATED,
    OURS_EAGER,
    program,
)

TIMED = (IMPERATIVE, OURS_EAGER, HAND, OURS, HAND_DONATED, OURS_DONATED, HAND_BARE, OURS_BARE, HAND_DEFAULTS)
TIMED_BRIEFLY = (IMPERATIVE, OURS_EAGER, HAND_DONATED, OURS_DONATED)
REFERENCE = HAND_DONATED
EXACT, CLOSE = 1e-9, 1e-2  # inductor alone differs from eager by 4e-3 in the gradients of resnet10, in float32
EPOCH = 100
# Freed blocks go back at once: see _child.memory.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


class Report:
    """Lines, printed as they come and kept for a file."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        """Add a line."""
        self.lines.append(line)
        print(line, flush=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add rows in columns as wide as what they hold."""
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        for row in (head, *rows):
            cells = [row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))]
            self.say("  " + "  ".join(cells).rstrip())
        self.say()


def child(what: str, case: Case, name: str, threads: int, cache: Path, **environment: str) -> dict[str, float]:
    """Measure in a new process."""
    script = str(Path(__file__).with_name("_child.py"))
    arguments = [sys.executable, script, what, case.name, name, str(threads), "20"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), **environment}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} of {name!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compiling(report: Report, case: Case, names: Sequence[str], threads: int, scratch: Path) -> None:
    """Compile in processes of their own, each cold and then from its cache; leave all in one cache for us."""
    report.say("Compile time: seconds to the end of the first step, in a new process")
    found: dict[str, dict[str, float]] = {}
    rows: list[list[str]] = []
    for i, name in enumerate(names):
        cache = scratch / case.name / str(i)
        cold, cached = (child("compile", case, name, threads, cache) for _ in range(2))
        found[name] = cold
        rows.append([name, f"{cold['seconds']:.1f}", f"{cached['seconds']:.1f}"])
        shutil.copytree(cache, scratch / case.name / "all", dirs_exist_ok=True)
    report.table(("", "cold", "cached"), rows)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / case.name / "all")
    report.say("Kernels of one step (generated is inductor's own count, before it merges loops)")
    keys = ("generated", "loops", "library")
    lines = [[name, *(f"{one[key]:.0f}" for key in keys)] for name, one in found.items()]
    report.table(("", "generated", "loops called", "library calls"), lines)


def checking(report: Report, case: Case, names: Sequence[str]) -> dict[str, Any]:
    """Stop unless all compute the same; return the programs."""
    worst = mathematics(case)
    programs = {name: program(case, name) for name in names}
    apart = arithmetic(case, programs)
    report.say(f"Values: float64, eager, 3 steps, largest difference {worst:.1e}; float32, as timed, 1 step, relative:")
    report.say("  " + "; ".join(f"{name} {gap:.1e}" for name, gap in apart.items() if name != IMPERATIVE))
    report.say()
    if not worst < EXACT or not all(gap < CLOSE for gap in apart.values()):
        sys.exit("The contestants do not compute the same: there is nothing to compare.")
    return programs


def timing(report: Report, case: Case, programs: Mapping[str, Any], seconds: float) -> None:
    batch = batch_of(case, 0)
    times = interleaved({name: stepping(one, batch) for name, one in programs.items()}, seconds)
    hand = times[REFERENCE]
    rounds = len(hand.wall)
    report.say(f"Time per step: median over {rounds} rounds of the ratio to {REFERENCE} in the same round")
    rows = [[name, f"{t.ratio(hand):.3f}", f"{t.cpu_ratio(hand):.3f}", f"{t.ms():.2f}"] for name, t in times.items()]
    report.table(("", "ratio", "of CPU time", "(ms)"), rows)
    for one, other in ((OURS, HAND), (OURS, OURS_BARE), (HAND, HAND_BARE)):
        if one in times and other in times:
            wall, cpu = times[one].ratio(times[other]), times[one].cpu_ratio(times[other])
            report.say(f"  {one} to {other}: {wall:.3f}, of CPU time {cpu:.3f}")
    report.say()


def remembering(report: Report, case: Case, names: Sequence[str], threads: int, cache: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        report.say("Memory: not measured, this system has no /proc/self/clear_refs")
        return
    found = {name: child("memory", case, name, threads, cache, **ALLOCATOR) for name in names}
    report.say("Memory of training: peak over 20 steps, less the process that has compiled and does not train")
    rows = [
        [name, f"{one['peak']:.1f}", f"{one['peak'] / found[IMPERATIVE]['peak']:.2f}", f"{one['base']:.0f}"]
        for name, one in found.items()
    ]
    report.table(("", "MB", "ratio", "taken off (MB)"), rows)
    report.say(f"  weights of both nets, two moments and one gradient: {floor(case):.1f} MB")
    report.say()


def last_batch(report: Report, case: Case, seconds: float, scratch: Path) -> None:
    """Compare the ways to take a smaller last batch: a second graph, one graph for all sizes, or padding."""
    small = max(2, case.rows * 3 // 4)
    full, part = batch_of(case, 0), batch_of(case, 0, small)
    once, twice, any_size = (program(case, name) for name in (OURS_DONATED, OURS_DONATED, DYNAMIC))
    second = stepping(twice, part)
    stepping(twice, full)()
    took, shared = {}, os.environ["TORCHINDUCTOR_CACHE_DIR"]
    new = {"second graph": second, "one graph for all sizes": stepping(any_size, full)}
    for i, (name, call) in enumerate(new.items()):
        # A cache of its own, for the two graphs are nearly the same.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / f"last-batch-{i}")
        began = time.perf_counter()
        call()
        took[name] = time.perf_counter() - began
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = shared
    calls = {
        "static": stepping(once, full),
        "static, after a second graph": stepping(twice, full),
        "dynamic": stepping(any_size, full),
        "second graph": second,
        "dynamic, smaller": stepping(any_size, part),
    }
    times = interleaved(calls, seconds)
    static = times["static"]
    ratios = {name: t.ratio(static) for name, t in times.items()}
    cpu = {name: t.cpu_ratio(static) for name, t in times.items()}
    report.say(f"A smaller last batch ({small} of {case.rows} rows): step time as ratio to a full static step")
    rows = [[name, f"{ratios[name]:.3f}", f"{cpu[name]:.3f}", f"{t.ms():.2f}"] for name, t in times.items()]
    report.table(("", "ratio", "of CPU time", "(ms)"), rows)
    epochs = {
        "static and a second graph": (EPOCH - 1) * cpu["static, after a second graph"] + cpu["second graph"],
        "dynamic": (EPOCH - 1) * cpu["dynamic"] + cpu["dynamic, smaller"],
        "padded to full": float(EPOCH),
    }
    extra = {
        "static and a second graph": f"{took['second graph']:.1f} more",
        "dynamic": f"{took['one graph for all sizes']:.1f} in all",
        "padded to full": "none more",
    }
    rows = [[name, f"{cost:.2f}", extra[name]] for name, cost in epochs.items()]
    report.say(f"  An epoch of {EPOCH} steps, one of them smaller, in CPU time of full static steps:")
    report.table(("", "steps", "compile (s)"), rows)
    report.say(f"  cheapest per step: {min(epochs, key=lambda name: epochs[name])}")
    report.say()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, fewer contestants, about two minutes")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch; more disturb each other (1)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    report = Report()
    began = time.perf_counter()
    report.say(
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{given.threads} thread(s), load {os.getloadavg()[0]:.1f}; inductor options of ours and hand-written: "
        f"{OPTIONS or 'the defaults'}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES.values():
            if given.quick and case.name != "cnn":
                continue
            large = case.name != "cnn"
            report.say(f"\n== {case.name}: {case.rows} + {case.rows} images of {'x'.join(map(str, case.shape))} ==\n")
            apart = (HAND_DONATED, OURS_DONATED) if given.quick else (HAND_DONATED, OURS_DONATED, OURS)
            compiling(report, case, apart, given.threads, Path(scratch))
            names = TIMED_BRIEFLY if given.quick or large else TIMED
            programs = checking(report, case, [name for name in names if name != HAND_DEFAULTS or OPTIONS])
            timing(report, case, programs, 10 if given.quick else 40)
            del programs
            if large or given.quick:
                remembering(report, case, (IMPERATIVE, *apart[1:]), given.threads, Path(scratch, case.name, "all"))
            if not large and not given.quick:
                last_batch(report, case, 20, Path(scratch))
    report.say(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
    if given.output:
        given.output.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
