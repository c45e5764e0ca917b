"""Other shapes for the same numbers: layer scales, 1x1 convolutions, and convolutions in place of flattened maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import chain, match, permute_layout, rename, reshape, transfer

SOURCE = {"gamma": torch.ones(4, 1, 1), "fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}
LIKE = {"gamma": torch.ones(4), "fc.weight": torch.ones(3, 4, 1, 1), "fc.bias": torch.ones(3)}
TRIALS = (
    weight_map_trial(
        reshape(".*"),
        SOURCE,
        LIKE,
        reference=lambda src, like: {
            "gamma": src["gamma"][:, 0, 0],
            "fc.weight": src["fc.weight"][:, :, None, None],
            "fc.bias": src["fc.bias"],
        },
        name="reshape to the target",
        verbatim=True,
        examples=4,
    ),
    weight_map_trial(
        reshape("fc.weight", (-1, 2, 2)),
        SOURCE,
        {**LIKE, "fc.weight": torch.ones(3, 2, 2)},
        reference=lambda src, like: {**src, "fc.weight": torch.stack(src["fc.weight"].split(2, 1), 1)},
        name="reshape to a shape",
        verbatim=True,
        examples=4,
    ),
)  # fmt: skip


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[1], only=["one-graph"]).failed


@pytest.mark.parametrize(
    ("there", "back", "shape", "new"),
    [
        ((-1,), (-1, 1, 1), (5, 1, 1), (5,)),
        ((-1, 6, 1, 1), (-1, 6), (4, 6), (4, 6, 1, 1)),
        ((4, 2, 3, 3), (4, -1), (4, 18), (4, 2, 3, 3)),
        ((1,), (), (), (1,)),
        ((0, 3), (3, 0), (3, 0), (0, 3)),
    ],
)
def test_round_trip(
    there: tuple[int, ...], back: tuple[int, ...], shape: tuple[int, ...], new: tuple[int, ...]
) -> None:
    src = {"w": torch.randn(shape)}
    turned = reshape("w", there).apply(src, {})
    assert turned["w"].shape == new
    assert torch.equal(reshape("w", back).apply(turned, {})["w"], src["w"])
    by_target = reshape("w").apply(turned, src) if [n for n in shape if n != 1] == [n for n in new if n != 1] else src
    assert torch.equal(by_target["w"], src["w"])


def test_what_is_not_named_or_not_in_the_target_passes() -> None:
    new = reshape(["gamma", "old.*"]).apply({**SOURCE, "old.weight": torch.ones(7)}, LIKE)
    assert new["fc.weight"] is SOURCE["fc.weight"]
    assert new["old.weight"].shape == (7,)
    assert new["gamma"].shape == (4,)


def test_tied_weights_stay_one() -> None:
    one = torch.randn(2, 3)
    new = reshape(".*", (3, 2)).apply({"a": one, "b": one}, {})
    assert new["a"] is new["b"]


def test_plan() -> None:
    plan = reshape(".*").plan(SOURCE, LIKE)
    assert [one.how for one in plan.made.values()] == ["(4, 1, 1) -> (4,)", "(3, 4) -> (3, 4, 1, 1)", ""]
    assert not plan.mismatched
    assert reshape("gamma").plan(SOURCE, LIKE).mismatched == {"fc.weight": "source (3, 4), target (3, 4, 1, 1)"}


@pytest.mark.parametrize("shape", [(-1, -1), (-2, 3)])
def test_no_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(TransferError, match=r"reshape: .* is no shape; at most one axis may be -1"):
        reshape("fc", shape)


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("patterns", "shape", "like", "message"),
    [
        ("gama", None, LIKE, "reshape: pattern 'gama' matches no source; did you mean 'gamma'"),
        (
            "gamma",
            None,
            {"gamma_": torch.ones(4)},
            r"reshape: the target has no 'gamma', and shape= is not given; rename it first; did you mean 'gamma_'",
        ),
        ("fc.weight", (5, -1), LIKE, r"'fc.weight' .* has 12 entries, and \(5, -1\) is for a multiple of 5"),
        ("fc.weight", (0, -1), LIKE, r"has 12 entries, and \(0, -1\) is for a multiple of 0"),
        ("fc.weight", (3, 5), LIKE, r"'fc.weight' \(3, 4\) float32 has 12 entries, and \(3, 5\) is for 15"),
        (
            "fc.weight",
            None,
            {"fc.weight": torch.ones(4, 3)},
            r"reshape: 'fc.weight' \(3, 4\) for a target of \(4, 3\) does more than add or remove axes of length 1; "
            r"if the numbers are in that order, say so with shape=\(4, 3\), and if not use tt.weights.permute_layout",
        ),
        ("fc.weight", None, {"fc.weight": torch.ones(3, 2, 2)}, r"say so with shape=\(3, 2, 2\)"),
        (
            "fc.weight",
            None,
            {"fc.weight": torch.ones(3, 5)},
            r"reshape: 'fc.weight' \(3, 4\) has 12 entries, and its target \(3, 5\) has 15",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    patterns: str, shape: tuple[int, ...] | None, like: dict[str, Any], message: str, dry: bool
) -> None:
    mapping = reshape(patterns, shape)
    with pytest.raises(TransferError, match=message):
        (mapping.plan if dry else mapping.apply)(SOURCE, like)


def scrambled(module: nn.Module, seed: int) -> nn.Module:
    """Other numbers everywhere, so that no two layers are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if x.is_floating_point():
                noise = torch.randn(x.shape, generator=generator)
                x.copy_(noise.abs() + 0.5 if "var" in name else noise * (0.5 / max(x[0].numel(), 1) ** 0.5))
    return module.eval()


def same_function(a: nn.Module, b: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(a(x), b(x), rtol=1e-5, atol=1e-5)


def test_convnext_of_torchvision_and_of_timm() -> None:
    torchvision = pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    block = torchvision.models.convnext.CNBlockConfig
    blocks = [block(8, 12, 1), block(12, 16, 2), block(16, 20, 1), block(20, None, 1)]
    sizes = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 20)}
    first, other = (scrambled(torchvision.models.convnext.ConvNeXt(blocks, num_classes=5), s) for s in (0, 1))
    theirs = scrambled(timm.models.convnext.ConvNeXt(**sizes, num_classes=5), 2)
    x = torch.randn(2, 3, 64, 64)
    names = rename(r"(.*)\.layer_scale", r"\1.gamma")
    plan = transfer(first.state_dict(), theirs, chain(names, reshape(r".*\.gamma", (-1,)), match()))
    assert plan.made["stages.0.blocks.0.gamma"].how == "(8, 1, 1) -> (8,)"
    same_function(first, theirs, x)
    back = rename(r"(.*)\.gamma", r"\1.layer_scale")
    transfer(theirs.state_dict(), other, chain(back, reshape(r".*\.layer_scale", (-1, 1, 1)), match()))
    same_function(theirs, other, x)


def test_mobilenetv3_of_torchvision_and_of_timm() -> None:
    torchvision = pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    first, other = (scrambled(torchvision.models.mobilenet_v3_small(num_classes=7), seed) for seed in (0, 1))
    theirs = scrambled(timm.create_model("mobilenetv3_small_100", num_classes=7, bn_eps=1e-3), 2)
    x = torch.randn(2, 3, 64, 64)
    names = rename({"classifier.0": "conv_head", "classifier.3": "classifier"})
    plan = transfer(first.state_dict(), theirs, chain(names, reshape("conv_head.weight"), match()))
    assert plan.made["conv_head.weight"].how == "(1024, 576) -> (1024, 576, 1, 1)"
    same_function(first, theirs, x)
    back = rename({"conv_head": "classifier.0", "classifier": "classifier.3"})
    transfer(theirs.state_dict(), other, chain(back, reshape("classifier.0.weight"), match()))
    same_function(theirs, other, x)


def test_head_of_a_vgg() -> None:
    timm = pytest.importorskip("timm")
    linear = scrambled(
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 7 * 7, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU()), 0
    )
    theirs = scrambled(timm.models.vgg.ConvMlp(6, 10), 1)
    load = chain(rename({"1": "fc1", "3": "fc2"}), reshape("fc1.weight", (-1, 6, 7, 7)), reshape("fc2.weight"), match())
    transfer(linear.state_dict(), theirs, load)
    x = torch.randn(2, 6, 7, 7)
    same_function(linear, nn.Sequential(theirs, nn.Flatten()).eval(), x)
    # What flattens its map channels last has them in another order: that is no reshape alone.
    turned = chain(reshape("w", (-1, 7, 7, 6)), permute_layout("w", "OHWI->OIHW"))
    conv = theirs.state_dict()["fc1.weight"]
    last = {"w": conv.permute(0, 2, 3, 1).flatten(1)}
    assert torch.equal(turned.apply(last, {})["w"], conv)
