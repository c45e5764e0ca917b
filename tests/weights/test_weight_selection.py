"""Evenly spaced parts of a larger model."""

from __future__ import annotations

import numpy
import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import transfer, weight_selection
from ttransfer.weights._weight_selection import even_indices

LARGE = {
    "stem.weight": torch.randn(6, 3, 3, 3),
    "blocks.0.fc.weight": torch.randn(6, 8),
    "blocks.0.scale": torch.randn(6),
    "blocks.1.fc.weight": torch.randn(6, 8),
    "head.weight": torch.randn(5, 6),
}
SMALL = {
    "stem.weight": torch.randn(4, 3, 3, 3),
    "blocks.0.fc.weight": torch.randn(4, 4),
    "blocks.0.scale": torch.randn(4),
    "head.weight": torch.randn(2, 4),
}

TRIALS = (
    weight_map_trial(
        weight_selection(skip=r"head\..*"), LARGE, SMALL, verbatim=False, examples=4, name="weight_selection"
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check) -> None:
    check()


@pytest.mark.parametrize(
    ("n", "k"), [(n, k) for n in (1, 2, 7, 12, 384, 768, 1536) for k in (1, 2, 3, 5, 192) if k <= n]
)
def test_which_are_taken(n: int, k: int) -> None:
    wanted = [j * (n // k) for j in range(k)] if n % k == 0 else numpy.round(numpy.linspace(0, n - 1, k)).tolist()
    assert even_indices(n, k).tolist() == wanted


def test_every_axis_is_selected() -> None:
    new = weight_selection(skip=r"head\..*").apply(LARGE, SMALL)
    rows = torch.tensor([0, 2, 3, 5])
    assert torch.equal(new["stem.weight"], LARGE["stem.weight"][rows])
    assert torch.equal(new["blocks.0.fc.weight"], LARGE["blocks.0.fc.weight"][rows][:, ::2])
    assert new["head.weight"] is SMALL["head.weight"]
    assert list(new) == list(SMALL)


def test_plan() -> None:
    plan = weight_selection(skip=r"head\..*").plan(LARGE, {**SMALL, "extra": torch.ones(2)})
    assert plan.made["blocks.0.fc.weight"].how == "axis 0: 6 -> 4, evenly; axis 1: 8 -> 4, evenly"
    assert (plan.kept, plan.missing) == (("head.weight",), ("extra",))
    assert plan.unused == {"blocks.1.fc.weight": "the target has no such layer", "head.weight": "skipped"}


def test_mistakes_are_named() -> None:
    with pytest.raises(
        TransferError, match=r"weight_selection: 'w' is \(3, 2\) in the source, too small for a target of"
    ):
        weight_selection().apply({"w": torch.ones(3, 2)}, {"w": torch.ones(4, 2)})
    with pytest.raises(TransferError, match=r"'w' is \(3,\) in the source"):
        weight_selection().apply({"w": torch.ones(3)}, {"w": torch.ones(3, 1)})
    with pytest.raises(TransferError, match=r"weight_selection: allow='hed.*' matches no target and no source"):
        weight_selection(skip="hed.*").apply(LARGE, SMALL)


def test_integers_of_another_shape_are_the_targets_own() -> None:
    src = {"index": torch.arange(9).reshape(3, 3), "mask": torch.ones(3, dtype=torch.bool), "count": torch.tensor(7)}
    like = {"index": torch.arange(4).reshape(2, 2), "mask": torch.zeros(2, dtype=torch.bool), "count": torch.tensor(0)}
    plan = weight_selection().plan(src, like)
    assert plan.kept == ("index", "mask")
    assert plan.unused == dict.fromkeys(("index", "mask"), "integers of another shape: the target has its own")
    new = weight_selection().apply(src, like)
    assert new["index"] is like["index"]
    assert new["count"] is src["count"]


def test_swin_with_smaller_windows() -> None:
    timm = pytest.importorskip("timm")
    large, small = (
        timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=size, window_size=w, embed_dim=24, depths=(2, 2), num_heads=(2, 4)
        )
        for size, w in ((56, 7), (32, 4))
    )
    for net in (large, small):  # as releases had it before the table was left out of the state dict
        for part in net.modules():
            part._non_persistent_buffers_set.discard("relative_position_index")
    index = "layers.0.blocks.0.attn.relative_position_index"
    wanted = small.state_dict()[index].clone()
    plan = transfer(large.state_dict(), small, weight_selection(skip=r".*attn_mask|head.*"))
    assert index in plan.kept
    assert torch.equal(small.state_dict()[index], wanted)


def test_vit_tiny_from_vit_small() -> None:
    vit = pytest.importorskip("timm.models.vision_transformer").VisionTransformer
    options = {"img_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    large = vit(**options, embed_dim=48, depth=3, num_heads=6, num_classes=7)
    small = vit(**options, embed_dim=24, depth=2, num_heads=3, num_classes=4)
    plan = transfer(large.state_dict(), small, weight_selection(skip=r"head\..*"))
    assert plan.kept == ("head.weight", "head.bias")
    assert torch.equal(small.blocks[1].attn.qkv.weight, large.blocks[1].attn.qkv.weight[::2, ::2])
    assert torch.equal(small.pos_embed, large.pos_embed[..., ::2])
    assert {why for name, why in plan.unused.items() if "blocks.2" in name} == {"the target has no such layer"}
