"""Orders of axes: there and back, and convolutions that give what the other layout's definition gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import chain, permute_layout

SOURCE = {"conv.kernel": torch.ones(3, 2, 4, 5), "fc.kernel": torch.ones(5, 7), "fc.bias": torch.ones(7)}
LIKE = {"conv.kernel": torch.ones(5, 4, 3, 2), "fc.kernel": torch.ones(7, 5), "fc.bias": torch.ones(7)}
CONV, FC = permute_layout("conv.kernel", "HWIO->OIHW"), permute_layout("fc.kernel", "IO->OI")


TRIAL = weight_map_trial(
    chain(CONV, FC),
    SOURCE,
    LIKE,
    reference=lambda src, like: {
        "conv.kernel": torch.einsum("hwio->oihw", src["conv.kernel"]),
        "fc.kernel": src["fc.kernel"].T,
        "fc.bias": src["fc.bias"],
    },
    name="permute_layout",
    examples=4,
)


@parametrize_with_checks([TRIAL])
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIAL, only=["one-graph"]).failed


@pytest.mark.parametrize(
    ("there", "back", "shape"),
    [
        ("HWIO->OIHW", "OIHW->HWIO", (3, 2, 4, 5)),
        ("IO -> OI", "OI -> IO", (3, 2)),
        ("DHWIO->OIDHW", "OIDHW->DHWIO", (2, 3, 4, 5, 6)),
        ((2, 0, 1), (1, 2, 0), (2, 3, 4)),
    ],
)
def test_round_trip(there: str | tuple[int, ...], back: str | tuple[int, ...], shape: tuple[int, ...]) -> None:
    src = {"w": torch.randn(shape)}
    new = permute_layout("w", there).apply(src, {})["w"]
    assert new.is_contiguous()
    assert new.shape != src["w"].shape
    assert torch.equal(permute_layout("w", back).apply({"w": new}, {})["w"], src["w"])


def test_a_convolution_of_the_other_layout() -> None:
    kernel, x = torch.randn(3, 2, 4, 5, dtype=torch.float64), torch.randn(1, 6, 7, 4, dtype=torch.float64)
    wanted = torch.zeros(1, 4, 6, 5, dtype=torch.float64)
    for h in range(4):
        for w in range(6):
            wanted[0, h, w] = torch.einsum("hwi,hwio->o", x[0, h : h + 3, w : w + 2], kernel)
    new = CONV.apply({"conv.kernel": kernel}, {})["conv.kernel"]
    found = F.conv2d(x.permute(0, 3, 1, 2), new).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_tied_weights_stay_one() -> None:
    one = torch.randn(2, 3)
    new = permute_layout(".*", "IO->OI").apply({"a": one, "b": one}, {})
    assert new["a"] is new["b"]


def test_plan() -> None:
    made = chain(CONV, permute_layout("fc.kernel", (1, 0))).plan(SOURCE, LIKE).made
    assert [one.how for one in made.values()] == ["HWIO -> OIHW", "axes (1, 0)", ""]


@pytest.mark.parametrize("order", ["HWIO", "HWIO->OIHH", "HWIO->OIH", "", "->", (0, 2), ()])
def test_no_order(order: str | tuple[int, ...]) -> None:
    with pytest.raises(TransferError, match=r"permute_layout: .* is no order of axes"):
        permute_layout("fc", order)


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("conv.kernal", "permute_layout: pattern 'conv.kernal' matches no source; did you mean 'conv.kernel'"),
        ("fc.*", r"permute_layout: 'fc.bias' \(7,\) float32 has 1 axes, and 'IO->OI' is for 2"),
    ],
)
def test_mistakes_are_named(patterns: str, message: str, dry: bool) -> None:
    mapping = permute_layout(patterns, "IO->OI")
    with pytest.raises(TransferError, match=message):
        (mapping.plan if dry else mapping.apply)(SOURCE, LIKE)
