"""Inflation: a still clip is answered as the image, and frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import inflate, inflate_centre

SRC = {"conv.weight": torch.ones(4, 3, 3, 2), "conv.bias": torch.ones(4)}
LIKE = {"conv.weight": torch.ones(4, 3, 5, 3, 2), "conv.bias": torch.ones(4)}


def slow(src: dict[str, Tensor], like: dict[str, Tensor], centre: bool) -> dict[str, Tensor]:
    t = like["conv.weight"].shape[2]
    shares = [float(i == t // 2) if centre else 1 / t for i in range(t)]
    return {**src, "conv.weight": torch.stack([share * src["conv.weight"] for share in shares], 2)}


TRIALS = [
    weight_map_trial(
        inflate("conv.weight"), SRC, LIKE, reference=lambda s, t: slow(s, t, False), name="inflate", examples=4
    ),
    weight_map_trial(
        inflate_centre("conv.weight"), SRC, LIKE, reference=lambda s, t: slow(s, t, True), name="centre", examples=4
    ),
]


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[0], only=["one-graph"]).failed


@pytest.mark.parametrize("make", [inflate, inflate_centre])
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_a_still_is_answered_as_the_image(make: Callable[..., WeightMap], frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    w = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    image = torch.randn(2, 3, 8, 9, generator=generator, dtype=torch.float64)
    new = make("w", frames).apply({"w": w}, {})["w"]
    clip = image[:, :, None].expand(-1, -1, frames + 2, -1, -1)
    wanted = F.conv2d(image, w, padding=1)[:, :, None].expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(F.conv3d(clip, new, padding=(0, 1, 1)), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_the_middle_frame_alone_counts(frames: int) -> None:
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    clip = torch.randn(2, 3, 7, 8, 9, dtype=torch.float64)
    new = inflate_centre("w", frames).apply({"w": w}, {})["w"]
    found = F.conv3d(clip, new, padding=(frames // 2, 0, 0))
    wanted = torch.stack([F.conv2d(frame, w) for frame in clip.unbind(2)], 2)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_whole_net() -> None:
    """Kernels of different lengths, batch norm and all, from a target's shapes."""

    def net(conv: type[nn.Module], norm: type[nn.Module], kernels: list[tuple[int, ...]]) -> Any:
        parts = [conv(3, 4, kernels[0], bias=False), norm(4), nn.ReLU(), conv(4, 5, kernels[1])]
        return nn.Sequential(*parts).double().eval()

    flat = net(nn.Conv2d, nn.BatchNorm2d, [(3, 3), (1, 1)])
    deep = net(nn.Conv3d, nn.BatchNorm3d, [(3, 3, 3), (2, 1, 1)])
    flat[1].running_mean.normal_()
    map = tt.weights.chain(inflate(r"[03]\.weight"), tt.weights.match())
    plan = tt.weights.transfer(flat.state_dict(), deep, map)
    assert plan.made["3.weight"].how == "2 frames, each a share"
    image = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    found = deep(image[:, :, None].expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(found, flat(image)[:, :, None], rtol=1e-12, atol=1e-12)


def test_dtype_is_kept() -> None:
    new = inflate(".*", 3).apply({"w": torch.ones(2, 2, 1, 1).half()}, {})
    assert new["w"].dtype == torch.float16


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("conv.wieght", "inflate: pattern 'conv.wieght' matches no source; did you mean 'conv.weight'"),
        ("conv.*", r"inflate: wanted 'conv.bias' as \(out, in, h, w\), got \(4,\)"),
        ("stem.weight", "inflate: the target has no 'stem.weight', and frames= is not given"),
        ("flat.weight", r"inflate: wanted the target's 'flat.weight' as \(out, in, T, h, w\), got \(4, 3, 1, 1\)"),
    ],
)
def test_mistakes_are_named(patterns: str, message: str, dry: bool) -> None:
    more = {"stem.weight": torch.ones(4, 3, 1, 1), "flat.weight": torch.ones(4, 3, 1, 1)}
    mapping = inflate(patterns)
    with pytest.raises(TransferError, match=message):
        (mapping.plan if dry else mapping.apply)({**SRC, **more}, {**LIKE, "flat.weight": torch.ones(4, 3, 1, 1)})


def test_no_frames() -> None:
    with pytest.raises(TransferError, match="inflate_centre: wanted at least one frame, got 0"):
        inflate_centre("w", 0)
