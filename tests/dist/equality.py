"""What torchrun runs: every kind of term, sharded over real processes, beside the step of one process.

The first rank prints a line of JSON for each case: how far the worst rank is from one process after two steps.

    torchrun --standalone --nproc-per-node 2 -m tests.dist.equality gloo --modes eager compiled --terms kd mmd
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import torch.distributed as dist

import ttransfer as tt
from tests.dist.cases import TERMS, everything, nets
from tests.support.compare import worst
from tests.support.nets import conv, images, vectors
from tests.support.sharded import alone, part
from tests.support.steps import small_step
from ttransfer.core._transforms import outside_of

WHOLE = ("all terms, batch normalisation, dropout, AdamW", "all terms, ZeRO-1, clipped", "all terms, two members")


def cuts(size: int) -> dict[str, list[int]]:
    """Rows by rank, as uneven as they come: the first rank has what is left over."""
    return {domain: [0, *(n - size + i + 1 for i in range(size))] for domain, n in (("source", 6), ("target", 4))}


def case(name: str) -> tuple[tt.Step, Any, dict[str, Any]]:
    """A step, its batches, and the options of `tt.shard`."""
    if name in TERMS:
        step = small_step({"term": TERMS[name]()}, nets(), tt.optim.sgd(0.1, momentum=0.9))
        return step, [vectors(seed) for seed in range(2)], {}
    batches = [images(seed) for seed in range(2)]
    if name == WHOLE[0]:
        return everything(nets(conv)), batches, {}
    if name == WHOLE[1]:
        optimizer = tt.optim.chain(tt.optim.clip_by_norm(0.1), tt.optim.adam(1e-2))
        step = tt.replace(everything(nets()), optimizer=optimizer)
        return step, [vectors(seed) for seed in range(2)], {"optimizer": "sharded"}
    return tt.ensemble(everything(nets()), 2), [vectors(seed) for seed in range(2)], {}


def gap(name: str, mode: str, mesh: Any) -> float:
    """How far this rank is from one process."""
    step, batches, options = case(name)
    wanted = alone(step, batches)
    sharded = tt.shard(step, mesh, **options)
    outside = outside_of(sharded.spec.transforms)
    assert outside is not None
    if mode != "eager":
        sharded = tt.compile(sharded, backend={"compiled": "aot_eager"}.get(mode, mode))
    rank, where = dist.get_rank(), cuts(dist.get_world_size())
    state, apart = sharded.init(part(batches[0], rank, where)), 0.0
    for batch, one in zip(batches, wanted, strict=True):
        state, logs = sharded(state, part(batch, rank, where))
        apart = max(apart, worst((outside.whole(state), logs), one))
    return apart


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend")
    parser.add_argument("--modes", nargs="+", default=["eager"])
    parser.add_argument("--terms", nargs="+", default=[*TERMS, *WHOLE])
    told = parser.parse_args()
    torch.set_num_threads(1)
    mesh = tt.dist.init(told.backend, timeout=300)
    for name in told.terms:
        for mode in told.modes:
            found = torch.tensor(gap(name, mode, mesh), dtype=torch.float64)
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
            if dist.get_rank() == 0:
                print(json.dumps([name, mode, found.item()]), flush=True)
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
