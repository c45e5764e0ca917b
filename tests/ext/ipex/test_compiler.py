"""Steps compiled by IPEX against the same eagerly and by inductor. Collected only where IPEX is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional as F

import ttransfer as tt
from tests.core.test_oracle import our_step
from tests.support.compare import copied, worst
from tests.support.nets import conv, images, mlp, vectors
from ttransfer.core import _tree as tree


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def single(x: Any) -> Any:
    return tree.map(lambda leaf: leaf.float() if leaf.is_floating_point() and leaf.ndim else leaf, x)


def started(step: tt.Step, batch: Any) -> tt.State:
    state = step.init(batch, seed=3)
    return tt.State(*(single(part) for part in state[:6]), state.hyper, state.step, state.seed)


def small() -> tt.Step:
    return tt.step(
        {"student": tt.functional(mlp(1).float()), "teacher": tt.functional(mlp(2).float())},
        tt.optim.sgd(0.1, momentum=0.9),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=3.0),
    )


def test_the_oracles_step_in_float32_over_20_steps_with_new_numbers_is_one_graph() -> None:
    step = our_step()
    batches = [single(images(seed)) for seed in range(5)]
    start = started(step, images(0))
    fast = tt.compile(step, backend="ipex")
    mine = eager = start
    after: list[tt.State] = []
    for i in range(20):
        if i == 10:
            mine, eager = (tt.set_hyper(s, {"kd.temperature": 2.0, "optim.lr.peak": 0.005}) for s in (mine, eager))
        mine, _ = fast(mine, batches[i % 5])
        eager, _ = step(eager, batches[i % 5])
        after.append(mine)
    assert counters["stats"]["unique_graphs"] == 1
    assert worst(mine.trainable, eager.trainable) < 1e-5  # 2.4e-6 where it was measured
    theirs, inductor = start, tt.compile(step)
    for i in range(5):
        theirs, _ = inductor(theirs, batches[i])
    assert worst(theirs, after[4]) < 1e-6  # equal to the bit where it was measured


def test_donated() -> None:
    step, batch = small(), single(vectors(0))
    fast = tt.compile(step, backend="ipex", donate=True)
    state = fast.init(batch)
    eager, pointers = copied(state), [x.data_ptr() for x in tree.leaves(state)]
    for _ in range(3):
        state, _ = fast(state, batch)
        eager, _ = step(eager, batch)
    assert [x.data_ptr() for x in tree.leaves(state)] == pointers
    assert worst(state, eager) < 1e-6


def test_an_ensemble() -> None:
    batch = single(vectors(0))
    fast = tt.compile(tt.ensemble(small(), 3), backend="ipex")
    state = fast.init(batch, seed=3)
    for _ in range(3):
        state, _ = fast(state, batch)
    for i in range(3):
        alone = small()
        own = alone.init(batch, seed=3 + i)
        for _ in range(3):
            own, _ = alone(own, batch)
        assert worst(own, tt.member(state, i)) < 1e-6


def test_bfloat16() -> None:
    """Rounding: bfloat16 has 8 bits, 4e-3 relative."""
    step = tt.step(
        {"net": tt.functional(conv(1).float())},
        tt.optim.sgd(0.1, momentum=0.9),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
        mmd=tt.term(tt.align.mmd, "net(source).fc:in", "net(target).fc:in"),
    )
    batch = single(images(0))
    fast, same = (tt.compile(step, backend=name, precision="bfloat16") for name in ("ipex", "aot_eager"))
    start = half = exact = step.init(batch)
    losses = []
    for i in range(3):
        half, low = fast(half, batch)
        exact, logs = step(exact, batch)
        losses.append(worst(low["task"], logs["task"]))
        if i == 0:
            assert all(x.dtype == torch.float32 for x in tree.leaves(half.trainable))
            assert 0 < worst(half.trainable, exact.trainable) < 2e-2  # 5e-3 for eager kernels
            assert worst(half.trainable, same(start, batch)[0].trainable) < 2e-2
    assert max(losses) < 2e-2


def test_the_import_is_silent_and_leaves_logging_alone() -> None:
    code = (
        "import logging; from ttransfer_ext.ipex import compiler; compiler();"
        "assert logging.getLogger().handlers == [] and logging.getLoggerClass() is logging.Logger"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
