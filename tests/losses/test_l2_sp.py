"""`l2_sp` and `l2` against slow loops, and zhijian's."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

import ttransfer as tt
from tests.support import peers
from tests.support.nets import mlp
from ttransfer._errors import TransferError
from ttransfer.losses._l2_sp import l2, l2_sp
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks

Weights = dict[str, Tensor]


def slow_l2_sp(params: Weights, start: Weights, alpha: float = 0.01, beta: float = 0.01) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name in params:
        old = name in start and start[name].shape == params[name].shape
        for i, w in enumerate(params[name].reshape(-1)):
            gap = w - start[name].detach().reshape(-1)[i] if old else w
            total = total + (alpha if old else beta) / 2 * gap * gap
    return total


def slow_l2(params: Weights, alpha: float = 0.01) -> Tensor:
    return sum((alpha / 2 * w * w for p in params.values() for w in p.reshape(-1)), torch.zeros(()).double())


def flat_l2_sp(student: Tensor, teacher: Tensor, head: Tensor) -> Tensor:
    return l2_sp({"w": student, "head": head}, {"w": teacher, "head": head[:, :1]}, alpha=0.5, beta=0.25)


def slow_flat_l2_sp(student: Tensor, teacher: Tensor, head: Tensor) -> Tensor:
    return slow_l2_sp({"w": student, "head": head}, {"w": teacher}, 0.5, 0.25)


def flat_l2(features: Tensor) -> Tensor:
    return l2({"w": features[0], "b": features[1:]}, alpha=0.5)


def weights(seed: int = 0) -> Weights:
    g = torch.Generator().manual_seed(seed)
    shapes = {"body": (3, 2), "bias": (3,), "head": (4, 3)}
    return {name: torch.randn(shape, dtype=torch.float64, generator=g) for name, shape in shapes.items()}


DICTS = dict.fromkeys(("vmap", "compiled-vmap"), "a trial maps over tensors, not over dicts; the flat ones are mapped")
EXAMPLE = (torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 2))
TRIALS = (
    loss_trial(l2_sp, st.just((weights(), weights(1))), reference=slow_l2_sp, expected_failed_checks=DICTS),
    loss_trial(
        functools.partial(l2_sp, beta=1.0),
        st.just((weights(), {"body": weights(1)["body"]})),
        name="l2_sp, new head",
        expected_failed_checks=DICTS,
    ),
    loss_trial(
        flat_l2_sp,
        EXAMPLE,
        tags=Tags(non_negative=True, rotation_invariant=True, not_stationary="the head is drawn to 0"),
        reference=slow_flat_l2_sp,
    ),
    loss_trial(l2, st.just((weights(),)), reference=slow_l2, expected_failed_checks=DICTS),
    loss_trial(flat_l2, (torch.randn(3, 2),), tags=Tags(non_negative=True, min_batch=2)),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_what_is_new_is_known_by_shape_or_name() -> None:
    params, start = weights(), weights(1)
    start["head"] = torch.ones(7, 3, dtype=torch.float64)
    del start["bias"]
    start["other"] = torch.ones(2)
    got = l2_sp(params, start, alpha=0.3, beta=0.7)
    assert got.item() == pytest.approx(slow_l2_sp(params, start, 0.3, 0.7).item(), rel=1e-12)
    assert grad(lambda p: l2_sp(p, start, beta=0.7))(params)["head"].sub(0.7 * params["head"]).abs().max() < 1e-15


def test_at_the_start_it_is_0_and_the_start_gets_no_gradient() -> None:
    params = weights()
    assert l2_sp(params, params).item() == 0
    assert all(g.count_nonzero() == 0 for g in grad(l2_sp, 1)(params, weights(1)).values())


def test_strengths_map() -> None:
    params, start = weights(), weights(1)
    alphas = torch.tensor([0.1, 0.2], dtype=torch.float64)
    got = vmap(lambda a: l2_sp(params, start, alpha=a))(alphas)
    assert got.tolist() == pytest.approx([slow_l2_sp(params, start, a).item() for a in (0.1, 0.2)], rel=1e-12)


def test_bfloat16_weights_are_summed_in_float32() -> None:
    params = {"w": torch.full((4096,), 1.0, dtype=torch.bfloat16)}
    assert l2(params, alpha=1.0).item() == 2048
    assert l2(params).dtype == torch.bfloat16


def test_a_term_reads_the_parameters() -> None:
    step = tt.step(
        {"net": tt.functional(mlp(1)), "start": tt.functional(mlp(2))},
        tt.optim.sgd(1.0),
        trainable=("net",),
        anchor=tt.term(l2_sp, "net:params", "start:params", alpha=0.5),
    )
    state = step.init({"source": {"x": torch.zeros(1, 5, dtype=torch.float64)}})
    got, logs = step(state, {})
    here, there = state.trainable["net"], state.frozen["start"]
    assert logs["anchor"].item() == pytest.approx(slow_l2_sp(here, there, 0.5).item(), rel=1e-12)
    halfway = {name: (w + there[name]) / 2 for name, w in here.items()}
    torch.testing.assert_close(got.trainable["net"], halfway, rtol=1e-12, atol=1e-12)


def test_zhijian_has_the_same() -> None:
    params, start = weights(), weights(1)
    peer = peers.theirs("zhijian.models.regularization.loss.l2sp", "L2SP", [["body"], ["bias"]], alpha=0.3, beta=0.7)
    del start["head"]
    ours = lambda p: l2_sp(p, start, alpha=0.3, beta=0.7)  # noqa: E731
    theirs = lambda p: peer({**start, "head": p["head"]}, p)  # noqa: E731
    torch.testing.assert_close(ours(params), theirs(params), rtol=1e-10, atol=0)
    torch.testing.assert_close(grad(ours)(params), grad(theirs)(params), rtol=1e-9, atol=1e-12)


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"nothing of params is in start .*'body', ... and start 'net.body'"):
        l2_sp(weights(), {"net.body": torch.ones(3, 2)})
    with pytest.raises(TransferError, match=r"wanted at least one weight"):
        l2_sp({}, {})
    with pytest.raises(TransferError, match=r"l2: wanted at least one weight"):
        l2({})
    with pytest.raises(TransferError, match=r"l2: wanted floating tensors, got w \(2,\) int64"):
        l2({"w": torch.ones(2, dtype=torch.int64)})
