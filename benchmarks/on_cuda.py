"""The same step on a CUDA device: equal numbers in every mode, one graph. For where there is one.

python benchmarks/on_cuda.py --output benchmarks/on_cuda.txt
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import conv, images
from ttransfer.core import _tree as tree


def moved(values: Any, device: str) -> Any:
    return tree.map(lambda x: x.to(device), values)


def expression(student: nn.Module, teacher: nn.Module, **options: Any) -> tt.Step:
    """Cross-entropy, distillation and two kinds of alignment, with batch normalisation, dropout and a schedule."""
    ramp = tt.schedules.ramp(100)
    features = "student(source).fc:in", "student(target).fc:in"
    return tt.step(
        {"student": tt.functional(student), "teacher": tt.functional(teacher)},
        tt.optim.adamw(tt.schedules.cosine(1e-2, 100)),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", weight=0.5),
        mmd=tt.term(tt.align.mmd, *features, weight=ramp),
        dann=tt.terms.dann(*features, critic=tt.adapters.mlp(16), scale=ramp, weight=0.1),
        **options,
    )


def steps(step: tt.Step, state: tt.State, batches: Any) -> tuple[tt.State, Any]:
    logs = {}
    for batch in batches:
        state, logs = step(state, batch)
    return state, logs


def equalities() -> Iterator[str]:
    """How far a run on the device is from that on the CPU, in float64, in every mode."""
    batches = [images(seed) for seed in range(5)]
    there = [moved(batch, "cuda") for batch in batches]
    plain = expression(conv(1, p=0.3), conv(2), ema={"mean": tt.ema("student", 0.9)})
    on = expression(conv(1, p=0.3).cuda(), conv(2).cuda(), ema={"mean": tt.ema("student", 0.9)})
    first = plain.init(batches[0])
    assert {x.device.type for x in tree.leaves(on.init(there[0]))} == {"cuda"}
    wanted = steps(plain, first, batches)

    def apart(step: tt.Step, start: tt.State, wanted: Any) -> str:
        return f"{worst(moved(steps(step, moved(start, 'cuda'), there), 'cpu'), wanted):.1e}"

    yield f"eager: {apart(on, first, wanted)}"
    for backend in ("aot_eager", "inductor"):
        for donate in (False, True):
            before = counters["stats"]["unique_graphs"]
            gap = apart(tt.compile(on, backend=backend, donate=donate), first, wanted)
            graphs = counters["stats"]["unique_graphs"] - before
            yield f"{backend}{', donated' * donate}: {gap}, graphs: {graphs}"
    both = tt.ensemble(plain, 3), tt.ensemble(on, 3)
    start = both[0].init(batches[0])
    yield f"three members, inductor: {apart(tt.compile(both[1]), start, steps(both[0], start, batches))}"
    with tempfile.TemporaryDirectory() as folder:
        state, _ = steps(on, moved(first, "cuda"), there[:2])
        loaded, _ = tt.load(tt.save(f"{folder}/a", state), first)
        yield f"saved there, gone on here: {worst(steps(plain, loaded, batches[2:]), wanted):.1e}"
    mesh = tt.dist.init("nccl")
    sharded = tt.shard(on, mesh)
    yield f"sharded over one rank by nccl, eager: {apart(sharded, first, wanted)}"
    # Not every torch can trace synced normalisation; over one rank it is the same as local.
    sharded = tt.shard(on, mesh, batchnorm="local")
    yield f"sharded over one rank by nccl, inductor: {apart(tt.compile(sharded), first, wanted)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path)
    told = parser.parse_args()
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
        "",
        "Largest absolute difference of 5 steps in float64 from the CPU's eager run:",
        "parameters, buffers, optimizer, logs",
    ]
    print("\n".join(lines), flush=True)
    for line in equalities():
        lines.append(line)
        print(line, flush=True)
    if told.output is not None:
        told.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
