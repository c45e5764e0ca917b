"""The example of a learned merge runs, and what it learns by is right."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from tests.support.examples import imported

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def merge() -> Iterator[Any]:
    with imported("merge_digits") as module:
        yield module


def nets(merge: Any, count: int) -> dict[str, dict[str, Tensor]]:
    found = {}
    for seed in range(count):
        torch.manual_seed(seed)
        found[f"net{seed}"] = {name: x.detach() for name, x in merge.network().double().state_dict().items()}
    return found


def test_a_quick_run_makes_the_table_and_the_picture(tmp_path: pathlib.Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "examples/merge_digits.py", "--steps", "8", "--seeds", "1", "--output", tmp_path],
        capture_output=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    table = (tmp_path / "table.txt").read_text()
    ways = ("uniform soup", "greedy soup", "learned soup", "learned, no labels", "tuned on the labels")
    assert all(any(line.startswith(way) for line in table.splitlines()) for way in ways)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_weights_of_a_soup_get_the_gradient_that_differences_give(merge: Any) -> None:
    """In the step itself: one update of plain descent moves them by the slope of the loss, and nothing else trains."""
    data = merge.load().labelled
    data = {"x": data["x"][:20].double(), "y": data["y"][:20]}
    pool = tt.weights.pool(nets(merge, 3))
    start = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    net = tt.reparam(tt.functional(merge.network().double()), tt.as_reparam(tt.weights.average, pool, weights=start))
    step = tt.step(
        {"net": net}, tt.optim.sgd(1.0), trainable=("net",), task=tt.term(F.cross_entropy, "net(data)", "data.y")
    )
    state = step.init({"data": data})
    assert list(state.trainable["net"]) == ["weights"]
    after, logs = step(state, {"data": data})
    slope = start - after.trainable["net"]["weights"]

    def loss(w: Tensor) -> Tensor:
        params = tt.weights.average(w).apply(pool, {})
        return F.cross_entropy(torch.func.functional_call(merge.network(), params, (data["x"],)), data["y"])

    assert logs["loss"].item() == pytest.approx(loss(start).item(), abs=1e-12)
    for i in range(3):
        by = 1e-6 * torch.eye(3, dtype=torch.float64)[i]
        assert abs((loss(start + by) - loss(start - by)).item() / 2e-6 - slope[i].item()) < 1e-8
    for name, x in nets(merge, 3)["net1"].items():
        assert torch.equal(pool[f"net1/{name}"], x)


def test_the_sweep_is_what_each_strength_gives(merge: Any) -> None:
    data = merge.load().labelled
    first, second = ({name: x.float() for name, x in params.items()} for params in nets(merge, 2).values())
    curve = merge.swept(first, second, {"digits": data})["digits"]
    for alpha, found in list(zip(merge.ALPHAS, curve, strict=True))[::5]:
        params = tt.weights.wise_ft(alpha).apply(tt.weights.pool(base=first, tuned=second), {})
        assert found == pytest.approx(merge.accuracy(params, data), abs=1e-6)


def test_nobody_sees_the_test(merge: Any) -> None:
    data = merge.load()
    assert "y" not in data.unlabelled
    assert len(data.labelled["y"]) == 100
    assert data.labelled["y"].bincount().tolist() == [10] * 10
    assert (len(data.unlabelled["x"]), len(data.test["y"])) == (697, 1000)
    seen = torch.cat([data.labelled["x"], data.unlabelled["x"]]).flatten(1)
    distances = torch.cdist(data.test["x"].flatten(1), seen)
    assert (distances.amin(1) > 0).all()
