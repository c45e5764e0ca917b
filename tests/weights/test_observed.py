"""What a run writes down: every tensor once, as it was, whatever is written on it later."""

from __future__ import annotations

import torch
from torch import nn

from ttransfer.weights._observed import gap, mean_size, observed


def test_what_goes_in_and_out_is_written_down_once() -> None:
    conv = nn.Conv2d(1, 2, 3)
    net = nn.Sequential(conv, nn.Identity(), nn.ReLU(inplace=True))
    x = torch.randn(2, 1, 4, 4)
    ran = observed("first", net, (x,), 1e-6, None)
    assert [one.name for one in ran.seen] == ["the input", "0", "2"]
    assert torch.equal(ran.seen[0].value, x)
    assert torch.equal(ran.seen[1].value, conv(x))
    assert torch.equal(ran.seen[2].value, conv(x).relu())
    assert [call.name for call in ran.calls] == ["0"]
    live = observed("first", net, (x,), 1e-6, {"1", "2"}, live=True)
    assert [call.name for call in live.calls] == ["1", "2"]
    assert torch.equal(live.calls[0].value, conv(x))
    assert live.calls[0].value.requires_grad
    assert not live.seen


def test_gap() -> None:
    x, y = torch.tensor([2.0, -4.0]), torch.tensor([[3.0], [-4.0]])
    assert gap(x, y) == 0.25
    assert gap(x, y[:1]) == float("inf")
    assert gap(0 * x, 0 * x) == 0
    assert gap(0 * x, x) == float("inf")
    assert mean_size(x) == 3
