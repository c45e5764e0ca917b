"""What must be measured in a process of its own: compile time and memory. Prints one line of JSON.

python benchmarks/_child.py compile|memory CASE CONTESTANT THREADS STEPS
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
import time
from pathlib import Path

import torch
from _cases import CASES, Case, batch_of
from _programs import IMPERATIVE, program

MB = 1024**2


def compiling(case: Case, name: str) -> dict[str, float]:
    """Seconds until the first step is done, all imports of the compiler among them, and what it consists of."""
    one, batch = program(case, name), batch_of(case, 0)
    state = one.start()
    began = time.perf_counter()
    one.advance(state, batch)
    seconds = time.perf_counter() - began
    from torch._inductor import metrics

    return {"seconds": seconds, "generated": metrics.generated_kernel_count, **launches()}


def launches() -> dict[str, int]:
    """Count in the code that inductor wrote what one step calls: its own fused loops, and library kernels."""
    from torch._inductor.codecache import PyCodeCache

    sources = [Path(module.__file__ or "").read_text() for module in PyCodeCache.modules]
    bodies = [source[source.index("def call(") :] for source in sources if "def call(" in source]
    loops = sum(len(re.findall(r"\bcpp_fused\w*\(|\btriton_\w+\.run\(", body)) for body in bodies)
    library = sum(len(re.findall(r"\bextern_kernels\.\w+\(|\btorch\.ops\.[\w.]+\(", body)) for body in bodies)
    return {"loops": loops, "library": library}


def memory(case: Case, name: str, steps: int) -> dict[str, float]:
    """Memory that training takes, in MB: the peak over `steps` steps, less the process without training.

    A training is run and dropped first. What is left then is what the process keeps whether it trains or
    not: torch, the compiler with all that it has imported and traced (the generated code comes from the
    cache, which an earlier process has filled), and the library's scratch space. This is taken off, and
    given as `base`. A second training then reuses the compiled step and is measured. The allocator is
    told by the environment to return freed blocks at once, or holes would hide what is used.
    """
    one, batch = program(case, name), batch_of(case, 0)

    def train(count: int) -> None:
        state = one.start()
        for _ in range(count):
            state, _ = one.advance(state, batch)

    train(3)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is in use now
    train(steps)
    return {"base": base, "peak": status("VmHWM") - base}


def status(key: str) -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, key
    return int(found[1]) * 1024 / MB


def floor(case: Case) -> float:
    """What any training of this case holds, in MB: weights, two moments and a gradient for each, the teacher."""
    loop = program(case, IMPERATIVE).start()
    own = sum(p.numel() * p.element_size() for p in loop.params().values())
    other = sum(p.numel() * p.element_size() for p in loop.teacher.parameters())
    return (4 * own + other) / MB


if __name__ == "__main__":
    what, which, who, threads, count = sys.argv[1:]
    torch.set_num_threads(int(threads))
    chosen = CASES[which]
    print(json.dumps(compiling(chosen, who) if what == "compile" else memory(chosen, who, int(count))))
