"""Our losses against the peers' own code: forward and backward, interleaved in one run, eager and compiled.

Each pair is first checked to compute the same in float64, up to a factor that is stated. Compiled means inductor; a
peer may break its graph, ours may not, and one that does not compile at all is timed as it is. Run with
``make bench-losses``, which needs the extra called oracles.
"""

from __future__ import annotations

import argparse
import os
import platform
import runpy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _loss_pairs import PAIRS, Loss, Pair
from _measure import Times, interleaved
from step import Report
from torch import Tensor

EXEMPT = ("losses.kd", "losses.fitnet", "losses.logit_mse")  # a line of torch each
PLACE = Path(__file__).parents[1] / "ttransfer" / "cli" / "_speeds.py"


def inputs(pair: Pair, dtype: torch.dtype) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    first, *others = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in pair.shapes)
    return [first.requires_grad_(), *others]


def gradient(loss: Loss, xs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Forward and backward, as any loop does it."""
    value = loss(xs[0].clone(), *xs[1:])  # some peers write on what they get
    return value.detach(), torch.autograd.grad(value, xs[0])[0]


def apart(pair: Pair, peer: Loss) -> float:
    """How far value and gradient are from the peer's, relative to their size, in float64."""
    xs = inputs(pair, torch.float64)
    pairs = zip(gradient(pair.ours, xs), gradient(peer, xs), strict=True)
    return max(((a - pair.factor * b).norm() / a.norm()).item() for a, b in pairs)


def call(loss: Loss, pair: Pair) -> Callable[[], object]:
    xs = inputs(pair, torch.float32)
    return lambda: gradient(loss, xs)


def speeds(pair: Pair, seconds: float, compiled: bool) -> dict[str, Times]:
    """Time both, eager, and compiled if asked."""
    peer = pair.make()
    calls = {"ours": call(pair.ours, pair), "peer": call(peer, pair)}
    if compiled:
        torch.compiler.reset()
        calls["ours, compiled"] = call(torch.compile(pair.ours, fullgraph=True), pair)
        calls["peer, compiled"] = call(peer if pair.loops else torch.compile(peer), pair)
        try:
            for _ in range(2):  # one that keeps something of its graph fails the second time
                calls["peer, compiled"]()
        except Exception as error:  # whatever a compiler raises: the peer is then what it is without one
            print(f"{pair.name}: the peer does not compile: {str(error).splitlines()[0][:100]}", flush=True)
            torch.compiler.reset()
            calls["peer, compiled"] = calls["peer"]
    return interleaved(calls, seconds)


def geometric(ratios: list[float]) -> float:
    return statistics.geometric_mean(ratios) if ratios else float("nan")


def main(pairs: Sequence[Pair], what: str) -> None:
    """Time pairs, and report.

    Args:
        pairs: what to time.
        what: the program, in words.
    """
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--only", nargs="*", default=[], help="names such as rkd")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--write", action="store_true", help="write the ratios to where `ttransfer losses` reads them")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = [pair for pair in pairs if not given.only or pair.name.split(".")[1] in given.only]
    report, began, found = Report(), time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        report.say(
            f"torch {torch.__version__}, Python {platform.python_version()}, 1 thread, float32, load "
            f"{os.getloadavg()[0]:.1f}; medians over rounds of the ratio in a round: a peer's time by ours\n"
        )
        rows: list[list[str]] = []
        for pair in chosen:
            gap = apart(pair, pair.make())
            times = speeds(pair, 3.0, not given.eager)
            eager = times["peer"].ratio(times["ours"])
            fast = eager if given.eager else times["peer, compiled"].ratio(times["ours, compiled"])
            found[pair.name, pair.peer] = (eager, fast)
            exempt = " (exempt)" if pair.name in EXEMPT else ""
            rows.append([
                pair.name + exempt, pair.peer, "x".join(map(str, pair.shapes[0])), f"{eager:.2f}", f"{fast:.2f}",
                f"{times['ours'].ms():.3f}", f"{gap:.0e}",
            ])  # fmt: skip
            print(rows[-1], flush=True)
        report.table(("loss", "peer", "shape", "eager", "compiled", "ours (ms)", "apart, float64"), rows)
        counted = [ratios for (name, _), ratios in found.items() if name not in EXEMPT]
        means = [geometric([each[i] for each in counted]) for i in range(2)]
        report.say(f"geometric mean: {means[0]:.2f} eager, {means[1]:.2f} compiled")
        report.say(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
    if given.output:
        given.output.write_text("\n".join(report.lines) + "\n")
    if given.write:
        # What another program measured stays.
        written = runpy.run_path(str(PLACE))["SPEEDS"]
        known = {key: ratios for key, ratios in written.items() if key[0] not in {pair.name for pair in pairs}}
        text = PLACE.read_text()
        lines = "".join(
            f'    ("{n}", "{p}"): ({e:.3g}, {c:.3g}),\n' for (n, p), (e, c) in sorted({**known, **found}.items())
        )
        PLACE.write_text(text[: text.index("= {")] + "= {\n" + lines + "}\n")


if __name__ == "__main__":
    main(PAIRS, __doc__ or "")
