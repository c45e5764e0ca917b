"""What speaks against a pair."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttransfer.weights._contradictions import crossing, misnamed, swapped, torn


@settings(max_examples=150)
@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.booleans())
def test_crossing_pairs(order: list[int], judged: set[int], known: bool) -> None:
    src, like = [f"n{i}.w" for i in range(6)], [f"t{i}.w" for i in range(6)]
    made = {f"t{i}.w": f"n{j}.w" for i, j in enumerate(order)}
    wanted = [
        f"t{i}.w" for i in range(6) if i in judged and any((k < i) != (order[k] < order[i]) for k in range(6) if k != i)
    ]
    assert crossing(made, [f"t{i}.w" for i in judged], src if known else set(src), like) == wanted


def test_numbers_have_an_order_where_the_file_has_none() -> None:
    made = {"x.w": "blocks.2.a.w", "y.w": "stem.w", "z.w": "blocks.10.w"}
    assert crossing(made, made, set(made.values()), made) == []
    made["late.w"] = "blocks.9.w"
    assert crossing(made, made, set(made.values()), made) == ["z.w", "late.w"]
    assert crossing(made, ["late.w"], set(made.values()), made) == ["late.w"]


def test_a_module_is_not_filled_from_two() -> None:
    made = {"a.weight": "x.weight", "a.bias": "y.bias", "b.weight": "z.weight"}
    assert torn(made, ()) == ["a.weight", "a.bias"]
    assert torn(made, ["a.weight"]) == ["a.bias"]
    assert torn({"a.weight": "x.weight", "b.bias": "x.bias"}, ()) == ["a.weight", "b.bias"]
    assert torn({"a.weight": "x.weight", "b.weight": "z.weight"}, ()) == []


def test_siblings_are_not_swapped() -> None:
    like = ["net.0.attn.q.weight", "net.0.attn.k.weight", "net.0.mlp.weight"]
    src = ["blocks.0.self.k.weight", "blocks.0.self.q.weight", "blocks.0.fc.weight"]
    made = dict(zip(like, src, strict=True))
    assert swapped(made, (), src, like) == like[:2]
    assert swapped(made, like[:1], src, like) == like[1:2]
    assert swapped({like[0]: src[1], like[1]: src[0]}, (), src, like) == []
    # One side alone has both names: then the other side calls it so.
    made = {"pre.weight": "norm.weight", "norm.weight": "post.weight"}
    assert swapped(made, (), made.values(), made) == []
    # Above what is equal at the end.
    made = {"a.q.conv.weight": "b.k.conv.weight", "a.k.conv.weight": "b.q.conv.weight"}
    assert swapped(made, (), made.values(), made) == list(made)


def test_numbers_may_differ() -> None:
    made = {"net.1.weight": "features.2.weight", "net.2.weight": "features.1.weight", "bn1.bias": "bn2.bias"}
    assert swapped(made, (), made.values(), made) == []
    assert swapped({"weight": "module.weight"}, (), ["module.weight"], ["weight"]) == []


def test_siblings_named_after_anothers_source_are_in_doubt() -> None:
    made = {
        "encoder.self_attn.k_proj.weight": "bert.attention.self.query.weight",
        "encoder.self_attn.v_proj.weight": "bert.attention.self.key.weight",
        "encoder.self_attn.q_proj.weight": "bert.attention.self.value.weight",
        "encoder.fc1.weight": "bert.intermediate.dense.weight",
    }
    alike = dict.fromkeys(made, "a square")
    assert misnamed(made, (), alike) == dict.fromkeys(list(made)[:3], tuple(made.values())[:3])
    right = dict(zip(made, [f"bert.attention.self.{name}.weight" for name in ("key", "value", "query")], strict=False))
    assert misnamed(right, (), alike) == {}
    # Of other shapes they could not be exchanged; and what the names decided is not in doubt.
    assert misnamed(made, (), {target: i for i, target in enumerate(made)}) == {}
    assert misnamed(made, made, alike) == {}


def test_what_siblings_have_in_common_and_their_numbers_say_nothing() -> None:
    for pairs in (
        {"up_proj.weight": "up.weight", "gate_proj.weight": "gate.weight"},
        {"bn1.weight": "_bn0.weight", "bn2.weight": "_bn1.weight", "bn3.weight": "_bn2.weight"},
        {"stem.weight": "conv.weight", "neck.weight": "act.weight"},
    ):
        assert misnamed(pairs, (), dict.fromkeys(pairs, 0)) == {}
    crossed = {"up_proj.weight": "mlp_gate.weight", "gate_proj.weight": "mlp_up.weight"}
    assert list(misnamed(crossed, (), dict.fromkeys(crossed, 0))) == list(crossed)


@pytest.mark.parametrize(
    ("sources", "targets"),
    [
        (("k_proj", "v_proj", "q_proj"), ("wq", "wk", "wv")),
        (("w_qs", "w_ks"), ("linear_k", "linear_q")),
        (("in_q", "in_k"), ("Wkey", "Wquery")),
        (("cls", "box"), ("bbox_head", "class_head")),
    ],
)
def test_short_names_are_read(sources: tuple[str, ...], targets: tuple[str, ...]) -> None:
    crossed = {f"{b}.weight": f"{a}.weight" for a, b in zip(sources, targets, strict=True)}
    assert list(misnamed(crossed, (), dict.fromkeys(crossed, 0))) == list(crossed)
    if len(crossed) == 2:
        right = dict(zip(reversed(crossed), crossed.values(), strict=True))
        assert misnamed(right, (), dict.fromkeys(right, 0)) == {}
