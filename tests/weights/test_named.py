"""Which tensors a map was told to change."""

from __future__ import annotations

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.weights._named import named, spelled

TENSORS = {name: torch.ones(1) for name in ("conv.weight", "conv.bias", "fc.weight", "a[0]")}


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ("fc.weight", ["fc.weight"]),
        (["fc.*", r".*\.weight"], ["conv.weight", "fc.weight"]),
        ("a[0]", ["a[0]"]),  # a name that is there is no expression
        (r".*bias", ["conv.bias"]),
    ],
)
def test_found(patterns: str | list[str], wanted: list[str]) -> None:
    assert named("cast", patterns, TENSORS) == wanted


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("fc", "cast: pattern 'fc' matches no source"),
        (["fc.*", "conv.weigth"], "cast: pattern 'conv.weigth' matches no source; did you mean 'conv.weight'"),
        ((), "cast: no names and no patterns"),
        ("(", "is no regular expression"),
    ],
)
def test_mistakes_are_named(patterns: str | list[str], message: str) -> None:
    with pytest.raises(TransferError, match=message):
        named("cast", patterns, TENSORS)


def test_spelled() -> None:
    assert spelled((3, 14, 14)) == "3x14x14"
