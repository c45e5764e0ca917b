"""The critic's difference and the penalty on its slope, against loops and optimal transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from tests.support.games import normal
from tests.support.peers import theirs
from ttransfer._errors import TransferError
from ttransfer.align import gradient_penalty, wdgrl
from ttransfer.testing import loss_trial, parametrize_with_checks

VALUES = {"source_values": torch.randn(4, 1), "target_values": torch.randn(5, 1)}


def slow(source: Tensor, target: Tensor) -> Tensor:
    zero = source.new_zeros(())
    return sum(source.flatten(), zero) / len(source) - sum(target.flatten(), zero) / len(target)


TRIALS = (loss_trial(wdgrl, VALUES, reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_the_best_critic_finds_the_distance() -> None:
    """Where one sample lies wholly above the other, the identity is the best critic."""
    source, target = normal(0, 7).abs() + 5, normal(1, 4).abs() - 3
    emd = theirs("ot", "emd2_1d", source.numpy(), target.numpy(), metric="euclidean")
    assert wdgrl(source, target).item() == pytest.approx(float(np.asarray(emd)), rel=1e-12)


W, V = normal(5, 4, 6), normal(6, 6)


def critic(x: Tensor, w: Tensor = W) -> Tensor:
    return torch.tanh(x @ w) @ V


def slow_penalty(w: Tensor, source: Tensor, target: Tensor, mixing: Tensor) -> Tensor:
    points = [*source, *target]
    points += [e * s + (1 - e) * target[i % len(target)] for i, (s, e) in enumerate(zip(source, mixing, strict=True))]
    total = w.new_zeros(())
    for h in points:
        leaf = h.detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(leaf[None], w).sum(), leaf, create_graph=True)
        total = total + ((slope**2).sum().sqrt() - 1) ** 2
    return total / len(points)


def ours(w: Tensor, *rest: Tensor) -> Tensor:
    return gradient_penalty(lambda x: critic(x, w), *rest)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 3), (2, 6), (1, 1)])
def test_the_penalty_is_the_loops(n: int, m: int) -> None:
    rest = normal(0, n, 4), normal(1, m, 4), normal(2, n).sigmoid()
    leaf = W.clone().requires_grad_()
    values = [fn(leaf, *rest) for fn in (ours, slow_penalty)]
    grads = [torch.autograd.grad(value, leaf)[0] for value in values]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-11)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad(ours)(W, *rest), grads[1], rtol=1e-9, atol=1e-12)


def test_modes_agree() -> None:
    rest = normal(0, 5, 4), normal(1, 3, 4), normal(2, 5).sigmoid()
    torch.compiler.reset()
    compiled = torch.compile(grad(ours), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(W, *rest), grad(ours)(W, *rest), rtol=1e-10, atol=1e-12)
    mapped = vmap(ours, (0, None, None, None))(torch.stack([W, 2 * W]), *rest)
    assert mapped.tolist() == pytest.approx([ours(W, *rest).item(), ours(2 * W, *rest).item()], rel=1e-11)


def test_features_get_no_gradient_and_flat_critics_a_finite_one() -> None:
    rest = normal(0, 5, 4), normal(1, 3, 4), normal(2, 5).sigmoid()
    for at in (1, 2, 3):
        assert grad(ours, argnums=at)(W, *rest).count_nonzero() == 0
    assert ours(0 * W, *rest).item() == 1
    assert grad(ours)(0 * W, *rest).isfinite().all()
    linear: Any = lambda x: 3 * x[:, 0]  # noqa: E731
    assert gradient_penalty(linear, *(x.bfloat16() for x in rest)).item() == 4


def test_what_they_refuse() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(TransferError, match=r"gradient_penalty: wanted a mixing number .*mixing \(3,\) float32"):
        gradient_penalty(critic, x, x, torch.zeros(3))
    with pytest.raises(TransferError, match=r"gradient_penalty: wanted features of one width"):
        gradient_penalty(critic, x, torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(TransferError, match="wdgrl: wanted one logit per item"):
        wdgrl(x, x)
    pair: Any = lambda h: h[:, :2]  # noqa: E731
    with pytest.raises(TransferError, match=r"gradient_penalty: wanted a critic of one value per row.* got \(12, 2\)"):
        gradient_penalty(pair, x, x, torch.zeros(4))
