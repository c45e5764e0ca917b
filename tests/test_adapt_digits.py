"""The comparison of ways to adapt runs, and what it chooses by is what it says."""

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
def adapt() -> Iterator[Any]:
    with imported("adapt_digits") as module:
        yield module


def test_a_quick_run_makes_the_table_and_the_picture(tmp_path: pathlib.Path) -> None:
    """SHOT goes on from another step's state; all else is like MMD."""
    ways = ("source only", "MMD", "SHOT")
    subprocess.run(
        [sys.executable, ROOT / "examples/adapt_digits.py", "--quick", "--output", tmp_path, "--only", *ways],
        capture_output=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    table = (tmp_path / "table.txt").read_text()
    rows = {way: re.findall(r"[\d.]+", line) for way in ways for line in table.splitlines() if line.startswith(way)}
    assert set(rows) == set(ways)
    assert float(rows["MMD"][1]) > float(rows["source only"][0]) + 0.05
    # weight, mean, spread, best weight, its mean and spread, seconds
    assert all(float(rows[way][4]) >= float(rows[way][1]) for way in ways[1:])
    assert "below source only" in table
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_way_takes_a_step_without_the_labels(adapt: Any) -> None:
    data, ways = adapt.load(), adapt.ways_of(10, 898)
    assert len(ways) == 12
    for name, way in ways.items():
        batch = next(adapt.batches(data, labels=name == "target labels"))
        assert ("y" in batch["target"]) == (name == "target labels")
        for step in (way.before, way.step):
            if step is not None:
                state, logs = step(step.init(batch, seed=0), batch)
                assert logs["finite"]
        assert set(way.weights) <= set(state.hyper)
        assert tt.predict(way.step, state, way.net)(data.test["x"][:2]).shape == (2, 10)


def test_the_criterion_is_mutual_information(adapt: Any) -> None:
    logits = torch.randn(2, 3, 50, 10, generator=torch.Generator().manual_seed(0)).double()
    joint = logits.softmax(-1) / 50  # of image and class
    product = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
    torch.testing.assert_close(
        adapt.information(logits), (joint * (joint / product).log()).sum((-1, -2)), rtol=1e-9, atol=0
    )
    collapsed = torch.zeros(4, 10).double()
    collapsed[:, 0] = 100
    assert adapt.information(collapsed).abs() < 1e-12
    assert adapt.information(100 * torch.eye(10)).item() == pytest.approx(torch.tensor(10.0).log().item())
