"""The table of equality: terms x backends x modes x numbers of ranks. As a script it writes docs/sharded_equality.md.

python -m tests.dist.table
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import torch

from tests.dist.cases import TERMS
from tests.dist.equality import WHOLE

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sharded_equality.md"
COLUMNS = [
    ("gloo", 2, "eager"), ("gloo", 3, "eager"), ("gloo", 4, "eager"), ("gloo", 2, "compiled"),
    ("ccl", 2, "eager"), ("ccl", 3, "eager"), ("ccl", 4, "eager"), ("ccl", 2, "compiled"),
]  # fmt: skip
LIMIT = 1e-9


def run(backend: str, size: int, modes: Sequence[str], names: Sequence[str]) -> dict[tuple[str, str], float]:
    """Run cases on so many processes: (case, mode) -> how far the worst rank is from one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command += ["-m", "tests.dist.equality", backend, "--modes", *modes, "--terms", *names]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {(name, mode): gap for name, mode, gap in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[2, 3, 4])
    told = parser.parse_args()
    columns = [column for column in COLUMNS if column[1] in told.sizes and column[2] in told.modes]
    found = {}
    for backend, size, mode in columns:
        found[backend, size, mode] = run(backend, size, [mode], (*TERMS, *WHOLE))
        print(backend, size, mode, max(found[backend, size, mode].values()), flush=True)
    head = " | ".join(f"{backend}, {size} ranks, {mode}" for backend, size, mode in columns)
    rows = [
        f"| {name} | " + " | ".join(f"{found[c][name, c[2]]:.0e}" for c in columns) + " |"
        for name in (*TERMS, *WHOLE)
    ]
    PAGE.write_text(
        "# Sharded is single\n\n"
        "How far the worst rank is from one process that has the whole batch, after two steps: the largest absolute\n"
        "difference over all parameters, buffers, optimizer states and logs, in float64. Rows are as uneven as they\n"
        "come: the first rank has all but one row for each other rank. Nets drop at random; the last three rows have\n"
        "batch normalisation, synced, a spread optimizer, or members. `make test-dist` writes this page.\n\n"
        f"    python -m tests.dist.table {' '.join(sys.argv[1:])}\n\n"
        f"torch {torch.__version__}\n\n"
        f"| term | {head} |\n|---|{'---|' * len(columns)}\n" + "\n".join(rows) + "\n"
    )
    largest = max(gap for column in found.values() for gap in column.values())
    print(f"largest difference: {largest:.1e}")
    sys.exit(largest > LIMIT)


if __name__ == "__main__":
    main()
