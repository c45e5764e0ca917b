"""Relative position biases: timm's numbers, torch's, and SciPy's interpolation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import resize_rel_pos, resize_rel_pos_geometric

timm = pytest.importorskip("timm.layers")
NAME = "attn.relative_position_bias_table"
WINDOWS = [((4, 4), (6, 6)), ((6, 6), (4, 4)), ((3, 5), (6, 4)), ((2, 2), (7, 7)), ((7, 7), (8, 8))]


def table(window: tuple[int, int], extra: int = 0, dtype: torch.dtype = torch.float64, heads: int = 3) -> Tensor:
    count = (2 * window[0] - 1) * (2 * window[1] - 1) + extra
    return torch.randn(count, heads, generator=torch.Generator().manual_seed(count), dtype=dtype)


def image(flat: Tensor, window: tuple[int, int]) -> Tensor:
    return flat.T.reshape(-1, 2 * window[0] - 1, 2 * window[1] - 1)


def places(old: int, new: int) -> list[float]:
    """Where the old offsets lie, from the authors' words: a geometric series that ends where the new one does."""
    low, high, q = 1.01, 1.5, 0.0
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if sum(q**i for i in range(old // 2)) > new // 2 else (q, high)
    half = [sum(q**i for i in range(k)) for k in range(1, old // 2 + 1)]
    return [-x for x in half[::-1]] + [0.0] + half


def bicubic(flat: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    size = [2 * n - 1 for n in new]
    return F.interpolate(image(flat, old)[None], size, mode="bicubic")[0].flatten(1).T


def geometric(flat: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """By SciPy; beyond the last place the bias stays what it is there."""
    interpolate = pytest.importorskip("scipy.interpolate")
    sizes = [(2 * o - 1, 2 * n - 1) for o, n in zip(old, new, strict=True)]
    axes = [places(*size) for size in sizes]
    at = [np.clip(np.arange(n) - n // 2, a[0], a[-1]) for (_, n), a in zip(sizes, axes, strict=True)]
    grid = np.stack(np.meshgrid(*at, indexing="ij"), -1)
    heads = [interpolate.RegularGridInterpolator(axes, head.numpy())(grid) for head in image(flat, old)]
    return torch.tensor(np.stack(heads)).flatten(1).T


CASES = [
    (resize_rel_pos, bicubic, timm.resize_rel_pos_bias_table_simple, 1e-9),
    (resize_rel_pos_geometric, geometric, timm.resize_rel_pos_bias_table, 1e-5),  # timm: in float32
]


# timm's interpolator warns.
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:.*input value tensor is non-contiguous")
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize(("old", "new"), WINDOWS)
@pytest.mark.parametrize(("make", "slow", "peer", "room"), CASES, ids=["bicubic", "geometric"])
def test_tables(
    make: Callable[..., WeightMap],
    slow: Callable[..., Tensor],
    peer: Callable[..., Tensor],
    room: float,
    old: tuple[int, int],
    new: tuple[int, int],
    extra: int,
) -> None:
    flat, shape = table(old, extra), tuple(table(new, extra).shape)
    map = make(window=new, old_window=old, extra_tokens=extra)
    found = map.apply({NAME: flat}, {})[NAME]
    offsets = flat[: len(flat) - extra]
    wanted = torch.cat([slow(offsets, old, new), flat[len(offsets) :]])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    if old[0] == old[1]:
        torch.testing.assert_close(found, peer(flat, new, shape), rtol=room, atol=room)
    # TensorFlow's MaxViT has them as images.
    if not extra:
        images = make(window=new).apply({NAME: image(flat, old)}, {})[NAME]
        torch.testing.assert_close(images, image(found, new), rtol=1e-12, atol=1e-12)


def whole(slow: Callable[..., Tensor], src: dict[str, Tensor]) -> dict[str, Tensor]:
    """SciPy's numbers have no gradient, and so these have none."""
    x = src[NAME].detach() if slow is geometric else src[NAME]
    fc = src["fc"].detach() if slow is geometric else src["fc"]
    return {"fc": fc, NAME: torch.cat([slow(x[:-1], (2, 2), (3, 3)), x[-1:]])}


TRIALS = [
    weight_map_trial(
        make(extra_tokens=1),
        {NAME: table((2, 2), 1), "fc": torch.ones(2)},
        {NAME: table((3, 3), 1), "fc": torch.ones(2)},
        reference=lambda src, like, slow=slow: slow(src),
        name=make.__name__,
        examples=4,
    )
    for make, slow in (
        (resize_rel_pos, lambda src: whole(bicubic, src)),
        (resize_rel_pos_geometric, lambda src: whole(geometric, src)),
    )
]


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[0], only=["one-graph"]).failed


def test_what_is_near_keeps_its_place() -> None:
    flat = table((4, 4))
    new = image(resize_rel_pos_geometric(window=(9, 9)).apply({NAME: flat}, {})[NAME], (9, 9))
    assert torch.equal(new[:, 7:10, 7:10], image(flat, (4, 4))[:, 2:5, 2:5])


def test_a_net_with_another_window() -> None:
    """Swin's stages have their windows from the target's shapes; buffers are dropped."""
    models = pytest.importorskip("timm.models")
    options = {"embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 3, "patch_size": 4}
    small = models.SwinTransformer(img_size=32, window_size=4, **options)
    large = models.SwinTransformer(img_size=64, window_size=8, **options)
    map = tt.weights.chain(resize_rel_pos(), tt.weights.match())
    plan = tt.weights.transfer(small.state_dict(), large, map)
    how = [one.how for one in plan.made.values() if one.how]
    assert how == ["offsets 7x7 -> 15x15, bicubic"] * 2


def test_right_already() -> None:
    src = {NAME: table((3, 3))}
    assert resize_rel_pos().apply(src, src)[NAME] is src[NAME]
    # As many offsets, and another window.
    turned = resize_rel_pos(window=(2, 8), old_window=(8, 2)).apply({NAME: table((8, 2))}, {})[NAME]
    assert turned.shape == table((8, 2)).shape
    assert not torch.equal(turned, table((8, 2)))


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": "table"}, "pattern 'table' matches no source"),
        ({}, f"the target has no {NAME!r}, and window= is not given; there are: fc"),
        ({"window": (3, 3), "old_window": (2, 4)}, r"has 49 offsets, a window of \(2, 4\) has 21"),
        ({"window": (3, 3), "extra_tokens": 1}, r"has 48 offsets, no odd square; give old_window=\(rows, columns\)"),
        ({"window": (3, 3), "patterns": "fc"}, r"the source's 'fc' as \(offsets, heads\) or .* got \(2,\)"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str, dry: bool) -> None:
    map = resize_rel_pos(**options)
    with pytest.raises(TransferError, match=f"resize_rel_pos: .*{message}"):
        (map.plan if dry else map.apply)({NAME: table((4, 4)), "fc": torch.ones(2)}, {"fc": torch.ones(2)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_tokens": -1}, "wanted no or more extra tokens, got -1"),
        ({"window": (3, 0)}, r"wanted a window as \(rows, columns\), got \(3, 0\)"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TransferError, match=f"resize_rel_pos_geometric: {message}"):
        resize_rel_pos_geometric(**options)
