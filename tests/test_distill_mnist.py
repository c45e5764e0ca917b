"""The comparison of losses for distillation runs, and its student is shown no label of the images without."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.examples import imported

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    with imported("distill_mnist") as module:
        yield module


def test_a_short_run_makes_the_table_and_the_picture(tmp_path: pathlib.Path) -> None:
    ways = ("50 labels alone", "DIST")
    subprocess.run(
        [sys.executable, ROOT / "examples/distill_mnist.py", "--steps", "60", "--output", tmp_path, "--quiet",
         "--only", *ways],
        capture_output=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    table = (tmp_path / "table.txt").read_text().splitlines()
    alone, dist = (next(float(m[1]) for line in table if (m := re.match(rf"{way} +(0\.\d+)", line))) for way in ways)
    assert dist > alone + 0.1
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_nobody_sees_what_it_must_not(example: Any) -> None:
    data = example.load()
    assert data.labelled["y"].bincount().tolist() == [5] * 10
    assert (len(data.pool["y"]), len(data.test["y"])) == (3000, 2000)
    assert (torch.cdist(data.test["x"].flatten(1), data.pool["x"].flatten(1)).amin(1) > 0).all()
    for name, step in example.steps_of(example.convolutional(), example.transformer(), 10).items():
        told = step.spec.expression
        assert list(told.trainable) == ["student"]
        reads = [read.path for term in told.terms.values() for read in term.reads]
        labels = {path.domain for path in reads if getattr(path, "field", "") == "y"}
        assert labels == ({"pool"} if name == "3000 labels" else {"labelled"})
