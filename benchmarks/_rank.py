"""One rank: joins its group, then does what it reads on its input, a line of JSON each, and answers with one.

python benchmarks/_rank.py BACKEND, with the environment that torchrun sets.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _child import status
from _group import trim
from _sharded import Contestant, contestant, values
from torch import Tensor

import ttransfer as tt
from ttransfer.core import _tree as tree

_mesh: list[Any] = []
_made: dict[str, Contestant] = {}


def hello() -> int:
    return os.getpid()


def message(operation: str, size: int, times: int) -> list[float]:
    """Exchange float32 tensors; return the seconds that each exchange took.

    Args:
        operation: all_reduce, of `size` bytes on each rank, or all_gather, of `size` bytes from each.
        size: bytes.
        times: how often.
    """
    world = dist.get_world_size()
    own = torch.zeros(size // 4)
    out = torch.empty(world * own.numel())

    def exchange() -> None:
        if operation == "all_reduce":
            dist.all_reduce(own)
        else:
            dist.all_gather_into_tensor(out, own)

    dist.barrier()
    exchange()
    found: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        exchange()
        found.append(time.perf_counter() - began)
    return found


def make(name: str, **how: Any) -> float:
    """Build a contestant and take its first steps, which compile it; return the seconds these took."""
    began = time.perf_counter()
    _made[name] = contestant(_mesh[0], name, **how)
    for _ in range(3):
        _made[name].advance()
    return time.perf_counter() - began


def forget(name: str) -> None:
    del _made[name]
    gc.collect()


def steps(name: str, times: int) -> tuple[float, float]:
    """Take steps; return seconds of wall and of this process for one."""
    advance = _made[name].advance
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        advance()
    return (time.perf_counter() - wall) / times, (time.process_time() - cpu) / times


def compare(one: str, other: str, **how: Any) -> float:
    """Take three steps in float64 with each; return the largest difference of a parameter."""
    found = [values(contestant(_mesh[0], name, dtype=torch.float64, **how), 3) for name in (one, other)]
    return max((found[0][key] - found[1][key]).abs().max().item() for key in found[0])


def calls(name: str) -> dict[str, list[int]]:
    """Take one step; return for each collective of torch.distributed the bytes that this rank put into its calls."""
    found: dict[str, list[int]] = {}
    wrapped = {n: getattr(dist, n) for n in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor")}

    def noting(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Tensor, *rest: Any, **options: Any) -> Any:
            own = first if kind == "all_reduce" else rest[0]
            found.setdefault(kind, []).append(own.numel() * own.element_size())
            return function(first, *rest, **options)

        return call

    for kind, function in wrapped.items():
        setattr(dist, kind, noting(kind, function))
    try:
        _made[name].advance()
    finally:
        for kind, function in wrapped.items():
            setattr(dist, kind, function)
    return found


def gradient(name: str) -> int:
    """Bytes of the gradient of what trains."""
    return _made[name].gradient


def memory(name: str, times: int, **how: Any) -> dict[str, float]:
    """Bytes of the optimizer's state here, and by how much the process grows at its peak when it trains, in MB.

    As in `_child.memory`: a first training leaves behind what a process keeps anyway, and the second is measured.
    """
    one = contestant(_mesh[0], name, **how)

    def train(count: int) -> int:
        state = one.start()
        for _ in range(count):
            state = one.step(state)
        opt = state.opt if isinstance(state, tt.State) else {}
        return sum(x.numel() * x.element_size() for x in tree.leaves(opt))

    train(3)
    gc.collect()
    trim()
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is in use now
    opt = train(times)
    return {"opt": opt, "peak": status("VmHWM") - base, "gradient": one.gradient}


def coupled(rows: int, width: int, times: int) -> list[float]:
    """Seconds for the value and gradient of MMD over so many rows of each domain."""
    g = torch.Generator().manual_seed(0)
    source, target = (torch.randn(rows, width, generator=g) + shift for shift in (0.0, 0.5))
    call = torch.compile(torch.func.grad_and_value(tt.align.mmd, argnums=(0, 1)))
    call(source, target)
    found: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        call(source, target)
        found.append(time.perf_counter() - began)
    return found


def barrier() -> None:
    dist.barrier()


ASKED: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (hello, message, make, forget, steps, compare, calls, gradient, memory, coupled, barrier)
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    _mesh.append(tt.dist.init(sys.argv[1]))
    for line in sys.stdin:
        asked = json.loads(line)
        answer = ASKED[asked.pop("what")](**asked)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
