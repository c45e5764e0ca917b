"""Weight maps that can be applied, and that a plan says what its map does."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.testing import strategies as tts
from ttransfer.weights import chain, match, rename

Draws = Callable[..., list[Any]]
Smallest = Callable[..., Any]
MIXED = (torch.float64, torch.float32, torch.int64)


def meta(params: Params) -> Params:
    return {name: x.to("meta") for name, x in params.items()}


def same(one: Params, other: Params) -> bool:
    dtypes = {name: x.dtype for name, x in one.items()} == {name: x.dtype for name, x in other.items()}
    return list(one) == list(other) and dtypes and all(torch.equal(one[name], other[name]) for name in one)


@settings(max_examples=200)
@given(tts.weight_maps(leaves=(1, 6), dtypes=MIXED))
def test_a_plan_says_what_its_map_does(case: tts.MapCase) -> None:
    """Every result is the source that the plan names, or the target itself; what goes nowhere is listed."""
    new, plan = case.map.apply(case.src, case.like), case.map.plan(case.src, case.like)
    copied = {name: source for name, one in plan.made.items() for source in one.sources}
    assert set(copied) <= set(new)
    for name, x in new.items():
        if name in copied:
            assert torch.equal(x, case.src[copied[name]].to(x.dtype))
        else:
            assert x is case.like[name]
            assert name in plan.kept
    # The numbers tell where a tensor came from, for no two of the source are alike.
    firsts = {x.flatten()[0].item(): name for name, x in case.src.items()}
    came = {name: firsts[first] for name, x in new.items() if (first := x.flatten()[0].item()) > 0}
    assert came == copied
    assert list(plan.unused) == [name for name in case.src if name not in came.values()]
    assert case.map.plan(meta(case.src), meta(case.like)) == plan


@given(tts.weight_maps(leaves=(1, 6), dtypes=MIXED))
def test_source_and_target_fit(case: tts.MapCase) -> None:
    """The result has the target's names, in the target's order where there is a match, and its shapes."""
    new = case.map.apply(case.src, case.like)
    assert list(new) == list(case.like)
    assert all(x.shape == case.like[name].shape for name, x in new.items())
    assert all(x.dtype == case.like[name].dtype for name, x in new.items())


@given(tts.weight_maps(leaves=(1, 6)))
def test_the_text_is_the_map(case: tts.MapCase) -> None:
    written = eval(case.text, {"rename": rename, "match": match, "chain": chain})
    assert same(written.apply(case.src, case.like), case.map.apply(case.src, case.like))
    assert written.plan(case.src, case.like) == case.map.plan(case.src, case.like)


def test_numbers_count_through_all_tensors(draws: Draws) -> None:
    for case in draws(tts.weight_maps()):
        for side, sign in ((case.src, 1), (case.like, -1)):
            numbers = torch.cat([x.flatten() for x in side.values()])
            assert (numbers * sign).tolist() == [*range(1, len(numbers) + 1)]


def table(case: tts.MapCase) -> dict[str, str]:
    """What a rename by names was given."""
    found = re.fullmatch(r"rename\((\{.*\})\)", case.text)
    return ast.literal_eval(found[1]) if found else {}


SAYS: dict[str, tuple[str, Callable[[tts.MapCase], Any]]] = {
    "a name": ("rename", lambda c: re.fullmatch(r"rename\({'[a-z]': 'z'}\)", c.text)),
    "names exchanged": ("rename", lambda c: {*table(c)} == {*table(c).values()} != set()),
    "a prefix": ("rename", lambda c: re.match(r"rename\({'a': ", c.text) and "a" not in c.src and len(c.src) > 1),
    "an exception": ("rename", lambda c: re.search(r"'([a-z.]*)': '[a-z]', '\1\.", c.text)),
    "under a prefix": ("rename", lambda c: c.text == r"rename('(.*)', r'z.\1')"),
    "out of a prefix": ("rename", lambda c: c.text == r"rename(r'z\.(.*)', r'\1')" and all(n[0] == "z" for n in c.src)),
    "another order": ("match", lambda c: len(c.like) > 1 and [*c.like] == [*c.src][::-1]),
    "a source that is not asked for": ("match", lambda c: set(c.src) - set(c.like)),
    "a new target": ("match", lambda c: set(c.like) - set(c.src)),
    "another shape": ("match", lambda c: any(x.shape != c.src[n].shape for n, x in c.like.items() if n in c.src)),
    "another dtype": ("match", lambda c: any(x.dtype != c.src[n].dtype for n, x in c.like.items() if n in c.src)),
    "the identity": ("chain", lambda c: c.text == "chain()"),
    "two renames and a match": ("chain", lambda c: re.fullmatch(r"chain\(rename\(.*\), rename\(.*\), match.*", c.text)),
}


@pytest.mark.parametrize("family", ["rename", "match", "chain"])
def test_every_kind_comes(family: str, draws: Draws) -> None:
    found = draws(tts.weight_maps(family, dtypes=MIXED), 200)
    assert all(case.text.startswith(family) for case in found)
    for name, (of, says) in SAYS.items():
        assert of != family or sum(bool(says(case)) for case in found) >= 3, name


def test_families_come_alike(draws: Draws) -> None:
    heads = [case.text.split("(")[0] for case in draws(tts.weight_maps(), 150)]
    assert all(heads.count(family) > 25 for family in ("rename", "match", "chain"))
    assert {case.text.split("(")[0] for case in draws(tts.weight_maps("rename", "chain"))} == {"rename", "chain"}


def test_maps_shrink_to_something_readable(smallest: Smallest) -> None:
    def least(condition: Callable[[tts.MapCase], Any] = lambda _: True, family: str = "match") -> Any:
        case = smallest(tts.weight_maps(*[family] * bool(family)), condition)
        return case.text, {n: x.tolist() for n, x in case.src.items()}, {n: x.tolist() for n, x in case.like.items()}

    assert least(family="") == least() == ("match()", {"a": 1}, {"a": -1})
    assert least(family="rename") == ("rename({'a': 'z'})", {"a": 1}, {"z": -1})
    assert least(family="chain") == ("chain()", {"a": 1}, {"a": -1})
    assert least(lambda c: "allow" in c.text) == ("match(allow='z')", {"a": 1}, {"a": -1, "z": -2})
    two = least(lambda c: c.text.count("rename") == 2 and "match" in c.text, "chain")
    assert two == ("chain(rename({'a': 'z'}), rename({'z': 'y'}), match())", {"a": 1}, {"y": -1})
    swapped = least(lambda c: "'a': 'b'" in c.text, "rename")
    assert swapped == ("rename({'a': 'b', 'b': 'a'})", {"a": 1, "b": 2}, {"b": -1, "a": -2})


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no such map": (lambda: tts.weight_maps("renam"), "weight_maps: no family 'renam'; did you mean 'rename'?"),
    "an empty source": (
        lambda: tts.weight_maps(leaves=(0, 2)),
        "weight_maps: leaves must be the fewest and the most, from 1",
    ),
    "no dtypes": (
        lambda: tts.weight_maps(dtypes=()),
        "weight_maps: dtypes must be some of torch's for real numbers, got ()",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_are_refused_before_anything_is_drawn(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TransferError, match=re.escape(message)):
        call()
