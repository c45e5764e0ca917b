"""The module that folded weights are for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ttransfer as tt
from tests.support.norms import randomised
from ttransfer._errors import TransferError
from ttransfer.weights import BnPair, bn_pairs, fold_bn, folded


class WithActivation(nn.BatchNorm2d):
    """As timm's: the activation is a part."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.PReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net() -> Any:
    return randomised(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), WithActivation(4), nn.Conv2d(4, 2, 1)))


def test_what_else_a_norm_did_stays() -> None:
    whole = net()
    fast: Any = folded(whole, bn_pairs(whole, X))
    assert list(fast.state_dict()) == ["0.weight", "0.bias", "1.act.weight", "2.weight", "2.bias"]
    torch.testing.assert_close(fast(X), whole(X), rtol=1e-9, atol=1e-9)
    assert fast[2].weight is not whole[2].weight
    assert whole[0].bias is None
    assert not fast.training


def test_its_state_is_what_the_map_gives() -> None:
    whole = net()
    pairs = bn_pairs(whole, X)
    new = fold_bn(pairs).apply(whole.state_dict(), {})
    torch.testing.assert_close(dict(folded(whole, pairs).state_dict()), new, rtol=0, atol=0)
    # A later checkpoint of the same net goes into the same module.
    later, fast = randomised(net(), 1), folded(whole, pairs)
    plan = tt.weights.transfer(later.state_dict(), fast, tt.weights.chain(fold_bn(pairs), tt.weights.match()))
    assert set(plan.unused.values()) == {"folded"}
    torch.testing.assert_close(fast(X), later(X), rtol=1e-9, atol=1e-9)


def test_as_a_teacher() -> None:
    whole = net()
    fast = tt.functional(folded(whole, bn_pairs(whole, X)), mode="eval")
    params, buffers = fast.init(torch.Generator())
    torch.testing.assert_close(fast.apply(params, buffers, X).value, whole(X).detach(), rtol=1e-9, atol=1e-9)


def test_on_the_meta_device() -> None:
    fast = folded(net().to("meta"), {"1": "0"})
    assert all(x.is_meta for x in fast.state_dict().values())
    assert "0.bias" in fast.state_dict()


class Doubled(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"bn": "0"}, "the module has no 'bn'"),
        ({"1": "conv"}, "the module has no 'conv'"),
        ({"1": "1"}, "'1' is a WithActivation, no convolution and no linear layer"),
        ({"1": BnPair("0", 1e-3)}, "'1' has eps 1e-05, and its pair says 0.001"),
    ],
)
def test_mistakes_are_named(pairs: Any, message: str) -> None:
    with pytest.raises(TransferError, match=f"folded: {message}"):
        folded(net(), pairs)


def test_a_norm_that_does_something_else() -> None:
    whole = nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(4))
    with pytest.raises(TransferError, match="folded: '1' is a Doubled, which does something else than to normalise"):
        folded(whole, {"1": "0"})
