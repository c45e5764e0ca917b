"""How channels go through operations without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.weights._rules import RULES
from ttransfer.weights._tracing import Trace

NAMES = "abcdefghijklmnopqrstuvwxyz"


class Net(nn.Module):
    """Two vectors of variables, which come as (2, 4, 3) and (2, 4, 3) activations with channels in the middle."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run, self.one, self.two = run, nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self) -> Any:
        one, two = (x.reshape(1, 4, 1).expand(2, 4, 3) for x in (self.one, self.two))
        return self.run(one, two)


def letters(run: Callable[..., Any], axis: int = 1) -> str:
    """The channels along an axis of the result: a-d and e-h, B for sums of some, * for places, . for constants."""
    net = Net(run)
    trace = Trace(net, RULES)
    trace.see(net.one), trace.see(net.two)
    with torch.no_grad(), trace:
        out = net()
    labels = trace.see(out).labels
    if any(size > 1 for at, size in enumerate(labels.shape) if at != axis % labels.ndim):
        return "elsewhere"
    row = labels.movedim(axis, -1).reshape(-1).tolist()
    told = "".join("." if i < 0 else "*" if i == 0 else NAMES[i - 1] if i < 9 else "B" for i in row)
    return told + ("" if len(row) > 1 else f"x{out.shape[axis]}")


CASES: list[tuple[Any, str]] = [
    (lambda x, y: x.relu() * 2 + 1, "abcd"),
    (lambda x, y: 1 - torch.tanh(x) / 3, "abcd"),
    (lambda x, y: x + y, "abcd"),  # which are e-h too, by now
    (lambda x, y: x * torch.ones(3), "abcd"),
    (lambda x, y: x * torch.arange(3.0), "abcd"),
    (lambda x, y: x * torch.arange(4.0)[:, None], "*x4"),
    (lambda x, y: x + x.flip(1), "abba"),
    (lambda x, y: torch.where(x > 0, x, y * 0.1), "abcd"),
    (lambda x, y: x.clone().add_(y), "abcd"),
    (lambda x, y: torch.cat([x, y], 1), "abcdefgh"),
    (lambda x, y: torch.cat([x, torch.zeros(2, 2, 3)], 1), "abcd.."),
    (lambda x, y: torch.cat([x, torch.arange(6.0).reshape(1, 2, 3).expand(2, 2, 3)], 1), "abcd**"),
    (lambda x, y: torch.stack([x, y], 2).flatten(1, 2), "aebfcgdh"),
    (lambda x, y: x[:, 1:3], "bc"),
    (lambda x, y: x[:, [3, 0]], "da"),
    (lambda x, y: x.index_select(1, torch.tensor([2, 2])), "cx2"),
    (lambda x, y: x.chunk(2, 1)[1], "cd"),
    (lambda x, y: x.unbind(1)[2].unsqueeze(1), "cx1"),
    (lambda x, y: x.roll(1, 1), "dabc"),
    (lambda x, y: x.reshape(2, 2, 2, 3).transpose(1, 2).flatten(1, 2), "acbd"),
    (lambda x, y: x.flatten(1), "aaabbbcccddd"),
    (lambda x, y: x.mT.reshape(2, 12), "abcdabcdabcd"),
    (lambda x, y: F.pad(x, (1, 1)), "abcd"),
    (lambda x, y: F.pad(x, (0, 0, 1, 1)), ".abcd."),
    (lambda x, y: F.max_pool1d(x, 2), "abcd"),
    (lambda x, y: F.adaptive_avg_pool1d(x, 1), "abcd"),
    (lambda x, y: F.interpolate(x, scale_factor=2.0), "abcd"),
    (lambda x, y: F.adaptive_avg_pool1d(x.mT, 1), "*x3"),  # along the channels
    (lambda x, y: x.mean(2), "abcd"),
    (lambda x, y: x.amax((0, 2), keepdim=True), "abcd"),
    (lambda x, y: x.sum(1, keepdim=True), "*x1"),
    (lambda x, y: x / x.norm(dim=1, keepdim=True), "abcd"),
    (lambda x, y: x.softmax(1), "abcd"),
    (lambda x, y: F.normalize(x), "abcd"),
    (lambda x, y: x * y.mean((1, 2), keepdim=True), "abcd"),
    (lambda x, y: x * y.mean(2, keepdim=True).sigmoid(), "abcd"),
    (lambda x, y: F.glu(torch.cat([x, y], 1), 1), "abcd"),
    (lambda x, y: x.reshape(2, 2, 2, 3).sum(2), "BB"),  # a label for each half
    (lambda x, y: torch.zeros_like(x) + 1, ".x4"),
    (lambda x, y: F.group_norm(x, 2), "abab"),
    (lambda x, y: F.group_norm(x, 1), "abcd"),
    (lambda x, y: F.instance_norm(x), "abcd"),
    (lambda x, y: F.layer_norm(x.mT, (4,)).mT, "abcd"),
    (lambda x, y: F.layer_norm(x, (3,)), "abcd"),
    (torch.maximum, "abcd"),
    (torch.max, "abcd"),
    (lambda x, y: x.max(2).values, "abcd"),
    (lambda x, y: x.var(2, keepdim=True), "abcd"),
    (lambda x, y: torch.cat([x.sum(1, keepdim=True), x], 1), "*abcd"),
]


@pytest.mark.parametrize(("run", "wanted"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_where_channels_go(run: Callable[..., Any], wanted: str) -> None:
    assert letters(run) == wanted


def test_a_weight_along_places_stays() -> None:
    net = nn.LayerNorm(3)
    holder = Net(lambda x, y: F.layer_norm(x, (3,), net.weight, net.bias))
    holder.norm = net
    trace = Trace(holder, RULES)
    with torch.no_grad(), trace:
        holder()
    assert trace.variables.of(trace.axes["norm.weight", 0]).tolist() == [0, 0, 0]


def test_parts_of_a_sum_belong_to_it() -> None:
    net = Net(lambda x, y: x.reshape(2, 2, 2, 3).sum(2))
    trace = Trace(net, RULES)
    trace.see(net.one)
    with torch.no_grad(), trace:
        out = net()
    first, second = trace.see(out).whole[0, :, 0].tolist()
    ((children, parents),) = trace.nested
    assert dict(zip(children.tolist(), parents.tolist(), strict=True)) == {1: first, 2: first, 3: second, 4: second}
    assert [mixing.apart for _, mixing in trace.touched if mixing] == [True]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x, y: x[:, :, None] * y[:, None], "'mul' .* makes a table of channels by channels"),
        (lambda x, y: F.pad(x.mT, (1, 1), mode="reflect"), "'pad' .* repeats channels, in mode 'reflect'"),
        (lambda x, y: x.cumsum(1), "'cumsum' .* has no rule"),
        (lambda x, y: torch.einsum("bcn,bcn->bn", x, y), "'einsum' .* has no rule"),
    ],
)
def test_what_cannot_be_followed_is_refused(run: Callable[..., Any], message: str) -> None:
    with pytest.raises(TransferError, match=message):
        letters(run)
