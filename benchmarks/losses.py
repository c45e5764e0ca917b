"""Our losses against the peers' own code: forward and backward, interleaved in one run, eager and compiled.

Each pair is first checked to compute the same in float64, up to a factor that is stated. Compiled means inductor; a
peer may break its graph, ours may not. Run with ``make bench-losses``, which needs the extra called oracles.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _measure import Times, interleaved
from step import Report
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt

Loss = Callable[..., Tensor]
EXEMPT = ("losses.kd", "losses.fitnet", "losses.logit_mse")  # a line of torch each
SPEEDS = Path(__file__).parents[1] / "ttransfer" / "cli" / "_speeds.py"
TORCHDISTILL, ZHIJIAN, MODELOPT = "torchdistill", "zhijian", "modelopt"


class Pair(NamedTuple):
    """A loss of ours and a peer's.

    Attributes:
        name: of ours.
        ours: it.
        peer: the package.
        make: -> the peer's, called with the same tensors.
        shapes: of the tensors; the first gets a gradient.
        factor: ours by the peer's value.
    """

    name: str
    ours: Loss
    peer: str
    make: Callable[[], Loss]
    shapes: tuple[tuple[int, ...], ...]
    factor: float = 1.0


def made(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Make a peer's loss."""
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def tapped(name: str, *args: Any, **kwargs: Any) -> Loss:
    """A loss of torchdistill, which reads what hooks saw at a path, here called x."""
    loss = made("torchdistill.losses.mid_level", name, *args, **kwargs)
    return lambda s, t: loss({"x": {"output": s}}, {"x": {"output": t}})


def zhijian(module: str, name: str, *args: Any, **kwargs: Any) -> Loss:
    return made(f"zhijian.models.kd.loss.{module}", name, *args, **kwargs)


ONE = {"pair": {side: {"io": "output", "path": "x"} for side in ("student", "teacher")}}
ENDS = ("x", "output", "x", "output")
BY_MODULE = {
    f"{side}_module_{end}": value for side in ("student", "teacher") for end, value in (("path", "x"), ("io", "output"))
}
LOGITS, FEATURES, MAPS = ((128, 1000),) * 2, ((64, 512),) * 2, ((32, 64, 16, 16),) * 2
losses, partial = tt.losses, functools.partial


def hcl() -> Loss:
    loss = made("torchdistill.losses.mid_level", "HierarchicalContextLoss", *ENDS)
    return lambda s, t: loss({"x": {"output": (s, None)}}, {"x": {"output": t}})


def irg() -> Loss:
    loss = zhijian("irg", "IRG", 0.0, 1.0, 0.0)
    return lambda s, t: loss(*([x[:, :, None, None], x[:, :, None, None], x, x[:, :1]] for x in (s, t)))


def vid() -> Loss:
    loss = made("torchdistill.losses.mid_level", "VIDLoss", ONE)
    return lambda m, t, v: loss({"x": {"output": (m, v.abs()[:, None, None])}}, {"x": {"output": t}})


def bss() -> Loss:
    return made("zhijian.models.regularization.loss.bss", "BSS", 1)


PAIRS = (
    Pair(
        "losses.kd",
        losses.kd,
        MODELOPT,
        lambda: made("modelopt.torch.distill", "LogitsDistillationLoss", 4.0, "batchmean"),
        LOGITS,
    ),
    Pair("losses.logit_mse", losses.logit_mse, "torch", lambda: F.mse_loss, LOGITS),
    Pair(
        "losses.dist",
        losses.dist,
        TORCHDISTILL,
        lambda: tapped("DISTLoss", **BY_MODULE, beta=1.0, gamma=1.0, tau=1.0),
        LOGITS,
    ),
    # Without labels it drops T².
    Pair(
        "losses.standardized_kd",
        losses.standardized_kd,
        TORCHDISTILL,
        lambda: tapped("LogitStdKDLoss", **BY_MODULE, temperature=2, alpha=0.0),
        LOGITS,
        4.0,
    ),
    Pair("losses.fitnet", losses.fitnet, ZHIJIAN, lambda: zhijian("fitnet", "Hint"), MAPS),
    Pair(
        "losses.at", partial(losses.at, variant="code"), TORCHDISTILL, lambda: tapped("ATLoss", ONE, mode="code"), MAPS
    ),
    Pair("losses.nst", losses.nst, ZHIJIAN, lambda: zhijian("nst", "NST"), MAPS),
    Pair("losses.ab", losses.ab, TORCHDISTILL, lambda: tapped("AltActTransferLoss", ONE, 1.0, "mean"), MAPS),
    Pair("losses.hcl", losses.hcl, TORCHDISTILL, hcl, MAPS),
    # It divides by the number of rows once more.
    Pair(
        "losses.ickd", partial(losses.ickd, variant="code"), TORCHDISTILL, lambda: tapped("ChSimLoss", ONE), MAPS, 32.0
    ),
    Pair(
        "losses.affinity",
        partial(losses.affinity, variant="code"),
        TORCHDISTILL,
        lambda: tapped("AffinityLoss", "x", "x"),
        ((8, 32, 14, 14),) * 2,
    ),
    Pair("losses.ft", losses.ft, ZHIJIAN, lambda: zhijian("ft", "FT"), MAPS),
    Pair("losses.vid", lambda m, t, v: losses.vid(m, t, v.abs()), TORCHDISTILL, vid, (*MAPS, (64,))),
    Pair("losses.sp", losses.sp, ZHIJIAN, lambda: zhijian("sp", "SP"), FEATURES),
    Pair("losses.pkt", partial(losses.pkt, variant="code"), TORCHDISTILL, lambda: tapped("PKTLoss", *ENDS), FEATURES),
    Pair("losses.rkd", losses.rkd, TORCHDISTILL, lambda: tapped("RKDLoss", "x", "x", 25.0, 50.0, "mean"), FEATURES),
    Pair("losses.cc", losses.cc, ZHIJIAN, lambda: zhijian("cc", "CC", gamma=0.4, P_order=2), FEATURES),
    Pair(
        "losses.skd_instance",
        losses.skd_instance,
        TORCHDISTILL,
        lambda: tapped("SKDInstanceLoss", *ENDS, mode="paper"),
        FEATURES,
    ),
    Pair("losses.irg", losses.irg, ZHIJIAN, irg, FEATURES),
    Pair("losses.bss", losses.bss, ZHIJIAN, bss, ((32, 512),)),
)


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
        calls["peer, compiled"] = call(torch.compile(peer), pair)
    return interleaved(calls, seconds)


def geometric(ratios: list[float]) -> float:
    return statistics.geometric_mean(ratios) if ratios else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--only", nargs="*", default=[], help="names such as rkd")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--write", action="store_true", help="write the ratios to where `ttransfer losses` reads them")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = [pair for pair in PAIRS if not given.only or pair.name.split(".")[1] in given.only]
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
            found[pair.name] = (pair.peer, eager, fast)
            exempt = " (exempt)" if pair.name in EXEMPT else ""
            rows.append([
                pair.name + exempt, pair.peer, "x".join(map(str, pair.shapes[0])), f"{eager:.2f}", f"{fast:.2f}",
                f"{times['ours'].ms():.3f}", f"{gap:.0e}",
            ])  # fmt: skip
            print(rows[-1], flush=True)
        report.table(("loss", "peer", "shape", "eager", "compiled", "ours (ms)", "apart, float64"), rows)
        counted = [ratios for name, (_, *ratios) in found.items() if name not in EXEMPT]
        means = [geometric([each[i] for each in counted]) for i in range(2)]
        report.say(f"geometric mean: {means[0]:.2f} eager, {means[1]:.2f} compiled")
        report.say(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
    if given.output:
        given.output.write_text("\n".join(report.lines) + "\n")
    if given.write:
        text = SPEEDS.read_text()
        lines = "".join(f'    "{n}": ("{p}", {e:.3g}, {c:.3g}),\n' for n, (p, e, c) in sorted(found.items()))
        SPEEDS.write_text(text[: text.index("= {")] + "= {\n" + lines + "}\n")


if __name__ == "__main__":
    main()
