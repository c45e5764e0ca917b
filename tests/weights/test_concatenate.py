"""Joining and cutting: there and back, and attention of three matrices and of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import chain, concatenate, match, rename, split, transfer

PARTS = [rf"layer\.(\d)\.{name}\.(weight|bias)" for name in ("query", "key", "value")]
JOIN = concatenate(PARTS, r"blocks.\1.qkv.\2")
CUT = split(r"blocks\.(\d)\.qkv\.(.*)", [rf"layer.\1.{name}.\2" for name in ("query", "key", "value")])
THREE = {"norm": torch.randn(4)} | {
    f"layer.{i}.{part}.{name}": torch.randn(shape)
    for i in range(2)
    for part in ("key", "query", "value")
    for name, shape in (("weight", (3, 4)), ("bias", (3,)))
}
SHAPES = {"weight": (9, 4), "bias": (9,)}
ONE = {"norm": torch.randn(4)} | {
    f"blocks.{i}.qkv.{name}": torch.randn(shape) for i in range(2) for name, shape in SHAPES.items()
}


def joined(src: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    new = {"norm": src["norm"]}
    for i in range(2):
        for name in ("weight", "bias"):
            rows = [row for part in ("query", "key", "value") for row in src[f"layer.{i}.{part}.{name}"]]
            new[f"blocks.{i}.qkv.{name}"] = torch.stack(rows)
    return new


def cut(src: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    new = {"norm": src["norm"]}
    for i in range(2):
        for name in ("weight", "bias"):
            for k, part in enumerate(("query", "key", "value")):
                new[f"layer.{i}.{part}.{name}"] = src[f"blocks.{i}.qkv.{name}"][3 * k : 3 * k + 3]
    return new


SIDES = {"a": torch.randn(2, 3), "b": torch.randn(2, 4), "c": torch.randn(2, 7)}
TRIALS = (
    weight_map_trial(JOIN, THREE, ONE, reference=joined, name="concatenate", examples=4),
    weight_map_trial(CUT, ONE, THREE, reference=cut, name="split", examples=4),
    weight_map_trial(
        concatenate(["b", "a"], "c", dim=-1),
        {"a": SIDES["a"], "b": SIDES["b"]},
        {"c": SIDES["c"]},
        reference=lambda src, like: {"c": torch.stack([*src["b"].T, *src["a"].T], 1)},
        name="concatenate columns",
        examples=4,
    ),
    weight_map_trial(
        split("c", ["b", "a"], sizes=(4, 3), dim=1),
        {"c": SIDES["c"]},
        {"a": SIDES["a"], "b": SIDES["b"]},
        reference=lambda src, like: {"b": src["c"][:, :4], "a": src["c"][:, 4:]},
        name="split columns",
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("trial", TRIALS[2:])
def test_names_compile_into_one_graph(trial: object) -> None:
    assert not judge(trial, only=["one-graph"]).failed  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "back", "src"),
    [
        (JOIN, CUT, THREE),
        (CUT, JOIN, ONE),
        (
            concatenate(["a", "b"], "c"),
            split("c", ["a", "b"], sizes=(3, 0)),
            {"a": torch.randn(3, 2), "b": torch.randn(0, 2)},
        ),
        (split("w", ["a", "w"], sizes=(1, 3)), concatenate(["a", "w"], "w"), {"w": torch.randn(4), "x": torch.ones(2)}),
        (split("w", ["a", "b"], dim=2), concatenate(["a", "b"], "w", dim=2), {"w": torch.randn(2, 3, 4)}),
    ],
)
def test_round_trip(there: WeightMap, back: WeightMap, src: dict[str, Tensor]) -> None:
    new = there.apply(src, {})
    assert set(new) != set(src) or new["w"].shape != src["w"].shape
    again = back.apply(new, {})
    assert set(again) == set(src)
    assert all(torch.equal(again[name], x) and again[name].is_contiguous() for name, x in src.items())


def test_what_is_not_named_passes_and_the_order_is_the_sources() -> None:
    new = JOIN.apply({**THREE, "head": THREE["norm"]}, {})
    assert list(new) == [*ONE, "head"]
    assert new["norm"] is THREE["norm"]
    assert list(CUT.apply(ONE, {}))[:4] == ["norm", *(f"layer.0.{part}.weight" for part in ("query", "key", "value"))]


def test_tied_weights_stay_one() -> None:
    tied = {
        **THREE,
        **{f"layer.1.{part}.weight": THREE[f"layer.0.{part}.weight"] for part in ("query", "key", "value")},
    }
    new = JOIN.apply(tied, {})
    assert new["blocks.0.qkv.weight"] is new["blocks.1.qkv.weight"]
    assert new["blocks.0.qkv.bias"] is not new["blocks.1.qkv.bias"]
    twice = split("(.*)", [r"\1.q", r"\1.k"]).apply({"a": (one := torch.randn(4, 2)), "b": one}, {})
    assert twice["a.q"] is twice["b.q"]
    assert not torch.equal(twice["a.q"], twice["a.k"])


def test_a_part_may_be_twice_and_in_two_wholes() -> None:
    src = {"a.q": torch.ones(1), "b.q": torch.full((1,), 2.0), "k": torch.full((1,), 3.0)}
    assert concatenate(["k", "k"], "kk").apply(src, {})["kk"].tolist() == [3, 3]
    swapped = concatenate(["a.q", "k"], "k").apply(src, {})
    assert {name: x.tolist() for name, x in swapped.items()} == {"k": [1, 3], "b.q": [2]}


def test_plan() -> None:
    plan = JOIN.plan(THREE, ONE)
    assert plan.made["blocks.0.qkv.weight"].sources == tuple(f"layer.0.{p}.weight" for p in ("query", "key", "value"))
    assert plan.made["blocks.0.qkv.weight"].how == "rows 3 + 3 + 3"
    assert not any((plan.unused, plan.missing, plan.mismatched))
    assert [one.how for one in CUT.plan(ONE, THREE).made.values()][1:4] == [
        "rows 0-2 of 9",
        "rows 3-5 of 9",
        "rows 6-8 of 9",
    ]
    both = chain(JOIN, rename({"blocks": "net"})).plan(THREE, {})
    assert both.made["net.1.qkv.bias"].how == "rows 3 + 3 + 3"
    columns = TRIALS[3].subject.part.plan({"c": SIDES["c"]}, {})
    assert [one.how for one in columns.made.values()] == ["axis 1: 0-3 of 7", "axis 1: 4-6 of 7"]


WRONG = {
    "a": torch.ones(2, 3),
    "b": torch.ones(3, 3),
    "c": torch.ones(2, 4),
    "d": torch.ones(2, 3).double(),
    "s": torch.ones(()),
}


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (concatenate(["a", "e"], "x"), "concatenate: pattern 'e' matches none of 5 names"),
        (concatenate(["a(", "b"], "x"), r"concatenate: cannot make 'x' of pattern 'a\('"),
        (concatenate(["(a)", "b"], r"\1x"), r"concatenate: cannot make '.*1x' of pattern 'b'"),
        (concatenate(["a", "b|c"], "x"), r"concatenate: both 'b' and 'c' would be the part 'b\|c' of 'x'"),
        (
            concatenate(["(a|b)", "(a)"], r"\1x"),
            r"concatenate: 'bx' has no part '\(a\)', and has 'b'",
        ),
        (concatenate(["a", "b"], "c"), "concatenate: 'c' is to be joined of parts, and is in the source already"),
        (
            concatenate(["a", "c"], "x"),
            r"'a' \(2, 3\) float32 and 'c' \(2, 4\) float32 do not go together in 'x': they must agree in "
            "dtype, and in all axes but 0",
        ),
        (concatenate(["a", "d"], "x"), r"'a' \(2, 3\) float32 and 'd' \(2, 3\) float64 do not go together"),
        (concatenate(["a", "s"], "x"), r"'a' \(2, 3\) float32 and 's' \(\) float32 do not go together"),
        (concatenate(["a", "b"], "x", dim=2), r"concatenate: 'a' \(2, 3\) float32 has no axis 2"),
        (split("e", ["x", "y"]), "split: pattern 'e' matches none of 5 names"),
        (split("b", ["x", "y"]), r"split: 'b' \(3, 3\) float32 gives no 2 equal pieces along axis 0; give sizes="),
        (split("b", ["x", "y"], sizes=(1, 3)), r"split: 'b' \(3, 3\) float32 has 3 along axis 0, and 1 \+ 3 is 4"),
        (split("c", ["x", "y"], dim=-3), r"split: 'c' \(2, 4\) float32 has no axis -3"),
        (split("s", ["x", "y"]), r"split: 's' \(\) float32 has no axis 0"),
        (split("a", ["x", "x"]), "split: two pieces of 'a' would be 'x'"),
        (split("a", ["x", "b"]), "split: both 'a' and 'b' would give 'b'"),
        (split("a|c", ["x", "y"]), "split: both 'a' and 'c' would give 'x'"),
        (split("a", ["x", r"\1"]), "split: cannot make '.*1' of pattern 'a'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(mapping: WeightMap, message: str, dry: bool) -> None:
    with pytest.raises(TransferError, match=message):
        (mapping.plan if dry else mapping.apply)(WRONG, {})


def test_arguments() -> None:
    with pytest.raises(TransferError, match="concatenate: wanted two parts or more, got 'qkv'"):
        concatenate("qkv", "x")
    with pytest.raises(TransferError, match=r"split: wanted two pieces or more, got \['q'\]"):
        split("x", ["q"])
    with pytest.raises(TransferError, match=r"split: wanted a size for each of 2 pieces, got \(1,\)"):
        split("x", ["q", "k"], sizes=(1,))
    with pytest.raises(TransferError, match=r"split: wanted a size for each of 2 pieces, got \(-1, 2\)"):
        split("x", ["q", "k"], sizes=(-1, 2))


class Attention(nn.Module):
    """Self-attention as transformers writes that of a ViT: three matrices and one for the output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        return self.dense(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def same_function(a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(a(x), b(x), rtol=1e-5, atol=1e-6)


def test_attention_of_timm() -> None:
    layers = pytest.importorskip("timm.layers")
    ours, again, theirs = Attention(12, 3), Attention(12, 3), layers.Attention(12, 3, qkv_bias=True)
    parts = [rf"{name}\.(weight|bias)" for name in ("query", "key", "value")]
    transfer(ours.state_dict(), theirs, chain(concatenate(parts, r"qkv.\1"), rename({"dense": "proj"}), match()))
    same_function(ours, theirs)
    back = split(r"qkv\.(.*)", [rf"{name}.\1" for name in ("query", "key", "value")])
    transfer(theirs.state_dict(), again, chain(back, rename({"proj": "dense"}), match()))
    same_function(theirs, again)
    wrong = concatenate([parts[2], parts[1], parts[0]], r"qkv.\1")
    transfer(ours.state_dict(), theirs, chain(wrong, rename({"dense": "proj"}), match()))
    with pytest.raises(AssertionError):
        same_function(ours, theirs)


def test_attention_of_torch() -> None:
    """Its parameter is called in_proj_weight, and so is torchvision's."""
    ours, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    parts: Sequence[str] = [rf"{name}\.(weight|bias)" for name in ("query", "key", "value")]
    load = chain(concatenate(parts, r"in_proj_\1"), rename({"dense": "out_proj"}), match())
    transfer(ours.state_dict(), theirs, load)
    same_function(ours, lambda x: theirs(x, x, x)[0])
