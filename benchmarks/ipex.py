"""Our step with inductor and with IPEX, and a loop over modules as Intel documents it, on torch 2.8.

One training, cross-entropy and distillation with SGD, of a convolutional and of a vision transformer from
timm; in float32 and in bfloat16; convolutions as they come and channels-last. All are timed interleaved, in one
process. Run with ``make bench-ipex``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import intel_extension_for_pytorch as ipex
import timm
import torch
from _measure import interleaved
from step import Report
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from ttransfer.run._inductor import has_halves, inductor_options
from ttransfer_ext.ipex import restore_gradients

ROWS, SIZE, CLASSES = 16, 64, 10
RATE, MOMENTUM, TEMPERATURE, WEIGHT = 0.05, 0.9, 4.0, 0.5
STEPS = 3  # that are compared
LAST = ", channels-last"
LOOP, OPTIMIZED, PREPACKED = "loop", "loop, ipex.optimize", "loop, ipex.optimize, prepacked"
EAGER, INDUCTOR, IPEX = "ours, eager kernels", "ours, inductor", "ours, ipex"
CONTESTANTS = (
    LOOP,
    LOOP + LAST,
    OPTIMIZED,
    OPTIMIZED + LAST,
    PREPACKED,
    PREPACKED + LAST,
    EAGER,
    INDUCTOR,
    INDUCTOR + LAST,
    IPEX,
    IPEX + LAST,
)
CLOSE = {None: 1e-4, "bfloat16": 3e-2}  # of the losses, relative


class Net(NamedTuple):
    """A student and a teacher of one architecture, and who steps them."""

    name: str
    options: dict[str, Any]
    contestants: tuple[str, ...]

    def make(self, seed: int) -> nn.Module:
        """Draw it."""
        torch.manual_seed(seed)
        return timm.create_model(self.name, num_classes=CLASSES, **self.options)


NETS = (
    Net("resnet10t", {}, CONTESTANTS),
    # Its one convolution cuts patches: a layout changes nothing, and each graph takes a while to compile.
    Net(
        "vit_tiny_patch16_224",
        {"img_size": SIZE, "patch_size": 8, "depth": 3},
        tuple(name for name in CONTESTANTS if LAST not in name),
    ),
)


def batch() -> dict[str, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 3, SIZE, SIZE, generator=g)
    return {"source": {"x": x, "y": torch.randint(CLASSES, (ROWS,), generator=g)}}


def loop(net: Net, name: str, precision: str | None) -> Callable[[], Tensor]:
    """A step of the loop that a user would write, which IPEX may optimize."""
    student, teacher = net.make(1).train(), net.make(2).eval().requires_grad_(False)
    data = batch()["source"]
    x, y = data["x"], data["y"]
    if LAST in name:
        student, teacher = (module.to(memory_format=torch.channels_last) for module in (student, teacher))
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(student.parameters(), RATE, MOMENTUM)
    if name.startswith(OPTIMIZED):
        # IPEX would convert convolutions by itself.
        (ipex.enable_auto_channels_last if LAST in name else ipex.disable_auto_channels_last)()
        dtype = torch.bfloat16 if precision else torch.float32
        options = {"dtype": dtype, "weights_prepack": name.startswith(PREPACKED)}
        student, optimizer = ipex.optimize(student, optimizer=optimizer, **options)
        teacher = ipex.optimize(teacher, **options)
    low = torch.autocast("cpu", torch.bfloat16) if precision else contextlib.nullcontext()

    def call() -> Tensor:
        with low:
            with torch.no_grad():
                taught = teacher(x)
            logits = student(x)
        logits, taught = logits.float(), taught.float()
        t = TEMPERATURE
        kd = t**2 * F.kl_div(F.log_softmax(logits / t, 1), F.softmax(taught / t, 1), reduction="batchmean")
        loss = F.cross_entropy(logits, y) + WEIGHT * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def ours(net: Net, name: str, precision: str | None) -> Callable[[], Tensor]:
    """A step of ours, compiled."""
    step = tt.step(
        {"student": tt.functional(net.make(1)), "teacher": tt.functional(net.make(2))},
        tt.optim.sgd(RATE, momentum=MOMENTUM),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=TEMPERATURE, weight=WEIGHT),
    )
    backend = {EAGER: "aot_eager", INDUCTOR: "inductor", IPEX: "ipex"}.get(name, name)
    step = tt.compile(step, backend=backend, donate=True, precision=precision)
    data = batch()
    held = [step.init(data)]

    def call() -> Tensor:
        held[0], logs = step(held[0], data)
        return logs["loss"].clone()

    return call


def channels_last(backend: str) -> Callable[..., Any]:
    """The backend with inductor's rewriting of convolutions, which `tt.compile` turns off."""

    def compiled(graph: torch.fx.GraphModule, inputs: list[Tensor], **_: Any) -> Callable[..., Any]:
        from torch._inductor import config

        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        settings = {**inductor_options(torch.device("cpu"), has_halves(values)), "layout_optimization": True}
        with (
            config.patch(settings),
            torch.compiler.config.patch(cache_key_tag=f"benchmark-{backend}"),
        ):
            return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return compiled


def generated(known: set[str]) -> list[str]:
    """What inductor has written since, less what differs between two runs that write the same."""
    from torch._inductor.codecache import PyCodeCache

    files = {module.__file__ or "" for module in PyCodeCache.modules} - known
    known |= files
    return sorted(re.sub(r"# (AOT ID|Topologically).*|/\S+/\w+\.py", "", Path(file).read_text()) for file in files)


def measure(report: Report, net: Net, precision: str | None, seconds: float) -> None:
    plain = loop(net, LOOP, None)
    wanted = [plain().item() for _ in range(STEPS)]
    calls, code, rows = {}, {}, {}
    known: set[str] = set()
    generated(known)
    for name in net.contestants:
        call = (loop if name.startswith(LOOP) else ours)(net, name, precision)
        began = time.perf_counter()
        losses = [call().item()]
        took = time.perf_counter() - began
        losses += [call().item() for _ in range(STEPS - 1)]
        apart = max(abs(a / b - 1) for a, b in zip(losses, wanted, strict=True))
        if not apart < CLOSE[precision]:
            shown = ", ".join(f"{x:.4f}" for x in losses)
            report.say(f"  {name} does not compute the same in {precision or 'float32'}: losses {shown}")
        calls[name], code[name], rows[name] = call, generated(known), (took, apart)
    times = interleaved(calls, seconds)
    base = times[LOOP]
    report.say(f"== {net.name}, {precision or 'float32'}: {len(base.wall)} rounds ==\n")
    table = [
        [
            name,
            f"{t.ratio(base):.3f}",
            f"{t.cpu_ratio(base):.3f}",
            f"{t.ms():.2f}",
            f"{rows[name][0]:.1f}",
            f"{rows[name][1]:.1e}",
        ]
        for name, t in times.items()
    ]
    report.table(("", "ratio", "of CPU time", "(ms)", "first step (s)", "losses apart"), table)
    for a, b in ((IPEX, INDUCTOR), (IPEX + LAST, INDUCTOR + LAST)):
        if a not in net.contestants:
            continue
        same = "the same" if code[a] == code[b] else "not the same"
        report.say(f"  {a} to {b}: {times[a].ratio(times[b]):.3f}; the generated code is {same}")
    right = [name for name in times if rows[name][1] < CLOSE[precision]]
    report.say(f"  fastest of what computes the same: {min(right, key=lambda name: times[name].ratio(base))}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--cache", type=Path, help="keep compiled code here, for another run to begin with")
    parser.add_argument("--precisions", nargs="*", default=["float32", "bfloat16"], help="measure these alone")
    parser.add_argument("--seconds", type=float, default=40, help="of interleaved rounds for each table (40)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    restore_gradients()
    for name, backend in ((INDUCTOR, "inductor"), (IPEX, "ipex")):
        torch._dynamo.register_backend(channels_last(backend), name=name + LAST)
    report = Report()
    report.say(
        f"torch {torch.__version__}, IPEX {ipex.__version__}, timm {timm.__version__}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, 1 thread, AMX "
        f"{'yes' if torch.cpu._is_amx_tile_supported() else 'no'}, load {os.getloadavg()[0]:.1f}; {ROWS} images of "
        f"3x{SIZE}x{SIZE}; ratio: median over rounds, to the loop in the same round and precision\n"
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(given.cache or scratch)
        for net in NETS:
            for precision in given.precisions:
                measure(report, net, None if precision == "float32" else precision, given.seconds)
                torch._dynamo.reset()
    report.say(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
    if given.output:
        given.output.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
