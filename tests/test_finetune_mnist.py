"""The comparison of ways to fine-tune runs, and its weights are those of the checkpoint."""

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

import ttransfer as tt
from tests.support.examples import imported

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    with imported("finetune_mnist") as module:
        yield module


def test_a_short_run_makes_the_table_and_the_picture(tmp_path: pathlib.Path) -> None:
    ways = ("from random", "linear probe")
    subprocess.run(
        [sys.executable, ROOT / "examples/finetune_mnist.py", "--steps", "12", "--seeds", "0", "--output", tmp_path,
         "--only", *ways],
        capture_output=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    table = (tmp_path / "table.txt").read_text().splitlines()
    rows = {way: re.findall(r"\d[\d.e-]*", line) for way in ways for line in table if line.startswith(way)}
    assert float(rows["linear probe"][1]) > float(rows["from random"][1]) + 0.2
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_way_begins_at_the_checkpoint_and_takes_a_step(example: Any) -> None:
    weights, data = example.pretrained(), example.load()
    few = example.labelled(data, 0)
    assert few["y"].bincount().tolist() == [20] * 10
    batch = {"data": {name: x[::50] for name, x in few.items()}}
    for name, way in example.WAYS.items():
        phases = way(example.network(0), weights, 1e-3, 8)
        assert sum(phase.steps for phase in phases.values()) == 8
        state: Any = None
        for phase in phases.values():
            step = phase.step
            state = step.init(batch) if state is None else tt.carry(state, step, batch)
            own = {**state.frozen.get("net", {}), **state.trainable["net"]}
            if phase is next(iter(phases.values())):
                same = torch.equal(own["blocks.3.0.conv_dw.weight"], weights["blocks.3.0.conv_dw.weight"])
                assert same == (name != "from random")
            state, logs = step(state, batch)
            assert logs["loss"].isfinite()
