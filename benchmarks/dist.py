"""Our step over processes: against one process with as many threads, against DDP, what it sends and what it keeps.

Groups of processes take turns in one run, and within a group contestants take turns in an order drawn anew each round:
ratios are of neighbours in time. That ours and DDP compute the same is checked first. Run with ``make bench-dist``.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from _child import MB
from _group import Group, in_private, sent
from _measure import Times
from _sharded import BARE, COMPILED, DDP, DDP_COMPILED, EAGER, SPREAD
from step import ALLOCATOR, Report

ROWS = {"cnn": 128, "resnet10": 64}  # of each domain, on all ranks together
BURST = {"cnn": 5, "resnet10": 1}  # steps in a turn
CONTESTANTS = (DDP, DDP_COMPILED, EAGER, COMPILED, BARE)
OPERATIONS = ("all_reduce", "all_gather")
SIZES = tuple(4**k for k in range(1, 14))  # bytes: 4 to 64 MB
EXACT = 1e-9
WORLDS = (2, 3, 4)

Call = Callable[[], float]


def turns(seconds: float, one: Mapping[str, Call]) -> dict[str, list[float]]:
    """Call each in turn, in an order drawn anew each round, for so long; return what each said."""
    found: dict[str, list[float]] = {name: [] for name in one}
    order, draw = list(one), random.Random(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[order[0]]) < 5:
        draw.shuffle(order)
        for name in order:
            found[name].append(one[name]())
    return found


def ratio(these: Sequence[float], those: Sequence[float]) -> str:
    """The median over the rounds of the ratio in a round, and its quartiles."""
    found = [a / b for a, b in zip(these, those, strict=True)]
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def stepping(seconds: float, who: Mapping[str, tuple[Group, str]], times: int) -> dict[str, Times]:
    """Let all take steps in turn: milliseconds of a step on the slowest rank, and of CPU time of all ranks."""
    cpu: dict[str, list[float]] = {name: [] for name in who}

    def step(name: str) -> float:
        group, contestant = who[name]
        said = group.ask("steps", name=contestant, times=times)
        cpu[name].append(1e3 * sum(own for _, own in said))
        return 1e3 * max(wall for wall, _ in said)

    wall = turns(seconds, {name: functools.partial(step, name) for name in who})
    return {name: Times(wall[name], cpu[name]) for name in who}


def threads(report: Report, case: str, seconds: float) -> None:
    """Two ranks with a thread each, and one process with two threads, on the same batch."""
    how = {"case": case, "training": "all", "rows": ROWS[case], "batchnorm": "synced"}
    with Group(2) as pair, Group(1, threads=2) as alone, Group(1) as single:
        for group in (pair, alone, single):
            group.ask("make", name=COMPILED, **how)
        who = {"2 ranks x 1 thread": pair, "1 rank x 2 threads": alone, "1 rank x 1 thread": single}
        times = stepping(seconds, {name: (group, COMPILED) for name, group in who.items()}, BURST[case])
    base = times["1 rank x 2 threads"]
    report.say(
        f"{case}, {ROWS[case]} + {ROWS[case]} rows, cross-entropy, distillation, MMD and DANN, batch normalisation "
        "synced, compiled and donated:"
    )
    report.say(f"time per step over {len(base.wall)} rounds, ratio to 1 rank x 2 threads")
    rows = [
        [name, ratio(t.wall, base.wall), f"{t.cpu_ratio(base):.3f}", f"{statistics.median(t.wall):.1f}"]
        for name, t in times.items()
    ]
    report.table(("", "ratio (quartiles)", "of CPU time", "(ms)"), rows)


def against_ddp(report: Report, case: str, seconds: float) -> None:
    """Ours and DDP on two ranks of one thread, with the losses that DDP can do."""
    how = {"case": case, "training": "means", "rows": ROWS[case]}
    with Group(2) as pair:
        gap = max(pair.ask("compare", one=DDP, other=EAGER, **how))
        assert gap < EXACT, f"ours and DDP do not compute the same: {gap}"
        for name in CONTESTANTS:
            pair.ask("make", name=name, **how)
        times = stepping(seconds, {name: (pair, name) for name in CONTESTANTS}, BURST[case])
        size = pair.ask("gradient", name=COMPILED)[0]
    eager, compiled = times[DDP], times[DDP_COMPILED]
    report.say(
        f"{case}, {ROWS[case]} rows, cross-entropy and distillation, batch normalisation local, a gradient of "
        f"{size / MB:.2f} MB;"
    )
    report.say(
        f"parameters after 3 steps in float64 differ by {gap:.0e}; time per step over {len(eager.wall)} rounds, ratios "
        "(quartiles)"
    )
    rows = [
        [
            name,
            ratio(t.wall, eager.wall),
            f"{t.cpu_ratio(eager):.3f}",
            ratio(t.wall, compiled.wall),
            f"{t.cpu_ratio(compiled):.3f}",
            f"{statistics.median(t.wall):.1f}",
        ]
        for name, t in times.items()
    ]
    report.table(("", "to DDP, eager", "of CPU time", "to DDP, compiled", "of CPU time", "(ms)"), rows)


def bytes_sent(report: Report, private: bool, worlds: Sequence[int]) -> None:
    """What one step sends, by its calls and on the wire."""
    trainings = {
        "means": "cross-entropy and distillation",
        "all": "with MMD and DANN, batch normalisation synced",
    }
    for training, words in trainings.items():
        rows: list[list[str]] = []
        for world in worlds:
            how = {
                "case": "resnet10",
                "training": training,
                "rows": 12 * 2,
                "batchnorm": "local" if training == "means" else "synced",
            }
            with Group(world) as group:
                group.ask("make", name=EAGER, **how)
                calls = group.ask("calls", name=EAGER)[0]
                size = group.ask("gradient", name=EAGER)[0]
                wire = on_wire(group, EAGER)
            reduced, gathered = (sum(calls.get(kind, [])) for kind in ("all_reduce", "all_gather_into_tensor"))
            theory = 2 * (world - 1) / world * size
            # A ring's all-reduce sends 2 (w - 1)/w of what it is given, its all-gather w - 1 times.
            ring = 2 * (world - 1) / world * reduced + (world - 1) * gathered
            rows.append([
                str(world), f"{size / MB:.3f}", f"{theory / MB:.3f}", f"{reduced / size:.4f}",
                f"{gathered / 1024:.1f}", str(sum(len(each) for each in calls.values())),
                f"{ring / theory:.4f}", f"{wire / world / theory:.3f}",
            ])  # fmt: skip
        report.say(f"resnet10, {words}")
        report.table(
            (
                "ranks", "gradient", "2(w-1)/w of it (MB)", "all-reduced / gradient", "gathered (kB)", "calls",
                "by ring / theory", "on wire / theory",
            ),
            rows,
        )  # fmt: skip
    report.say(
        "  gradient, what is given to collectives, and calls: of one rank, in one step. On the wire: /proc/net/dev, "
        f"headers and acknowledgements too, least of five, {'in' if private else 'NOT in'} a network namespace of its "
        "own."
    )
    report.say()


def on_wire(group: Group, name: str, steps: int = 4) -> float:
    """Bytes that all ranks together send in a step."""
    group.ask("steps", name=name, times=1)
    found: list[float] = []
    for _ in range(5):
        before, _ = sent()
        group.ask("steps", name=name, times=steps)
        found.append((sent()[0] - before) / steps)
    return min(found)


def memory(report: Report, worlds: Sequence[int]) -> None:
    """The optimizer's state and the peak of training, replicated and spread."""
    rows: list[list[str]] = []
    for world in worlds:
        found: dict[str, Any] = {}
        for name in (EAGER, SPREAD):
            with Group(world, **ALLOCATOR) as group:
                how = {"case": "resnet10", "training": "means", "rows": 4 * world}
                found[name] = group.ask("memory", name=name, times=5, **how)
        for name, each in found.items():
            opt, peak = (max(one[key] for one in each) for key in ("opt", "peak"))
            base = {key: max(one[key] for one in found[EAGER]) for key in ("opt", "peak")}
            rows.append([
                f"{world} ranks, {'sharded' if name == SPREAD else 'replicated'}",
                f"{opt / base['opt']:.3f}", f"{opt / MB:.1f}", f"{peak / base['peak']:.3f}", f"{peak:.1f}",
            ])  # fmt: skip
    report.say("resnet10, 4 rows a rank, AdamW, eager: the rank that has most; peak over 5 steps")
    report.table(("", "optimizer's state", "(MB)", "peak of training", "(MB)"), rows)


def messages(report: Report, backends: Sequence[str], seconds: float, picture: Path) -> None:
    """Two ranks exchange messages of all sizes, backends in turn."""
    groups = {backend: Group(2, backend=backend) for backend in backends}
    found: dict[tuple[str, str, int], list[float]] = {}
    try:
        for operation in OPERATIONS:
            for size in SIZES:
                times = 20 if size <= 2**18 else 3

                def exchange(group: Group, o: str = operation, s: int = size, n: int = times) -> float:
                    ranks = group.ask("message", operation=o, size=s, times=n)
                    return 1e6 * statistics.median(max(each) for each in zip(*ranks, strict=True))

                calls = {backend: functools.partial(exchange, group) for backend, group in groups.items()}
                for backend, each in turns(seconds, calls).items():
                    found[operation, backend, size] = each
    finally:
        for group in groups.values():
            group.close()
    for operation in OPERATIONS:
        report.say(f"{operation}, 2 ranks: microseconds by the bytes of a rank's tensor, median and quartiles")
        rows: list[list[str]] = []
        for size in SIZES:
            own = [found[operation, backend, size] for backend in backends]
            cells = [f"{statistics.median(t):.0f}" for t in own]
            spread = ["{0:.0f}-{2:.0f}".format(*statistics.quantiles(t, n=4)) for t in own]
            against = [ratio(own[1], own[0])] if len(own) > 1 else []
            rows.append([str(size), *(x for pair in zip(cells, spread, strict=True) for x in pair), *against])
        head = [x for backend in backends for x in (backend, "quartiles")]
        report.table(("bytes", *head, *(["ccl / gloo"] if len(backends) > 1 else [])), rows)
    draw(found, backends, picture)


def draw(found: dict[tuple[str, str, int], list[float]], backends: Sequence[str], path: Path) -> None:
    """Draw the time of a message over its size."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(OPERATIONS), figsize=(11, 4.6), layout="constrained", sharey=True)
    for axis, operation in zip(axes, OPERATIONS, strict=True):
        for colour, backend in zip(("C0", "C3"), backends, strict=False):
            quartiles = [statistics.quantiles(found[operation, backend, size], n=4) for size in SIZES]
            low, middle, high = zip(*quartiles, strict=True)
            label = {"ccl": "oneCCL"}.get(backend, backend)
            axis.plot(SIZES, middle, colour, marker="o", markersize=4, label=label)
            axis.fill_between(SIZES, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(xscale="log", yscale="log", xlabel="bytes of a rank's tensor", title=operation.replace("_", "-"))
        axis.set_xscale("log", base=2)
        ticks = [4, 64, 1024, 2**14, 2**18, 2**22, 2**26]
        axis.set_xticks(ticks, ["4 B", "64 B", "1 kB", "16 kB", "256 kB", "4 MB", "64 MB"])
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="microseconds")
    axes[0].legend()
    figure.suptitle(f"A message between 2 processes of one machine, {os.cpu_count()} cores: median and quartiles")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def kernels(report: Report, seconds: float) -> None:
    """What MMD costs by its number of rows, for the model of `scaling.py`."""
    width, rows = 512, (32, 64, 128, 256, 512, 1024)
    with Group(1) as alone:

        def call(n: int) -> float:
            return 1e3 * statistics.median(alone.ask("coupled", rows=n, width=width, times=3)[0])

        found = turns(seconds, {str(n): functools.partial(call, n) for n in rows})
    base = found[str(rows[0])]
    report.say(f"MMD, value and gradient, compiled, 1 thread, {width} features: ratio to {rows[0]} rows of each domain")
    lines = [[n, ratio(t, base), f"{statistics.median(t):.3f}"] for n, t in found.items()]
    report.table(("rows", "ratio (quartiles)", "(ms)"), lines)


def each(part: Callable[[Report, str, float], None], report: Report, cases: Sequence[str], seconds: float) -> None:
    for case in cases:
        part(report, case, seconds)


def has(backend: str) -> bool:
    """Whether a backend can be had here."""
    import ttransfer as tt
    from ttransfer.dist._init import _find

    try:
        _find(backend)
    except tt.TransferError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--picture", type=Path, default=Path("runs/dist_messages.png"), help="gloo against oneCCL")
    every = ["messages", "threads", "ddp", "bytes", "memory", "kernels"]
    parser.add_argument(
        "--parts", nargs="*", default=every, help="measure these alone, and keep the others' old numbers"
    )
    parser.add_argument("--quick", action="store_true", help="the small network, short, as a trial")
    given = parser.parse_args()
    private = in_private()
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    report, cases = Report(), ["cnn"] if given.quick else list(ROWS)
    worlds = WORLDS[:1] if given.quick else WORLDS
    backends = [backend for backend in ("gloo", "ccl") if has(backend)]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        report.say(
            f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, the loopback "
            f"interface, gloo unless said, load {os.getloadavg()[0]:.1f}; ratios are medians over rounds of turns"
        )
        short, long = (1, 3) if given.quick else (4, 45)
        parts: dict[str, tuple[str, Callable[[], None]]] = {
            "messages": ("Messages", lambda: messages(report, backends, short, given.picture)),
            "threads": ("Ranks or threads", lambda: each(threads, report, cases, long)),
            "ddp": ("Ours and DDP, 2 ranks x 1 thread", lambda: each(against_ddp, report, cases, long)),
            "bytes": ("Bytes of a step", lambda: bytes_sent(report, private, worlds)),
            "memory": ("Memory with and without ZeRO-1", lambda: memory(report, [w for w in worlds if w != 3])),
            "kernels": ("A coupled term", lambda: kernels(report, long / 3)),
        }
        found: dict[str, str] = {}
        for name in given.parts:
            title, measure = parts[name]
            begin, began = len(report.lines), time.perf_counter()
            report.say(f"== {title} (load {os.getloadavg()[0]:.1f}) ==\n")
            measure()
            report.say(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
            found[title] = "\n".join(report.lines[begin:]) + "\n"
    if given.output:
        titles = [title for title, _ in parts.values()]
        given.output.write_text(renewed(given.output, report.lines[0], titles, found))


def renewed(path: Path, head: str, titles: Sequence[str], found: Mapping[str, str]) -> str:
    """The report with the parts that were measured, and its old ones for those that were not."""
    old = path.read_text() if path.exists() else ""
    kept = {
        title: each for each in re.split(r"^(?=== )", old, flags=re.MULTILINE) for title in titles
        if each.startswith(f"== {title} (")
    }  # fmt: skip
    known = {**{title: each.rstrip() + "\n" for title, each in kept.items()}, **found}
    return head + "\n\n" + "\n".join(known[title] for title in titles if title in known)


if __name__ == "__main__":
    main()
