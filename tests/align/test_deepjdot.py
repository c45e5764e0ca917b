"""`deepjdot` at given plans pair by pair, and at the exact plan as skada has it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._deepjdot import deepjdot
from ttransfer.testing import loss_trial, parametrize_with_checks


def costs(source: Tensor, target: Tensor, labels: Tensor, logits: Tensor, alpha: float, lam: float) -> Tensor:
    rows = []
    for x, y in zip(source, labels.tolist(), strict=True):
        pairs = zip(target, logits, strict=True)
        rows.append(torch.stack([alpha * ((x - t) ** 2).sum() - lam * z.log_softmax(0)[y] for t, z in pairs]))
    return torch.stack(rows)


def slow(
    source: Tensor, target: Tensor, labels: Tensor, logits: Tensor, variant: str = "paper", lam: float = 0.0001
) -> Tensor:
    """Sinkhorn's own iteration on the costs; the plan is held constant."""
    cost = sought = costs(source, target, labels, logits, 0.001, lam)
    if variant == "code":
        hot = torch.eye(logits.shape[1]).double()[labels]
        squares = [torch.stack([((y - z.softmax(0)) ** 2).sum() for z in logits]) for y in hot]
        sought = costs(source, target, labels, logits, 0.001, 0.0) + lam * torch.stack(squares)
    kernel = (-sought.detach() / 0.5).exp()
    v = torch.ones(len(target), dtype=torch.float64)
    u = v
    for _ in range(200):
        u = 1 / (kernel @ v * len(source))
        v = 1 / (kernel.T @ u * len(target))
    return (u[:, None] * kernel * v * cost).sum()


HELD = {"gradcheck": "the plan is held constant"}
TRIALS = (
    loss_trial(
        functools.partial(deepjdot, epsilon=0.5),
        reference=slow,
        expected_failed_checks=HELD,
        name="deepjdot",
        examples=4,
    ),
    loss_trial(
        functools.partial(deepjdot, label_weight=1.0, epsilon=0.5, variant="code"),
        reference=functools.partial(slow, variant="code", lam=1.0),
        expected_failed_checks=HELD,
        name="deepjdot as in code",
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def batch(n: int, m: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, target = torch.randn(n, 4).double(), torch.randn(m, 4).double() + 1
    return source, target, torch.randint(3, (n,)), torch.randn(m, 3).double()


def test_skada_by_the_exact_plan() -> None:
    s, t, y, z = batch(6, 6)
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    skada = functools.partial(theirs, "skada.deep.losses", "deepjdot_loss", reg_dist=0.3, reg_cl=0.7)
    skada = functools.partial(skada, sample_weights=uniform, target_sample_weights=uniform)
    exact = theirs("ot", "emd", uniform, uniform, costs(s, t, y, z, 0.3, 0.7))
    ours = functools.partial(deepjdot, feature_weight=0.3, label_weight=0.7, plan=exact)
    same(lambda s: ours(s, t, y, z), lambda s: skada(y, z, s, t), s)
    same(lambda z: ours(s, t, y, z), lambda z: skada(y, z, s, t), z)
    near = deepjdot(s, t, y, z, feature_weight=0.3, label_weight=0.7)
    assert ours(s, t, y, z).item() < near.item() < 1.05 * ours(s, t, y, z).item()


def test_skada_wants_equal_rows() -> None:
    s, t, y, z = batch(5, 7)
    assert deepjdot(s, t, y, z).isfinite()
    with pytest.raises(ValueError, match="batch_size"):
        theirs("skada.deep.losses", "deepjdot_loss", y, z, s, t, 1.0, 1.0)


def test_what_is_refused() -> None:
    s, t, y, z = batch(3, 4)
    with pytest.raises(TransferError, match=r"deepjdot: wanted a plan \(n, m\), got"):
        deepjdot(s, t, y, z, plan=torch.zeros(4, 3))
    with pytest.raises(TransferError, match="deepjdot: wanted labels"):
        deepjdot(s, t, z[:3], z)
    with pytest.raises(TransferError, match=r"deepjdot: wanted logits \(m, classes\)"):
        deepjdot(s, t, y, z[:, :, None])
    with pytest.raises(TransferError, match="deepjdot: wanted variant"):
        deepjdot(s, t, y, z, variant="other")  # type: ignore[arg-type]
