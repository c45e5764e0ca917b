"""The loss of one process, and of two that hold half of each batch, over the same run: the curves are one.

MNIST to UCI digits as in `mnist_to_digits.py`, with MMD, DANN and batch normalisation: all three need the rows of both
processes. Two processes add in another order than one does, so their numbers differ by rounding. How much that may be
is shown by runs of one process whose batches have their rows shuffled: the same mathematics, in another order too. In
float32 such a run stays within some units of rounding until, somewhere, another pixel is the maximum of a pool.

    python examples/sharded_curves.py --output docs/sharded_curves.png

runs everything, by starting itself under torchrun where two processes are wanted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from mnist_to_digits import BATCH, CRITIC_WEIGHT, FEATURES, load, network, source_only
from torch import Tensor

import ttransfer as tt

SHUFFLES = 5
ALONE, SHUFFLED = "one process", f"one process, rows shuffled ({SHUFFLES} runs)"
BACKENDS = {"2 processes, gloo": "gloo", "2 processes, oneCCL": "ccl"}
STYLES: dict[str, dict[str, Any]] = {
    ALONE: {"color": "0.8", "linewidth": 9},
    SHUFFLED: {"color": "0.5", "linewidth": 5},
    "2 processes, gloo": {"color": "C0", "linewidth": 2.5},
    "2 processes, oneCCL": {"color": "C1", "linewidth": 2.5, "linestyle": (0, (2, 2))},
}
DTYPES = ("float64", "float32")

Batches = Iterable[dict[str, dict[str, Tensor]]]


def step_of(steps: int, dtype: torch.dtype) -> tt.Step:
    """Cross-entropy, MMD and DANN, as the demo has them."""
    source, target = f"net(source).{FEATURES}", f"net(target).{FEATURES}"
    ramp = tt.schedules.ramp(steps)
    return tt.replace(
        source_only(steps),
        nets={"net": tt.functional(lambda: network().to(dtype))},
        mmd=tt.term(tt.align.mmd, source, target),
        dann=tt.terms.dann(source, target, critic=tt.adapters.mlp(64), scale=ramp, weight=CRITIC_WEIGHT),
    )


def batches_of(dtype: torch.dtype) -> Any:
    data = load()
    return tt.domains(
        source=tt.loader({**data.source, "x": data.source["x"].to(dtype)}, batch_size=BATCH, last="drop"),
        target=tt.loader({"x": data.target["x"].to(dtype)}, batch_size=BATCH, last="drop"),
        seed=0,
    )


def shuffled(batches: Batches, seed: int) -> Iterator[dict[str, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        order = torch.randperm(BATCH, generator=generator)
        yield {domain: {field: x[order] for field, x in fields.items()} for domain, fields in batch.items()}


def losses(steps: int, dtype: torch.dtype, mesh: Any, shuffle: int | None = None) -> list[float]:
    """Train; return the loss of each step."""
    step, batches = step_of(steps, dtype), batches_of(dtype)
    state = step.init(next(iter(batches_of(dtype))))
    if shuffle is not None:
        batches = shuffled(batches, shuffle)
    if mesh.size() > 1:
        step, batches = tt.shard(step, mesh), tt.dist.sliced(batches, mesh)
    return [row["loss"] for row in tt.fit(step, state, batches, steps=steps, log_every=1, progress=False).history]


def on_two(backend: str, steps: int, dtype: str) -> list[float]:
    """Start this program twice under torchrun, and read what the first of the two wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "losses.json"
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        subprocess.run(
            [*run, "--steps", str(steps), "--backend", backend, "--dtype", dtype, "--losses", str(path)], check=True
        )
        return json.loads(path.read_text())


def draw(curves: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    """Draw the curves over each other, and how far each is from that of one process."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, 2, figsize=(12, 7), layout="constrained", sharex=True, sharey="row", height_ratios=(3, 2)
    )
    for (upper, lower), dtype in zip(axes.T, curves, strict=True):
        alone = torch.tensor(curves[dtype][ALONE][0], dtype=torch.float64)
        at = torch.arange(1, len(alone) + 1)
        for name, runs in curves[dtype].items():
            upper.plot(at, runs[0], label=name, **STYLES[name])
            for found in runs if name != ALONE else []:
                gap = (torch.tensor(found, dtype=torch.float64) - alone).abs()
                style = {"linewidth": 0.7} if name == SHUFFLED else {"linewidth": 1.5, "marker": ".", "markersize": 3}
                style |= {k: v for k, v in STYLES[name].items() if k != "linewidth"}
                lower.plot(at[gap > 0], gap[gap > 0], **style)
        unit = torch.finfo(getattr(torch, dtype)).eps
        lower.axhline(unit, color="k", linestyle=":", linewidth=1)
        lower.annotate(f"unit of rounding, {unit:.0e}", (1, unit), (0, -4), textcoords="offset points", va="top")
        lower.set(yscale="log", xlabel="step", ylim=(1e-17, 1e-2))
        upper.set(title=dtype)
        upper.grid(alpha=0.3)
        lower.grid(alpha=0.3)
    axes[0, 0].set(ylabel="loss")
    axes[1, 0].set(ylabel="difference from\none process")
    axes[0, 0].legend(loc="upper right", handlelength=3)
    figure.suptitle("MNIST to UCI digits with MMD and DANN: one process, and two with half of each batch")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="updates of each run (100)")
    parser.add_argument("--output", type=Path, default=Path("runs/sharded_curves.png"), help="the picture")
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS.values()), help="gloo, ccl (both)")
    parser.add_argument("--losses", type=Path, help="one run, whose losses go to this file; for use under torchrun")
    parser.add_argument("--backend", default="gloo", help="of that run")
    parser.add_argument("--dtype", default="float64", help="of that run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    mesh = tt.dist.init(given.backend if given.losses else "gloo")
    if given.losses:
        found = losses(given.steps, getattr(torch, given.dtype), mesh)
        if mesh.get_rank() == 0:
            given.losses.write_text(json.dumps(found))
        return
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        own = curves[name] = {
            ALONE: [losses(given.steps, dtype, mesh)],
            SHUFFLED: [losses(given.steps, dtype, mesh, seed) for seed in range(SHUFFLES)],
        }
        for label, backend in BACKENDS.items():
            if backend in given.backends:
                own[label] = [on_two(backend, given.steps, name)]
        print(f"{name}, {given.steps} steps: largest difference of a loss from that of one process")
        for label, runs in own.items():
            gaps = [max(abs(a - b) for a, b in zip(found, own[ALONE][0], strict=True)) for found in runs]
            if label != ALONE:
                print(f"  {label:<40}" + "".join(f"{gap:9.1e}" for gap in gaps), flush=True)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, given.output)
    print(f"written: {given.output}")


if __name__ == "__main__":
    main()
