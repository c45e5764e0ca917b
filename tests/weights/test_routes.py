"""One rule, which plan reads and apply carries out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._maps import Made, Plan
from ttransfer.weights import chain, match, transfer, within
from ttransfer.weights._routes import (
    Route,
    Routes,
    Tensors,
    all_on_meta,
    as_one,
    planned,
    routed,
    spelt,
    taken,
    twins,
    want_map,
)

SOURCE = {"a": torch.ones(2), "b": torch.full((2,), 2.0), "c": torch.ones(3)}


def rule(src: Tensors, like: Tensors) -> Routes:
    return Routes(
        {"x": Route(("a", "b"), torch.add, "sum"), "y": taken("a"), "new": Route((), lambda: torch.zeros(1), "zeros")},
        kept=("stays",),
        unused={"c": "no use for it"},
    )


LIKE = {"stays": torch.ones(4), "x": torch.zeros(2), "y": torch.zeros(3), "other": torch.zeros(1)}


def test_plan_and_apply_are_of_one_rule() -> None:
    map = routed(rule)
    new = map.apply(SOURCE, LIKE)
    assert list(new) == ["stays", "x", "y", "new"]
    assert new["x"].tolist() == [3.0, 3.0]
    assert new["y"] is SOURCE["a"]
    assert new["stays"] is LIKE["stays"]
    assert map.plan(SOURCE, LIKE) == Plan(
        {"x": Made(("a", "b"), "sum"), "y": Made(("a",)), "new": Made((), "zeros")},
        ("stays",),
        ("other",),
        {"y": "source (2,), target (3,)"},
        {},
        {"c": "no use for it"},
    )


def test_what_is_made_of_one_tensor_is_one_tensor() -> None:
    double = routed(lambda src, like: Routes({k: Route((k,), lambda x: 2 * x, "doubled") for k in src}))
    table = torch.ones(2)
    new = double.apply({"embed": table, "head": table, "alone": torch.ones(2)}, {})
    assert new["embed"] is new["head"]
    assert new["alone"] is not new["head"]
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[1].weight = net[0].weight
    tied = double.apply(net.state_dict(), {})  # of two tensors, and one storage
    assert tied["0.weight"] is tied["1.weight"]
    assert tied["0.bias"] is not tied["1.bias"]
    fresh = routed(lambda src, like: Routes({k: Route((), lambda: torch.zeros(2), "zeros") for k in "ab"}))
    made = fresh.apply({}, {})
    assert made["a"] is not made["b"]


def test_nothing() -> None:
    assert planned(Routes({}), {}, {}) == Plan({})


def test_what_is_no_map() -> None:
    map = match()
    assert want_map("map", map) is map
    told = r"wanted a WeightMap, got the function match; call it: match\(...\)"
    with pytest.raises(TransferError, match=f"chain: {told}"):
        chain(map, match)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match=f"within: {told}"):
        within("a", match)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match=f"transfer: {told}"):
        transfer({}, torch.nn.Linear(1, 1), match)  # type: ignore[arg-type]
    for wrong, name in (
        (torch.nn.Linear(1, 1), "Linear"),
        ({"a": "b"}, "dict"),
        (tuple(map), r"\[function, function\]"),
    ):
        with pytest.raises(TransferError, match=f"map: wanted a WeightMap, got {name}$"):
            want_map("map", wrong)


def test_twins_are_found_inside_a_transform() -> None:
    x, y = torch.ones(2), torch.ones(2)
    src = {"a": x, "b": x.detach(), "c": y}
    parts = {"one": ("a",), "two": ("b",), "three": ("c",)}
    wanted = {"one": ("one", "two"), "two": ("one", "two"), "three": ("three",)}

    found: list[dict[str, tuple[str, ...]]] = []

    def value(at: Tensors) -> Tensor:
        found.append(twins(at, parts))
        return at["a"].sum()

    value(src)
    torch.func.grad(value)(src)
    assert found == [wanted, wanted]
    assert twins(src, {"one": ("a", "c"), "two": ("b", "a")}) == {"one": ("one",), "two": ("two",)}


def test_what_is_one_tensor_stays_one_on_meta() -> None:
    x, y = torch.ones(2), torch.ones(2)
    dry = all_on_meta({"a": x, "b": x.detach(), "c": y})
    assert dry["a"] is dry["b"]
    assert dry["a"] is not dry["c"]
    one = as_one({"a": x, "b": x.detach(), "c": x.clone(), "d": x[:1], "e": x.detach().requires_grad_()})
    assert [name for name, each in one.items() if each is x] == ["a", "b"]


def test_a_graph_spells_no_numbers() -> None:
    assert (spelt(0.5), spelt(1.0), spelt(1e-6)) == ("0.5", "1", "1e-06")
