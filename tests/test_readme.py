"""The README's example is the quickstart's, and the quickstart runs."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def squeezed(code: str) -> str:
    return re.sub(r"\s+", "", code)


def test_the_example_is_a_part_of_the_quickstart() -> None:
    example = re.search(r"```python\n(import .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    body = example[1].split("\n\n", 1)[1].replace("train = tt.compile(train, donate=True)", "COMPILE")
    quick = (ROOT / "examples/quickstart.py").read_text()
    marked = re.search(r"# \[README\]\n(.*?)# \[/README\]", quick, re.DOTALL)
    assert marked is not None
    code = marked[1].replace("train = train if eager else tt.compile(train, donate=True)", "COMPILE")
    assert squeezed(body) == squeezed(code.replace("# fmt: skip", ""))


def test_the_quickstart_runs_and_closes_a_part_of_the_gap() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples/quickstart.py", "--eager"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    teacher, student = (float(a) for a in re.findall(r"([\d.]+) on the target", done.stdout))
    assert student > teacher + 0.05
