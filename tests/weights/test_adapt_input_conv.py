"""Input channels: against timm's function and a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import adapt_input_conv

CASES = [(3, 1), (3, 2), (3, 3), (3, 4), (3, 7), (4, 1), (4, 3), (1, 3), (1, 1), (2, 5)]


def weight(channels: int, out: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(out, channels, 3, 2, generator=torch.Generator().manual_seed(channels), dtype=dtype)


def slow(w: Tensor, channels: int) -> Tensor:
    new = torch.zeros(w.shape[0], channels, *w.shape[2:], dtype=w.dtype)
    have = w.shape[1]
    for j in range(channels):
        new[:, j] = sum(w[:, i] for i in range(have)) if channels == 1 else w[:, j % have] * (have / channels)
    return new


@pytest.mark.parametrize(("have", "want"), CASES)
def test_against_a_loop_and_timm(have: int, want: int) -> None:
    timm = pytest.importorskip("timm.models._manipulate")
    w = weight(have)
    found = adapt_input_conv("w", want).apply({"w": w}, {})["w"]
    torch.testing.assert_close(found, slow(w, want), rtol=1e-12, atol=1e-12)
    single = adapt_input_conv("w", want).apply({"w": w.float()}, {})["w"]
    torch.testing.assert_close(single, timm.adapt_input_conv(want, w.float(), have), rtol=1e-6, atol=1e-6)
    # timm computes in float32 whatever the dtype.
    torch.testing.assert_close(found, timm.adapt_input_conv(want, w, have), rtol=1e-6, atol=1e-6)


def test_space_to_depth() -> None:
    timm = pytest.importorskip("timm.models._manipulate")
    w = weight(4 * 3)
    found = adapt_input_conv("w", 1, blocks=4).apply({"w": w.float()}, {})["w"]
    torch.testing.assert_close(found, timm.adapt_input_conv(1, w.float(), 3), rtol=1e-6, atol=1e-6)
    five = adapt_input_conv("w", blocks=4).apply({"w": w}, {"w": weight(4 * 5)})["w"]
    wanted = torch.cat([slow(part, 5) for part in w.split(3, 1)], 1)
    torch.testing.assert_close(five, wanted, rtol=1e-12, atol=1e-12)


TRIALS = [
    weight_map_trial(
        adapt_input_conv("stem.weight"),
        {"stem.weight": weight(3), "stem.bias": torch.ones(5)},
        {"stem.weight": weight(channels), "stem.bias": torch.ones(5)},
        reference=lambda src, like: {**src, "stem.weight": slow(src["stem.weight"], like["stem.weight"].shape[1])},
        name=f"to_{channels}",
        examples=4,
    )
    for channels in (1, 4)
]


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[1], only=["one-graph"]).failed


def test_a_grey_image_is_answered_as_before() -> None:
    w, grey = weight(3), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    wanted = F.conv2d(grey.expand(-1, 3, -1, -1), w)
    for channels in (1, 3, 6):  # of 4 the first counts twice
        new = adapt_input_conv("w", channels).apply({"w": w}, {})["w"]
        torch.testing.assert_close(F.conv2d(grey.expand(-1, channels, -1, -1), new), wanted, rtol=1e-12, atol=1e-12)


def test_groups() -> None:
    """In each group of a grouped convolution the channels are its own."""
    w, grey = weight(2, out=6), torch.randn(1, 1, 8, 8, dtype=torch.float64)  # 3 groups of 2
    wanted = F.conv2d(grey.expand(-1, 6, -1, -1), w, groups=3)
    new = adapt_input_conv("w", 4).apply({"w": w}, {})["w"]
    torch.testing.assert_close(F.conv2d(grey.expand(-1, 12, -1, -1), new, groups=3), wanted, rtol=1e-12, atol=1e-12)


def test_other_kernels_and_dtypes() -> None:
    src = {"clip": torch.randn(4, 3, 2, 3, 3), "sound": torch.randn(4, 3, 9).half()}
    new = adapt_input_conv(["clip", "sound"], 1).apply(src, {})
    assert {name: (tuple(x.shape), x.dtype) for name, x in new.items()} == {
        "clip": ((4, 1, 2, 3, 3), torch.float32),
        "sound": ((4, 1, 9), torch.float16),
    }


def test_plan() -> None:
    for channels, how in ((1, "3 -> 1, summed"), (4, "3 -> 4, repeated and scaled by 3/4"), (3, "")):
        plan = adapt_input_conv("w").plan({"w": weight(3)}, {"w": weight(channels)})
        assert plan.made["w"].how == (f"input channels {how}" if how else "")
        assert not plan.mismatched
    src = {"w": weight(3)}
    assert adapt_input_conv("w", 3).apply(src, {})["w"] is src["w"]


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("name", "blocks", "message"),
    [
        ("stm.weight", 1, "pattern 'stm.weight' matches no source; did you mean 'stem.weight'"),
        ("stem.weight", 1, "the target has no 'stem.weight', and channels= is not given; did you mean 'fc.weight'"),
        (
            "fc.weight",
            1,
            r"wanted the source's 'fc.weight' as a convolution's weight \(out, channels, ...\), got \(5, 4",
        ),
        ("stem.weight", 2, r"'stem.weight' as a convolution's weight \(out, channels x 2, ...\), got \(5, 3, 3, 2\)"),
    ],
)
def test_mistakes_are_named(name: str, blocks: int, message: str, dry: bool) -> None:
    mapping = adapt_input_conv(name, blocks=blocks)
    src, like = {"stem.weight": weight(3), "fc.weight": torch.ones(5, 4)}, {"fc.weight": torch.ones(5, 4)}
    with pytest.raises(TransferError, match=f"adapt_input_conv: .*{message}"):
        (mapping.plan if dry else mapping.apply)(src, like)


def test_no_channels() -> None:
    with pytest.raises(TransferError, match="adapt_input_conv: wanted at least one channel and one block, got 0 and 1"):
        adapt_input_conv("w", 0)
