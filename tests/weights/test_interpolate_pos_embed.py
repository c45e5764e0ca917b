"""Position embeddings: timm's numbers and torchvision's, and cubic convolution written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import interpolate_pos_embed, interpolate_pos_embed_corners

timm = pytest.importorskip("timm.layers")


def table(tokens: int, dtype: torch.dtype = torch.float64, d: int = 5) -> Tensor:
    return torch.randn(1, tokens, d, generator=torch.Generator().manual_seed(tokens), dtype=dtype)


def cubic(x: float, a: float) -> float:
    """Keys's kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def antialiased(old: int, new: int) -> Tensor:
    """One axis: the kernel is stretched if the grid gets coarser, cut at the edge, and its weights add up to 1."""
    stretch = max(old / new, 1.0)
    rows = []
    for i in range(new):
        centre = (i + 0.5) * old / new
        row = torch.tensor([cubic((k + 0.5 - centre) / stretch, -0.5) for k in range(old)], dtype=torch.float64)
        rows.append(row / row.sum())
    return torch.stack(rows)


def cornered(old: int, new: int) -> Tensor:
    """One axis: the ends lie on the ends, and beyond them the last number goes on."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = i * (old - 1) / (new - 1) if new > 1 else 0.0
        for k in range(int(at) - 1, int(at) + 3):
            matrix[i, min(max(k, 0), old - 1)] += cubic(k - at, -0.75)
    return matrix


def slow(
    axis: Callable[[int, int], Tensor], x: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int
) -> Tensor:
    image = x[0, prefix:].reshape(*old, -1)
    image = torch.einsum("hi,wj,ijd->hwd", axis(old[0], new[0]), axis(old[1], new[1]), image)
    return torch.cat([x[0, :prefix], image.reshape(new[0] * new[1], -1)])[None]


GRIDS = [((3, 3), (5, 5)), ((4, 4), (3, 3)), ((3, 4), (5, 2)), ((2, 6), (4, 3)), ((6, 6), (6, 4)), ((1, 1), (2, 3))]


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_as_timm(old: tuple[int, int], new: tuple[int, int], prefix: int) -> None:
    map = interpolate_pos_embed("pos", prefix_tokens=prefix, grid=new, old_grid=old)
    for dtype, room in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        x = table(old[0] * old[1] + prefix, dtype)
        found = map.apply({"pos": x}, {})["pos"]
        torch.testing.assert_close(
            found.double(), slow(antialiased, x.double(), old, new, prefix), rtol=room, atol=room
        )
        peer = timm.resample_abs_pos_embed(x, list(new), list(old), prefix)
        torch.testing.assert_close(found, peer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_corners(old: tuple[int, int], new: tuple[int, int]) -> None:
    x = table(old[0] * old[1] + 1)
    found = interpolate_pos_embed_corners("pos", grid=new, old_grid=old).apply({"pos": x}, {})["pos"]
    torch.testing.assert_close(found, slow(cornered, x, old, new, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("old", "new"), [(3, 5), (6, 4), (14, 16)])
def test_corners_as_torchvision(old: int, new: int) -> None:
    peer: Any = pytest.importorskip("torchvision.models.vision_transformer")
    for dtype in (torch.float64, torch.float32):
        src = {"encoder.pos_embedding": table(old**2 + 1, dtype), "class_token": torch.ones(1, 1, 5)}
        wanted = peer.interpolate_embeddings(16 * new, 16, dict(src))
        found = interpolate_pos_embed_corners(grid=(new, new)).apply(src, {})
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


TRIALS = [
    weight_map_trial(
        interpolate_pos_embed(),
        {"pos_embed": table(1 + 9), "norm": torch.ones(5)},
        {"pos_embed": table(1 + 16), "norm": torch.ones(5)},
        reference=lambda src, like: {**src, "pos_embed": slow(antialiased, src["pos_embed"], (3, 3), (4, 4), 1)},
        name="interpolate_pos_embed",
        examples=4,
    ),
    weight_map_trial(
        interpolate_pos_embed_corners(prefix_tokens=(2, 0), grid=(2, 3), old_grid=(3, 2)),
        {"encoder.pos_embedding": table(2 + 6)},
        {"encoder.pos_embedding": table(6)},
        reference=lambda src, like: {name: slow(cornered, x[:, 2:], (3, 2), (2, 3), 0) for name, x in src.items()},
        verbatim=False,
        name="corners",
        examples=4,
    ),
]


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[0], only=["one-graph"]).failed


@pytest.mark.parametrize(("have", "want"), [(1, 0), (2, 1), (0, 1), (1, 3), (2, 2)])
def test_prefix_tokens_that_one_side_has(have: int, want: int) -> None:
    x = table(9 + have)
    for side in (3, 4):
        like = {"pos_embed": table(side * side + want)}
        map = interpolate_pos_embed(prefix_tokens=(have, want))
        found = map.apply({"pos_embed": x}, like)["pos_embed"]
        both = min(have, want)
        assert torch.equal(found[:, :both], x[:, :both])
        assert not found[:, both:want].any()
        wanted = slow(antialiased, x[:, have:], (3, 3), (side, side), 0)
        torch.testing.assert_close(found[:, want:], wanted, rtol=1e-9, atol=1e-9)
        assert not map.plan({"pos_embed": x}, like).mismatched


def test_other_forms() -> None:
    image = torch.randn(1, 3, 4, 5)
    like = {"a": torch.ones(26, 5), "b": torch.ones(1, 5, 6, 5)}
    src = {"a": table(10)[0], "b": image}
    new = interpolate_pos_embed(["a", "b"]).apply(src, like)
    torch.testing.assert_close(new["a"], slow(antialiased, table(10), (3, 3), (5, 5), 1)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(new["b"], timm.resample_abs_pos_embed_nhwc(image, [5, 6]), rtol=1e-6, atol=1e-6)


def test_a_grid_that_is_right_is_passed_on() -> None:
    src = {"pos_embed": table(10)}
    for map in (interpolate_pos_embed(grid=(3, 3)), interpolate_pos_embed()):
        assert map.apply(src, src)["pos_embed"] is src["pos_embed"]
        assert map.plan(src, src).made["pos_embed"] == tt.Made(("pos_embed",))
    turned = interpolate_pos_embed(prefix_tokens=0, grid=(2, 8), old_grid=(4, 4)).apply({"pos_embed": table(16)}, {})
    assert not torch.equal(turned["pos_embed"], table(16))  # as many tokens, and another grid


def test_half_precision_is_computed_in_float32() -> None:
    x = table(10, torch.float32).half()
    found = interpolate_pos_embed("pos", grid=(4, 4)).apply({"pos": x}, {})["pos"]
    assert torch.equal(found, interpolate_pos_embed("pos", grid=(4, 4)).apply({"pos": x.float()}, {})["pos"].half())


def test_a_net_for_larger_images() -> None:
    """A net that timm makes for one size, loaded from another."""
    models = pytest.importorskip("timm.models")
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    small, large = (models.VisionTransformer(img_size=size, **options) for size in (64, 96))
    map = tt.weights.chain(interpolate_pos_embed(), tt.weights.match())
    plan = tt.weights.transfer(small.state_dict(), large, map)
    assert plan.made["pos_embed"].how == "grid 4x4 -> 6x6, bicubic"
    peer = models.vision_transformer.checkpoint_filter_fn(small.state_dict(), large)
    torch.testing.assert_close(dict(large.state_dict()), peer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("options", "like", "message"),
    [
        ({"name": "pos"}, 17, "pattern 'pos' matches no source"),
        ({}, 0, "the target has no 'pos_embed', and grid= is not given; there are: head"),
        (
            {"prefix_tokens": 0},
            17,
            r"has 10 tokens after 0, no square; give old_grid=.*; with 1 prefix tokens it would",
        ),
        ({}, 18, r"the target's 'pos_embed' \(1, 18, 5\) float64 has 17 tokens after 1, no square; give grid=\(rows"),
        ({"old_grid": (2, 4)}, 17, r"has 9 tokens after 1, no grid of \(2, 4\)"),
        ({"name": "bias"}, 17, r"wanted the source's 'bias' as \(1, tokens, d\), .* got \(5,\)"),
        ({"name": "image", "prefix_tokens": 2}, 17, r"'image' \(1, 3, 3, 5\) float32 has no place for prefix tokens"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], like: int, message: str, dry: bool) -> None:
    map = interpolate_pos_embed(**options)
    src = {"pos_embed": table(10), "bias": torch.ones(5), "image": torch.ones(1, 3, 3, 5)}
    target = {"pos_embed": table(like)} if like else {"head": torch.ones(1)}
    with pytest.raises(TransferError, match=f"interpolate_pos_embed: .*{message}"):
        (map.plan if dry else map.apply)(src, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix_tokens": -1}, "wanted no or more prefix tokens, got -1"),
        ({"grid": (0, 3)}, r"wanted a grid as \(rows, columns\), got \(0, 3\)"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TransferError, match=f"interpolate_pos_embed_corners: {message}"):
        interpolate_pos_embed_corners(**options)
