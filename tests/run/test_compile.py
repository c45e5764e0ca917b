"""Compilation: one graph, the same numbers, nothing of the process left changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import copied, worst
from tests.support.nets import conv, images, mlp, vectors
from ttransfer.core import _tree as tree


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def kd_step(p: float = 0.2) -> tt.Step:
    return tt.step(
        {"student": tt.functional(mlp(1, p=p)), "teacher": tt.functional(mlp(2))},
        tt.optim.adamw(tt.schedules.cosine(1e-2, 100)),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=3.0, weight=0.5),
        mmd=tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in", weight=tt.schedules.ramp(50)),
    )


@pytest.mark.parametrize("donate", [False, True])
def test_one_graph_for_a_run_with_a_schedule_a_new_number_and_a_reload(donate: bool, tmp_path: Path) -> None:
    plain = kd_step()
    fast = tt.compile(plain, backend="aot_eager", donate=donate)
    state = fast.init(vectors(0))
    eager = plain.init(vectors(0))
    for i in range(100):
        if i == 40:
            state, eager = (tt.set_hyper(s, {"kd.temperature": 2.0, "optim.lr.peak": 0.005}) for s in (state, eager))
        if i == 70:
            tt.save(tmp_path / "checkpoint", state)
            state, _ = tt.load(tmp_path / "checkpoint", like=state)
        state, _ = fast(state, vectors(i % 5))
        eager, _ = plain(eager, vectors(i % 5))
    assert graphs() == 1
    assert worst(state, eager) < 1e-12


def test_one_more_graph_serves_every_other_number_of_rows() -> None:
    plain = kd_step()
    fast = tt.compile(plain, backend="aot_eager")
    state = start = fast.init(vectors(0))
    sizes = [(6, 4), (6, 4), (5, 3), (4, 2), (3, 4)]
    for source, target in sizes:
        state, _ = fast(state, vectors(1, source, target))
        start, _ = plain(start, vectors(1, source, target))
    assert graphs() <= 2
    assert worst(state, start) < 1e-12


def test_dynamic_rows_are_one_graph_from_the_start() -> None:
    fast = tt.compile(kd_step(), backend="aot_eager", rows="dynamic")
    plain = kd_step()
    state = start = fast.init(vectors(0))
    for source, target in [(6, 4), (5, 3), (2, 7)]:
        state, _ = fast(state, vectors(1, source, target))
        start, _ = plain(start, vectors(1, source, target))
    assert graphs() == 1
    assert worst(state, start) < 1e-12


def test_what_would_make_another_graph_is_normalised() -> None:
    plain = tt.step(
        {"net": tt.functional(conv(1))},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
    )
    fast = tt.compile(plain, backend="aot_eager")
    state = fast.init(images(0))
    wanted, _ = fast(state, images(0))
    batch = images(0)
    last = {"source": {**batch["source"], "x": batch["source"]["x"].to(memory_format=torch.channels_last)}}
    gradient = {"source": {**batch["source"], "x": batch["source"]["x"].clone().requires_grad_()}}
    more = {"source": {"name": torch.arange(6), **batch["source"]}, "other": batch["target"]}
    for changed in (last, gradient, more):
        assert worst(fast(state, changed)[0], wanted) < 1e-12
    with torch.no_grad():
        assert worst(fast(state, batch)[0], wanted) == 0.0
    with torch.autocast("cpu", torch.bfloat16):
        assert worst(fast(state, batch)[0], wanted) == 0.0
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    try:
        assert worst(fast(state, batch)[0], wanted) == 0.0
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 2
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
    assert graphs() == 1


def test_steps_do_not_share_a_limit_of_graphs() -> None:
    """The compiler keeps at most eight graphs for one code object; each step has its own."""
    batch = vectors(0)
    for i in range(10):
        step = tt.step(
            {"net": tt.functional(mlp(i))},
            tt.optim.sgd(0.1),
            trainable=("net",),
            task=tt.term(F.cross_entropy, "net(source)", "source.y"),
        )
        fast = tt.compile(step, backend="aot_eager")
        fast(fast.init(batch), batch)
    assert graphs() == 10


def test_pure_leaves_its_inputs_alone_and_donated_takes_them() -> None:
    plain = kd_step()
    batch = vectors(0)
    for donate in (False, True):
        fast = tt.compile(plain, backend="aot_eager", donate=donate)
        state = fast.init(batch)
        before, pointers = copied(state), [x.data_ptr() for x in tree.leaves(state)]
        new, _ = fast(state, batch)
        assert (worst(state, before) == 0.0) is not donate
        assert ([x.data_ptr() for x in tree.leaves(new)] == pointers) is donate


def test_donation_refuses_what_it_could_not_write() -> None:
    fast = tt.compile(kd_step(), backend="aot_eager", donate=True)
    batch = vectors(0)
    state = fast.init(batch)
    shared = tt.State(
        {**state.trainable, "student": {**state.trainable["student"], "fc.bias": state.frozen["teacher"]["fc.bias"]}},
        *state[1:],
    )
    with pytest.raises(tt.TransferError, match=r"fc\.bias .*share a storage"):
        fast(shared, batch)
    expanded = torch.zeros((), dtype=torch.float64).expand(3)
    wide = tt.State({**state.trainable, "student": {**state.trainable["student"], "fc.bias": expanded}}, *state[1:])
    with pytest.raises(tt.TransferError, match="expanded"):
        fast(wide, batch)


def test_a_donated_update_that_is_refused_keeps_the_state() -> None:
    fast = tt.compile(kd_step(), backend="aot_eager", donate=True)
    batch = vectors(0)
    state, _ = fast(fast.init(batch), batch)
    before = copied(state)
    broken = {**batch, "source": {**batch["source"], "x": batch["source"]["x"] * float("nan")}}
    state, logs = fast(state, broken)
    assert not logs["finite"]
    assert worst(state, before) == 0.0


def test_labels_out_of_range_are_named() -> None:
    fast = tt.compile(kd_step(), backend="aot_eager")
    batch = vectors(0)
    state = fast.init(batch)
    labels = batch["source"]["y"].clone()
    labels[2] = 3
    with pytest.raises(
        tt.TransferError, match=r"term 'task': labels source.y must be 0 to 2.*found 3 at \[2\]; 1 of 6"
    ):
        fast(state, {**batch, "source": {**batch["source"], "y": labels}})
    labels[2] = -100  # what cross_entropy ignores
    fast(state, {**batch, "source": {**batch["source"], "y": labels}})


def test_stacked_members_check_their_labels_too() -> None:
    batch = tree.map(lambda *x: torch.stack(x), vectors(0), vectors(1))
    fast = tt.compile(tt.ensemble(kd_step(), 2, batches="stacked"), backend="aot_eager")
    state = fast.init(batch)
    batch["source"]["y"][1, 4] = 7
    with pytest.raises(tt.TransferError, match=r"found 7 at \[1, 4\]"):
        fast(state, batch)


def branching(student: Tensor) -> Tensor:
    return student.mean() if student.mean().item() > 0 else student.sum()


def test_bad_input() -> None:
    plain = kd_step()
    with pytest.raises(tt.TransferError, match="no backend 'inductr'; did you mean 'inductor'"):
        tt.compile(plain, backend="inductr")
    with pytest.raises(tt.TransferError, match="precision must be"):
        tt.compile(plain, precision="bf16")
    with pytest.raises(tt.TransferError, match="rows must be"):
        tt.compile(plain, rows="padded")
    fast = tt.compile(plain, backend="aot_eager")
    with pytest.raises(tt.TransferError, match="compiled already"):
        tt.compile(fast, backend="aot_eager")
    state = fast.init(vectors(0))
    with pytest.raises(tt.TransferError, match="the batch has no domain 'target'"):
        fast(state, {"source": vectors(0)["source"]})
    with pytest.raises(tt.TransferError, match="stacked 1 deep"):
        fast(tt.ensemble(plain, 2).init(vectors(0)), vectors(0))
    odd = tt.compile(tt.replace(plain, odd=tt.term(branching, "student(source)")), backend="aot_eager")
    with pytest.raises(tt.TransferError, match="the step is not one graph"):
        odd(odd.init(vectors(0)), vectors(0))


def no_compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
    raise RuntimeError("there is no compiler here")


def test_what_a_backend_says_is_not_called_a_break_of_the_graph() -> None:
    torch._dynamo.register_backend(no_compiler, name="ttransfer_no_compiler")
    fast = tt.compile(kd_step(), backend="ttransfer_no_compiler")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="there is no compiler here"):
        fast(fast.init(vectors(0)), vectors(0))


SCALE = [1.0]


def test_what_a_loss_closes_over_is_still_guarded() -> None:
    """Most guards are dropped, and these must not be."""
    held = {"power": 1}

    def odd(student: Tensor) -> Tensor:
        return SCALE[0] * student.abs().mean() ** held["power"]

    fast = tt.compile(
        tt.step(
            {"net": tt.functional(mlp(1))},
            tt.optim.sgd(0.1),
            trainable=("net",),
            odd=tt.term(odd, "net(source)"),
        ),
        backend="aot_eager",
    )
    state = fast.init(vectors(0))
    once = fast(state, vectors(0))[1]["odd"].item()
    held["power"] = 2
    assert fast(state, vectors(0))[1]["odd"].item() == pytest.approx(once**2)
    SCALE[0] = 3.0
    assert fast(state, vectors(0))[1]["odd"].item() == pytest.approx(3 * once**2)
    SCALE[0] = 1.0


@pytest.mark.parametrize("stacked", [False, True])
def test_bfloat16_keeps_parameters_and_losses_in_float32(stacked: bool) -> None:
    def single(batch: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return tree.map(lambda x: x.float() if x.is_floating_point() else x, batch)

    step = tt.step(
        {"net": tt.functional(conv(1).float())},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
        mmd=tt.term(tt.align.mmd, "net(source).fc:in", "net(target).fc:in"),
    )
    step = tt.ensemble(step, 2) if stacked else step
    half = tt.compile(step, backend="aot_eager", precision="bfloat16")
    batch = single(images(0))
    exact, logs = step(step.init(batch), batch)
    state, low = half(half.init(batch), batch)
    assert all(x.dtype == torch.float32 for x in tree.leaves(state.trainable))
    assert low["mmd"].dtype == torch.float32
    assert 0 < worst(low["task"], logs["task"]) < 2e-2
    assert worst(state.trainable, exact.trainable) < 2e-2


def test_replace_compiles_again() -> None:
    fast = tt.compile(kd_step(), backend="aot_eager")
    fewer = tt.replace(fast, mmd=None)
    assert [t.name for t in fewer.spec.transforms] == ["compile"]
    batch = vectors(0)
    plain = tt.replace(kd_step(), mmd=None)
    assert worst(fewer(fewer.init(batch), batch), plain(plain.init(batch), batch)) == 0.0


def test_a_step_without_numbers_compiles() -> None:
    descend = tt.Optimizer(lambda params: {}, lambda g, state, p, hyper: (tree.map(lambda x: -0.1 * x, g), state), {})
    step = tt.step(
        {"net": tt.functional(mlp(1))},
        descend,
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y", weight=tt.fixed(0.5)),
    )
    fast = tt.compile(step, backend="aot_eager")
    state = fast.init(vectors(0))
    assert state.hyper == {}
    assert worst(fast(state, vectors(0)), step(state, vectors(0))) == 0.0
