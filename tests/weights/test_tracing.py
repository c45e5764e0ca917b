"""What a trace knows of activations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttransfer._errors import TransferError
from ttransfer.weights._rules import RULES
from ttransfer.weights._tracing import Seen, Trace, spelled
from ttransfer.weights._weight_rules import WEIGHT_RULES


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def traced(net: nn.Module, *inputs: Tensor) -> tuple[Trace, Any]:
    trace = Trace(net, {**RULES, **WEIGHT_RULES})
    for x in inputs:
        trace.position(x)
    with torch.no_grad(), trace:
        return trace, net(*inputs)


def test_variables_are_made_for_the_axes_of_weights() -> None:
    trace, out = traced(Two(), torch.ones(4, 2))
    assert list(trace.axes) == [
        ("a.weight", 1),
        ("a.weight", 0),
        ("a.bias", 0),
        ("b.weight", 1),
        ("b.weight", 0),
        ("b.bias", 0),
    ]
    assert trace.reads == {("a.weight", 1), ("b.weight", 1)}
    ids = {key: trace.variables.of(labels).tolist() for key, labels in trace.axes.items()}
    assert ids["a.weight", 1] == [0, 0]  # the input's
    assert ids["a.weight", 0] == ids["a.bias", 0] == ids["b.weight", 1]
    assert trace.see(out).whole.tolist() == [ids["b.bias", 0]] * 4
    assert trace.path == []


def test_constants_are_told_from_what_has_places() -> None:
    net = Two()
    trace = Trace(net, {})
    assert trace.see(torch.full((2, 3), 7.0)).labels.tolist() == [[-1]]
    assert trace.see(torch.arange(3.0)).labels.tolist() == [0]
    assert trace.see(net.a.bias).labels.tolist() == [1, 2, 3]
    assert trace.see(net.a.weight).labels.tolist() == [[4, 5], [6, 7], [8, 9]]
    assert list(trace.entries) == ["a.weight"]


def test_seen_is_whole() -> None:
    assert Seen(torch.tensor([[1], [2]]), torch.Size([2, 3])).whole.tolist() == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (F.relu, "relu"),
        (torch.relu_, "relu"),
        (Tensor.__add__, "add"),
        (Tensor.add_, "add"),
        (Tensor.__iadd__, "iadd"),
        (Tensor.mT.__get__, "get mT"),
        (F.max_pool2d, "max_pool2d"),
        (F._max_pool2d, "max_pool2d"),
    ],
)
def test_names_of_functions(func: Any, name: str) -> None:
    assert spelled(func) == name


def test_what_concerns_nobody_needs_no_rule() -> None:
    class Own(Two):
        def forward(self, x: Tensor) -> Tensor:
            scale = torch.linalg.inv(torch.eye(3))[0, 0].cumsum(0)
            return self.b(self.a(x) * scale)

    traced(Own(), torch.ones(4, 2))


def test_what_has_no_channels_needs_no_rule() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(5, 3), nn.Embedding(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.tokens(ids) + self.positions((ids > 1).cumsum(-1))

    trace, out = traced(Counted(), torch.tensor([[1, 2, 3]]))
    assert trace.see(out).labels.shape == (1, 1, 3)


def test_the_place_is_named() -> None:
    class Sorted(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).sort(-1).values)

    with pytest.raises(TransferError, match="'sort' in the module itself has no rule"):
        traced(Sorted(), torch.ones(4, 2))
    with pytest.raises(TransferError, match="'sort' in '1' has no rule"):
        traced(nn.Sequential(nn.Linear(3, 2), Sorted()), torch.ones(4, 3))
