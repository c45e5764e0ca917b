"""Two nets beside each other: the layer that was changed is the one that is found."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.weights import Comparison, compare, concatenate, rename, transfer
from ttransfer.weights import chain as chained


class Block(nn.Module):
    """A residual block with a shortcut of its own, which runs last."""

    def __init__(self, channels: int, after: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True) if after is None else after
        self.shortcut = nn.Conv2d(channels, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(y + self.shortcut(x))


def net(seed: int = 0, after: nn.Module | None = None) -> Any:
    torch.manual_seed(seed)
    whole: Any = nn.Sequential()
    whole.stem, whole.block, whole.pool = nn.Conv2d(3, 4, 3), Block(4, after), nn.AdaptiveAvgPool2d(1)
    whole.flat, whole.drop, whole.head = nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 5)
    with torch.no_grad():
        for name, x in whole.named_buffers():
            x.copy_(torch.rand(x.shape) + 0.5 if name.endswith("var") else x)
    return whole


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def changed(change: Callable[[Any], object]) -> Comparison:
    other = net()
    change(other)
    return compare(net(), other, X)


def at(other: nn.Module, name: str) -> nn.Module:
    return other.get_submodule(name)


def test_one_function() -> None:
    first = net().train()
    before = copy.deepcopy(first.state_dict())
    found = compare(first, net(), X)
    assert (found.agree, found.gap, found.first, found.why) == (True, 0.0, "", "")
    assert [row[:2] for row in found.layers][:2] == [("stem", "stem"), ("block.conv1", "block.conv1")]
    assert str(found) == "the outputs agree: relative difference 0; 7 of 7 layers agree one by one"
    # The nets are as they were: in their mode, without hooks, with their statistics.
    assert first.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in first.modules())
    assert all(torch.equal(x, before[name]) for name, x in first.state_dict().items())
    assert first.stem.weight.grad is None


@pytest.mark.parametrize("name", ["stem", "block.conv1", "block.bn1", "block.conv2", "block.shortcut", "head"])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_the_layer_whose_weights_differ(name: str, part: str) -> None:
    found = changed(lambda other: at(other, name).get_parameter(part).data.add_(1))
    assert (found.agree, found.first, found.other) == (False, name, name)
    assert found.why == f"its input agrees; its {part} differs"
    assert found.gap > 1e-2


def test_the_options_that_differ() -> None:
    found = changed(lambda other: setattr(at(other, "block.bn2"), "eps", 0.1))
    assert (found.first, found.other) == ("block.bn2", "block.bn2")
    assert found.why.startswith("its input agrees; BatchNorm2d(6, eps=1e-05")
    assert "eps=0.1" in found.why
    assert str(found).splitlines()[1:4] == [
        "block.conv1 = block.conv1 (0)",
        "block.bn1 = block.bn1 (0)",
        "block.conv2 = block.conv2 (0)",
    ]
    other = net()
    other.block.bn2.eps = 2e-5
    assert compare(net(), other, X, tolerance=1e-9).first == "block.bn2"
    assert compare(net(), other, X, tolerance=1e-3).agree
    assert compare(net(), other, X, dtype=None, tolerance=1e-3).agree


def test_what_comes_between_layers() -> None:
    found = compare(net(), net(after=nn.GELU()), X)
    assert (found.first, found.other) == ("block.conv2", "block.conv2")
    assert found.why.startswith("its input differs already")


def test_what_comes_after_the_last_layer() -> None:
    found = compare(net(), nn.Sequential(net(), nn.Softmax(1)), X)
    assert (found.agree, found.first, found.other) == (False, "", "")
    assert found.why.startswith("all layers agree: look at what comes after")
    assert str(found).splitlines()[-1].startswith("after the last layer: all layers agree")


def test_another_number_of_classes() -> None:
    other = net()
    other.head = nn.Linear(6, 9)
    found = compare(net(), other, X)
    assert (found.first, found.other, found.gap) == ("head", "", math.inf)
    assert found.why == "its input agrees, and the other net computes its output nowhere, nor another of that size"


class Attention(nn.Module):
    """Three matrices, or one of three rows of blocks; the numbers of the output are laid out as they are."""

    def __init__(self, names: tuple[str, ...], out: str) -> None:
        super().__init__()
        self.names, self.out = names, out
        for name in names:
            self.add_module(name, nn.Linear(12, 36 // len(names)))
        self.add_module(out, nn.Linear(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.cat([at(self, name)(x) for name in self.names], -1).chunk(3, -1)
        return at(self, self.out)(F.scaled_dot_product_attention(q, k, v))


def _with_head(part: nn.Module) -> Any:
    return nn.Sequential(OrderedDict[str, nn.Module](at=part, fc=nn.Linear(12, 3)))


def test_a_layer_without_a_counterpart_is_passed_over() -> None:
    three, one = Attention(("query", "key", "value"), "dense"), Attention(("qkv",), "proj")
    parts = [rf"{name}\.(.*)" for name in three.names]
    transfer(three.state_dict(), one, chained(concatenate(parts, r"qkv.\1"), rename({"dense": "proj"})))
    first, second = (_with_head(x) for x in (three, one))
    x = torch.randn(2, 4, 12)
    found = compare(first, second, x)
    assert (found.agree, found.first, found.other) == (False, "fc", "fc")
    assert [row[0] for row in found.layers if not row[1]] == ["at.query", "at.key", "at.value", "fc"]
    second.fc.load_state_dict(first.fc.state_dict())
    assert compare(first, second, x).agree


def test_a_norm_and_its_activation_in_one_module() -> None:
    class Both(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.relu_(super().forward(input))

    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    second: Any = nn.Sequential(OrderedDict[str, nn.Module](a=nn.Conv2d(3, 4, 3), b=Both(4), c=nn.Conv2d(4, 2, 3)))
    second.load_state_dict(dict(zip(second.state_dict(), first.state_dict().values(), strict=True)))
    with torch.no_grad():
        second.c.weight[0].mul_(2)
    for one, other, place in ((first, second, ("3", "c")), (second, first, ("c", "3"))):
        found = compare(one, other, X)
        assert (found.first, found.other) == place


def test_other_layouts() -> None:
    class Last(nn.Module):
        def __init__(self, conv: nn.Conv2d, norm: nn.LayerNorm) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(3, 4), norm
            self.fc.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.fc(x.movedim(1, -1))).mean((1, 2))

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(self.conv(x).flatten(2).mT, (4,)).mean(1)

    first = First()
    found = compare(first, Last(first.conv, first.norm), X)
    assert found.agree
    assert [row[:2] for row in found.layers] == [("conv", "fc")]


def test_names() -> None:
    torch.manual_seed(0)
    other = copy.deepcopy(net())
    other.block.conv2.bias.data += 1
    found = compare(net(), other, X, names={"stem": "stem", "block": "block", "pool": "pool"})
    assert [row[0] for row in found.layers] == ["stem", "block", "pool"]
    assert (found.first, found.other) == ("block", "block")
    assert found.layers[1][1] == ""
    assert math.isfinite(found.layers[1][2])


def test_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self, change: float) -> None:
            super().__init__()
            self.fc, self.change = nn.Linear(3, 3), change

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.sin(self.fc(x)) + self.change)

    first, second = Twice(0.0), Twice(1.0)
    second.load_state_dict(first.state_dict())
    for names in (None, {"fc": "fc"}):
        found = compare(first, second, torch.randn(2, 3), names=names)
        assert (found.first, found.other) == ("fc (call 2)", "fc (call 2)")
        assert found.why.startswith("its input differs already")


def test_one_layer_alone_and_integers() -> None:
    first = nn.Embedding(5, 3)
    assert compare(first, copy.deepcopy(first), torch.arange(5)).agree
    found = compare(first, nn.Embedding(5, 3), torch.arange(5))
    assert (found.first, found.why) == ("the net", "its input agrees; its weight differs")


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


A: Any = net()
IS = nn.Identity()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: compare(A.state_dict(), A, X), "compare: wanted two modules, and the first is OrderedDict"),
        (lambda: compare(A, cast(Any, F.relu), X), "compare: wanted two modules, and the second is function"),
        (lambda: compare(A, A, X, names={"stm": "stem"}), "the first module has no 'stm'; did you mean 'stem'"),
        (lambda: compare(A, A, X, names={"stem": "hed"}), "the second module has no 'hed'; did you mean 'head'"),
        (lambda: compare(A, A, X, names={"": "stem"}), "compare: the first module has no ''"),
        (
            lambda: compare(nn.ModuleDict({"a": IS}), A, X),
            r"compare: the first module cannot run on \[\(2, 3, 8, 8\) float64\]: NotImplementedError",
        ),
        (lambda: compare(A, A, X[:, :2]), r"first module cannot run on \[\(2, 2, 8, 8\) float64\]: RuntimeError: "),
        (lambda: compare(A, A, X, tolerance=-1.0), "compare: tolerance must be 0 or more, got -1.0"),
        (
            lambda: compare(IS, Noise(), X),
            "compare: the second module gives two answers to one input, in eval mode: it draws random numbers",
        ),
        (lambda: compare(IS, IS, X * torch.inf), "compare: the first module's output is not finite"),
        (lambda: compare(IS, Pair(), X), r"compare: the first gives \[.*\], and the second \[.*, .*\]"),
        (lambda: compare(IS, IS, X.long()), "gives .*, and no tensor of real numbers"),
    ],
)
def test_mistakes_are_named(use: Callable[[], object], message: str) -> None:
    with pytest.raises(TransferError, match=message):
        use()


def test_a_module_that_is_not_called() -> None:
    class Spare(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[0](input)

    other = Spare(net(), nn.Linear(2, 2))
    with pytest.raises(TransferError, match="compare: the first module does not call its '1'"):
        compare(other, net(), X, names={"1": "stem"})


def test_an_input_of_one_number() -> None:
    found = compare(nn.Linear(3, 4), nn.Linear(3, 4), torch.ones(1, 3))
    assert found.why == "its input agrees; its weight and bias differ"
