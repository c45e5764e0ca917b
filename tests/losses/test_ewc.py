"""`ewc` and `fisher` against slow loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._ewc import ewc, fisher
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks

Weights = dict[str, Tensor]


def slow_ewc(params: Weights, start: Weights, information: Weights) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, f in information.items():
        pairs = zip(params[name].reshape(-1), start[name].detach().reshape(-1), f.reshape(-1), strict=True)
        total = total + sum((c * (a - b) ** 2 for a, b, c in pairs), torch.zeros(()).double()) / 2
    return total


def flat_ewc(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    return ewc({"w": student, "head": student[0]}, {"w": teacher}, {"w": weights})


def slow_flat_ewc(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    return slow_ewc({"w": student}, {"w": teacher}, {"w": weights})


def drawn(seed: int) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, dtype=torch.float64, generator=g) for name, shape in SHAPES.items()}


SHAPES = {"weight": (3, 4), "bias": (3,)}
INFORMATION = {name: w.square() for name, w in drawn(2).items()}
DICTS = dict.fromkeys(("vmap", "compiled-vmap"), "a trial maps over tensors, not over dicts; the flat one is mapped")
EXAMPLE = (torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, 3))
TRIALS = (
    loss_trial(ewc, st.just((drawn(0), drawn(1), INFORMATION)), reference=slow_ewc, expected_failed_checks=DICTS),
    loss_trial(
        flat_ewc,
        EXAMPLE,
        tags=Tags(zero_at_equality=True, non_negative=True),
        reference=slow_flat_ewc,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def log_likelihood(params: Weights, x: Tensor, y: Tensor) -> Tensor:
    return -F.cross_entropy(params["weight"] @ x + params["bias"], y)


def test_fisher_is_the_mean_square_of_single_gradients() -> None:
    params = drawn(0)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    got = fisher(log_likelihood, params, x, y)
    squares = [grad(log_likelihood)(params, x[i], y[i]) for i in range(5)]
    for name, f in got.items():
        torch.testing.assert_close(f, torch.stack([s[name] ** 2 for s in squares]).mean(0), rtol=1e-12, atol=0)


def test_it_is_the_divergence_to_second_order() -> None:
    # All labels of each input, weighted by their probabilities: the Fisher information, exactly. The biases alone
    # move, one at a time, where the diagonal is the whole of it.
    params, step = drawn(0), 1e-3
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def scores(p: Weights) -> Tensor:
        return x @ p["weight"].mT + p["bias"]

    by_label = [
        vmap(grad(log_likelihood), (None, 0, None))(params, x, torch.tensor(y))["bias"].square() for y in range(3)
    ]
    probabilities = scores(params).softmax(1)
    exact = sum((probabilities[:, y, None] * by_label[y] for y in range(3)), torch.zeros(6, 3)).mean(0)
    for j in range(3):
        moved = {**params, "bias": params["bias"] + step * torch.eye(3, dtype=torch.float64)[j]}
        lost = kd(scores(moved), scores(params), temperature=1.0)
        assert ewc(moved, params, {"bias": exact}).item() == pytest.approx(lost.item(), rel=2e-3)


def test_errors() -> None:
    w = {"w": torch.ones(2)}
    with pytest.raises(TransferError, match=r"ewc: information has 'wx', params has not; did you mean 'w'"):
        ewc(w, w, {"wx": torch.ones(2)})
    with pytest.raises(TransferError, match=r"ewc: wanted one shape for 'w', got .* information \(3,\)"):
        ewc(w, w, {"w": torch.ones(3)})
    with pytest.raises(TransferError, match=r"ewc: wanted information on at least one weight"):
        ewc(w, w, {})
    with pytest.raises(TransferError, match=r"fisher: wanted samples of the same rows, got none"):
        fisher(log_likelihood, drawn(0))
    with pytest.raises(TransferError, match=r"fisher: wanted samples of the same rows, got \(5, 4\)"):
        fisher(log_likelihood, drawn(0), torch.ones(5, 4), torch.ones(4))
