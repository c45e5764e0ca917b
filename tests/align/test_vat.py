"""`vat` against the Hessian of the divergence, row by row, and beside pytorch-adapt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.support.nets import conv
from tests.support.peers import theirs
from tests.support.steps import refused
from ttransfer.align._vat import vat
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    return (clean.softmax(-1) * (clean.log_softmax(-1) - other.log_softmax(-1))).sum()


def slow(fn: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, radius: float, iterations: int = 1) -> Tensor:
    total = x.new_zeros(())
    for row, d in zip(x.detach(), direction.detach(), strict=True):

        def beside(r: Tensor, row: Tensor = row) -> Tensor:
            return divergence(fn(row[None])[0].detach(), fn((row + r.reshape(row.shape))[None])[0])

        hessian: Any = torch.autograd.functional.hessian(beside, row.new_zeros(row.numel()))
        r = d.flatten()
        for _ in range(iterations):
            r = hessian @ (r / r.norm())
        total = total + beside((radius * r / r.norm()).detach())
    return total / len(x)


def layer(weight: Tensor, x: Tensor, direction: Tensor) -> Tensor:
    """The loss of one layer: what learns is among the arguments."""
    return vat(lambda x: x.tanh() @ weight, x, direction, radius=1.5)


TRIALS = (
    loss_trial(
        layer,
        {"weight": torch.randn(4, 3), "x": torch.randn(5, 4), "direction": torch.randn(5, 4)},
        tags=Tags(coupled=False, non_negative=True, detaches=("x", "direction"), double_backward=False),
        expected_failed_checks={"gradcheck": "the prediction and the direction are held constant"},
        name="vat",
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def net(seed: int = 0) -> nn.Module:
    return conv(seed).eval()


def inputs(n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, d = torch.randn(2, n, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, d


@pytest.mark.parametrize("iterations", [1, 3])
def test_it_is_the_power_iteration_on_the_hessian(iterations: int) -> None:
    module, (x, d) = net(), inputs()
    weights: dict[str, Tensor] = dict(module.named_parameters())

    def with_weights(loss: Callable[..., Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
        fn = lambda weights: lambda x: torch.func.functional_call(module, weights, (x,))  # noqa: E731
        return lambda weights: loss(fn(weights), x, d, radius=0.7, iterations=iterations)

    slopes, value = torch.func.grad_and_value(with_weights(vat))(weights)
    wanted = with_weights(slow)(weights)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=0)
    theirs = torch.autograd.grad(wanted, list(weights.values()))
    torch.testing.assert_close(list(slopes.values()), list(theirs), rtol=1e-9, atol=1e-12)


def peer(module: nn.Module, x: Tensor, d: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The perturbation by pytorch-adapt, which draws its start itself."""
    loss = theirs("pytorch_adapt.layers", "VATLoss")
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: d.clone())
    return loss.get_perturbation(x, module(x).detach(), module)


def test_beside_pytorch_adapt(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (x, d) = net(), inputs()
    r = peer(module, x, d, monkeypatch)
    wanted = divergence(module(x), module(x + r)) / len(x)
    assert vat(module, x, d).item() == pytest.approx(wanted.item(), rel=1e-6)  # ξ is 1e-6


def angle(one: Tensor, other: Tensor) -> float:
    return F.cosine_similarity(F.normalize(one.flatten(1).double()), F.normalize(other.flatten(1))).mean().item()


def test_in_float32_the_peers_direction_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 32), nn.Tanh(), nn.Linear(32, 10))
    x, d = torch.rand(2, 4, 3, 32, 32, generator=generator)
    found: list[Tensor] = []

    def seen(x: Tensor) -> Tensor:
        found.append(x.detach())
        return module(x)

    vat(seen, x, d - 0.5)
    ours = found[-1] - x
    other = peer(module, x, d - 0.5, monkeypatch)
    precise = nn.Sequential(*module).double()
    exact = peer(precise, x.double(), (d - 0.5).double(), monkeypatch)
    assert angle(ours, exact) > 0.999
    assert angle(other, exact) < 0.5


def test_a_net_that_does_not_move_costs_nothing() -> None:
    x, d = torch.randn(2, 3, 4)
    assert vat(lambda x: 0 * x, x, d).item() == 0
    assert vat(lambda x: 1e3 * x, x, d, radius=0.1).isfinite()
    slope = torch.func.grad(lambda w: vat(lambda x: x * w, x, d))(torch.tensor(0.0))
    assert slope.isfinite()


def test_attention_by_the_kernel_of_formulas() -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x).mean(1)

    x, d = torch.randn(2, 3, 5, 4)
    with sdpa_kernel(SDPBackend.MATH):
        assert vat(attend, x, d) > 0


def test_what_is_refused() -> None:
    x = torch.zeros(3, 2)
    refused(lambda: vat(lambda x: x, x, torch.zeros(3, 4)), "vat: wanted floating inputs", "direction")
    norm = torch.nn.BatchNorm1d(x.shape[1], dtype=x.dtype)
    refused(lambda: vat(norm, x, x), "vat: the net writes into tensors of its own", "eval mode", "tt.functional")
    assert vat(norm.eval(), x, x).isfinite()
    refused(
        lambda: vat(lambda x: x, x, x, iterations=0), "vat: wanted a whole number of at least 1 for iterations, got 0"
    )
    refused(lambda: vat(lambda x: x[:, 0], x, x), "vat: wanted logits")
