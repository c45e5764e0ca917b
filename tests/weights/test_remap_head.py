"""A head's rows by class names: kept classes keep their logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import remap_head

OLD = ["cat", "dog", "cow", "hen"]
NEW = ["hen", "ox", "cat", "ant", "cow"]
SRC = {"fc.weight": torch.ones(4, 3), "fc.bias": torch.ones(4), "conv.weight": torch.ones(2)}
LIKE = {"fc.weight": torch.ones(5, 3), "fc.bias": torch.ones(5), "conv.weight": torch.ones(2)}


def slow(src: dict[str, Tensor], new: str) -> dict[str, Tensor]:
    def rows(x: Tensor) -> Tensor:
        other = torch.stack(list(x)).sum(0) / len(x) if new == "mean" else 0 * x[0]
        return torch.stack([x[OLD.index(name)] if name in OLD else other for name in NEW])

    return {**src, "fc.weight": rows(src["fc.weight"]), "fc.bias": rows(src["fc.bias"])}


TRIALS = [
    weight_map_trial(
        remap_head(OLD, NEW, names="fc.*", new=new),
        SRC,
        LIKE,
        reference=lambda src, like, new=new: slow(src, new),
        name=new,
        examples=4,
    )
    for new in ("mean", "zeros")
]


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[0], only=["one-graph"]).failed


def test_kept_classes_are_answered_as_before() -> None:
    src = {"w": torch.randn(4, 3, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    x = torch.randn(7, 3, dtype=torch.float64)
    before = x @ src["w"].T + src["b"]
    for new in ("mean", "zeros"):
        head = remap_head(OLD, NEW, names=["w", "b"], new=new).apply(src, {})
        after = x @ head["w"].T + head["b"]
        for name in set(OLD) & set(NEW):
            torch.testing.assert_close(after[:, NEW.index(name)], before[:, OLD.index(name)], rtol=1e-12, atol=1e-12)
        unknown = before.mean(1) if new == "mean" else torch.zeros(7, dtype=torch.float64)
        torch.testing.assert_close(after[:, NEW.index("ox")], unknown, rtol=1e-12, atol=1e-12)


def test_there_and_back() -> None:
    turned = OLD[::-1]
    new = remap_head(OLD, turned, names="fc.weight").apply({"fc.weight": torch.arange(8.0).reshape(4, 2)}, {})
    assert new["fc.weight"][0].tolist() == [6.0, 7.0]
    back = remap_head(turned, OLD, names="fc.weight").apply(new, {})
    assert torch.equal(back["fc.weight"], torch.arange(8.0).reshape(4, 2))


def test_a_convolution_over_classes() -> None:
    new = remap_head(OLD, ["cow"], names="head").apply({"head": torch.randn(4, 3, 1, 1)}, {})
    assert new["head"].shape == (1, 3, 1, 1)


def test_plan() -> None:
    made = remap_head(OLD, NEW, names="fc.*", new="mean").plan(SRC, LIKE).made
    assert made["fc.bias"].how == "rows of 3 of 4 classes, 2 new: mean"
    same = remap_head(OLD, OLD, names="fc.*")
    assert same.apply(SRC, SRC)["fc.weight"] is SRC["fc.weight"]


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        (["a", "b", "a"], ["a"], {}, "'a' is twice in the old classes"),
        (["a"], ["b", "b"], {}, "'b' is twice in the new classes"),
        (OLD, ["cat", "dogs"], {}, "1 of 2 new classes are not among the old, the first 'dogs'; did you mean 'dog'"),
        (OLD, ["ox"], {"new": "mean"}, "no class is in both; make the head anew with tt.weights.reset_head"),
        (OLD, ["ox"], {"new": "random"}, "new must be 'refuse', 'zeros' or 'mean', got 'random'"),
    ],
)
def test_classes_are_checked(old: list[str], new: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(TransferError, match=f"remap_head: {message}"):
        remap_head(old, new, names="fc.*", **options)


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("head.*", "pattern 'head.*' matches no source"),
        (["fc.*", "conv.weight"], r"'conv.weight' \(2,\) float32 has no row for each of 4 old classes"),
    ],
)
def test_mistakes_are_named(names: Any, message: str, dry: bool) -> None:
    map = remap_head(OLD, ["cat"], names=names)
    with pytest.raises(TransferError, match=f"remap_head: {message}"):
        (map.plan if dry else map.apply)(SRC, LIKE)
