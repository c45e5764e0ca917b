"""Weights of classes and rows, and the loss of the unknown class, against loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same
from ttransfer._errors import TransferError
from ttransfer.align import class_weights, importance_weights, osbp
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(target_logits: Tensor, t: float = 0.5) -> Tensor:
    total = target_logits.new_zeros(())
    rows = target_logits.movedim(1, -1).flatten(0, -2)
    for z in rows:
        odds = z.exp()
        total = total - (t * (odds[-1] / odds.sum()).log() + (1 - t) * (odds[:-1].sum() / odds.sum()).log())
    return total / len(rows)


EXAMPLE = {"target_logits": torch.randn(4, 3)}
HALF = torch.zeros(3, 2)
TRIALS = (loss_trial(osbp, EXAMPLE, reference=slow, limits={"half": lambda fn: (fn(HALF), math.log(2))}, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("threshold", [0.5, 0.2, 1.0])
def test_osbp_at_other_thresholds(threshold: float) -> None:
    z, maps = normal(0, 5, 4), normal(1, 2, 4, 3, 2)
    same(lambda z: osbp(z, threshold=threshold), lambda z: slow(z, threshold), z)
    same(lambda z: osbp(z, threshold=threshold), lambda z: slow(z, threshold), maps)

    def other(z: Tensor) -> Tensor:
        p = z.softmax(1)[:, -1]
        return F.binary_cross_entropy(p, torch.full_like(p, threshold))

    same(lambda z: osbp(z, threshold=threshold), other, z)


def test_a_sure_unknown_still_learns() -> None:
    z = torch.tensor([[0.0, 0.0, 60.0]])
    assert torch.func.grad(osbp)(z)[0, 2].item() == pytest.approx(0.5)
    p = torch.func.grad(lambda z: F.binary_cross_entropy(z.softmax(1)[:, -1], torch.full((1,), 0.5)))(z)
    assert p[0, 2].abs() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confident_logits(dtype: torch.dtype) -> None:
    z = torch.tensor([[1e3, -1e3], [-1e3, 1e3]], dtype=dtype)
    assert osbp(z).item() == pytest.approx(1000, rel=1e-2)
    assert torch.func.grad(osbp)(z).isfinite().all()
    assert class_weights(z).tolist() == [1.0, 1.0]
    assert importance_weights(z[:, 0]).tolist() == [0.0, 2.0]


def test_weights_of_classes() -> None:
    z = normal(0, 7, 4)
    mean = [sum(math.exp(row[c] / 0.1) / sum(math.exp(x / 0.1) for x in row) for row in z.tolist()) for c in range(4)]
    assert class_weights(z).tolist() == pytest.approx([m / max(mean) for m in mean], rel=1e-11)
    soft = class_weights(z, temperature=1.0)
    assert torch.allclose(soft, z.softmax(1).mean(0) / z.softmax(1).mean(0).max(), rtol=1e-12)
    assert torch.func.grad(lambda z: class_weights(z, temperature=1.0).sum())(z).count_nonzero() == 0


def test_weights_of_rows() -> None:
    s = normal(0, 6) * 3
    raw = [1 - 1 / (1 + math.exp(-x)) for x in s.tolist()]
    assert importance_weights(s).tolist() == pytest.approx([w / sum(raw) * 6 for w in raw], rel=1e-11)
    assert torch.equal(importance_weights(s[:, None]), importance_weights(s))
    assert torch.func.grad(lambda s: (importance_weights(s) * s.detach()).sum())(s).count_nonzero() == 0


def test_rows_of_which_a_critic_is_sure_still_differ() -> None:
    s = torch.tensor([20.0, 21.0])
    right = [2 * math.e / (1 + math.e), 2 / (1 + math.e)]
    assert importance_weights(s).tolist() == pytest.approx(right, rel=1e-5)
    raw = 1 - s.double().sigmoid()
    assert (raw / (raw.mean() + 1e-5) / torch.tensor(right)).tolist() == pytest.approx([1.4e-4] * 2, rel=0.1)


def test_modes_agree() -> None:
    z = normal(0, 7, 4)
    torch.compiler.reset()
    for fn in (class_weights, importance_weights):
        x = z if fn is class_weights else z[:, 0]
        compiled: Callable[..., Tensor] = torch.compile(fn, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(x), fn(x), rtol=1e-12)
        assert torch.allclose(torch.func.vmap(fn)(torch.stack([x, 2 * x]))[1], fn(2 * x), rtol=1e-12)  # pyright: ignore[reportArgumentType]


def test_what_they_refuse() -> None:
    with pytest.raises(TransferError, match="class_weights: wanted logits"):
        class_weights(torch.zeros(3))
    with pytest.raises(TransferError, match="importance_weights: wanted one logit per item"):
        importance_weights(torch.zeros(3, 2))
    with pytest.raises(TransferError, match="osbp: wanted logits"):
        osbp(torch.zeros(3, 1))
