"""Parts of a term's parameters, and normalisation by the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from tests.support.steps import refused
from ttransfer.terms._parts import batch_norm, keys_of, norm_layer, part, under, want_adapters


def test_parts_are_put_under_a_name_and_taken_out() -> None:
    own = {"weight": torch.ones(1), "0.bias": torch.zeros(1)}
    whole = {**under("a", own), **under("ab", {"weight": torch.zeros(2)})}
    assert sorted(whole) == ["a.0.bias", "a.weight", "ab.weight"]
    assert part(whole, "a") == own


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 4), (2, 3, 1, 1)])
def test_it_normalises_as_a_layer_in_training(shape: tuple[int, ...]) -> None:
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(batch_norm(dict(layer.named_parameters()), x), layer(x), rtol=1e-12, atol=1e-12)


def test_a_single_value_becomes_the_bias() -> None:
    own = norm_layer(torch.empty(0, dtype=torch.float64), 3)
    x = torch.randn(1, 3, dtype=torch.float64)
    two = torch.full((1, 3), 2.0, dtype=torch.float64)
    torch.testing.assert_close(batch_norm({**own, "bias": two[0]}, x), two, rtol=1e-12, atol=0)

    def value(x: Tensor) -> Tensor:
        return batch_norm(own, x).square().sum()

    assert torch.func.grad(value)(x).abs().max() < 1e-9


def test_keys_are_of_the_read_s_domain() -> None:
    assert keys_of("f", "net(source).fc:in") == "source:keys"
    assert keys_of("f", tt.read("target.x") | tt.detach) == "target:keys"
    refused(lambda: keys_of("f", "net:params"), "f: wanted a read of a domain's rows", "got 'net:params'")


CRITIC = tt.adapters.mlp(4)
FOUR = ("net(a)", "net(b)", "net(a)", "net(b)")
WANTING: dict[str, Callable[[Any], tt.Term]] = {
    "dann": lambda x: tt.terms.dann(*FOUR[:2], critic=x),
    "cdan": lambda x: tt.terms.cdan(*FOUR, critic=x),
    "cdan_e": lambda x: tt.terms.cdan_e(*FOUR, critic=x),
    "gvb": lambda x: tt.terms.gvb(*FOUR, critic=CRITIC, critic_bridge=x),
    "gvb_e": lambda x: tt.terms.gvb_e(*FOUR, critic=CRITIC, critic_bridge=x),
    "mdd": lambda x: tt.terms.mdd(*FOUR, adversary=x),
    "pada": lambda x: tt.terms.pada(*FOUR, "a.y", critic=x),
    "iwan": lambda x: tt.terms.iwan(*FOUR[:2], first=x, critic=CRITIC),
    "wdgrl": lambda x: tt.terms.wdgrl(*FOUR[:2], critic=x),
    "vid": lambda x: tt.terms.vid(*FOUR[:2], mean=x),
}


@pytest.mark.parametrize("name", WANTING)
def test_a_module_is_no_adapter(name: str) -> None:
    refused(
        lambda: WANTING[name](nn.Linear(4, 1)), f"{name}: wanted an Adapter for", "got Linear", "tt.adapters.module"
    )
    assert WANTING[name](CRITIC).fn is not None
    want_adapters(name, critic=tt.adapters.module(nn.Linear(4, 1)))
