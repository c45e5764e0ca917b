"""What maps that look at the target refuse, and how they say it."""

from __future__ import annotations

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.core._maps import Made, Plan
from ttransfer.core._types import Params
from ttransfer.weights import match, match_by_name
from ttransfer.weights._strict import allowed, refuse, strictly


def zeros(*names: str) -> Params:
    return {name: torch.zeros(2) for name in names}


def test_allowed() -> None:
    may = allowed("match", ["head.*", "old"], ["old", "stem"], ["head.bias", "stem"])
    assert [may(name) for name in ("head.bias", "old", "stem", "older")] == [True, True, False, False]
    assert not allowed("match", (), ["stem"], ["stem"])("stem")
    with pytest.raises(TransferError, match=r"match: allow='hed.*' matches no target and no source; .*'head.bias'"):
        allowed("match", "hed.bias", ["old"], ["head.bias"])
    with pytest.raises(TransferError, match=r"'\(' is no regular expression"):
        allowed("match", "(", ["old"], ["head.bias"])


def test_what_is_accounted_for_is_let_pass() -> None:
    like = zeros("a", "b")
    refuse("match", Plan({"a": Made(("x",))}, kept=("b",), unused={"y": "dropped"}), zeros("x", "y"), like)


@pytest.mark.parametrize(
    ("plan", "lines"),
    [
        (
            Plan({"b": Made(("b",))}, missing=("a",), unused={"aa": ""}),
            [
                "match: 1 of 2 target tensors get nothing",
                "  'a' (2,) float32: not in the source; did you mean 'aa'?",
                "1 of 3 source tensors go nowhere",
                "  'aa' (2,) float32",
            ],
        ),
        (
            Plan({"b": Made(("b",))}, ambiguous={"a": ("aa", "c", "b", "d", "e")}),
            [
                "match: 1 of 2 target tensors get nothing",
                "  'a' (2,) float32: ambiguous, it may be 'aa', 'c', 'b' or 2 more",
            ],
        ),
        (
            Plan({"a": Made(("aa",)), "b": Made(("b",))}, unused={"c": "", "aa": "dropped"}),
            ["match: 1 of 3 source tensors go nowhere", "  'c' (2,) float32"],
        ),
        (
            Plan({"b": Made(("b",))}, mismatched={"a": "source (3,), target (2,)"}),
            ["match: 1 of 2 target tensors get nothing", "  'a': source (3,), target (2,)"],
        ),
    ],
)
def test_what_is_not_is_told(plan: Plan, lines: list[str]) -> None:
    advice = "rename them, drop sources with tt.weights.drop, or let either be with allow="
    with pytest.raises(TransferError) as found:
        refuse("match", plan, zeros("aa", "b", "c"), zeros("a", "b"))
    assert str(found.value).splitlines() == [*lines, advice]
    with pytest.raises(TransferError) as found:
        refuse("match", plan, zeros("aa", "b", "c"), zeros("a", "b"), "by the way")
    assert str(found.value).splitlines() == [*lines, "by the way", advice]


def test_a_hint_is_given_for_what_is_ambiguous() -> None:
    check = strictly("match", lambda src, like: "look there")
    with pytest.raises(TransferError, match="look there"):
        check(Plan({}, ambiguous={"a": ("b", "c")}), zeros("b", "c"), zeros("a"))
    for plan in (Plan({}, missing=("a",)), Plan({"a": Made(("a",))}, unused={"b": ""})):
        with pytest.raises(TransferError) as found:
            check(plan, zeros("a", "b"), zeros("a"))
        assert "look there" not in str(found.value)


def test_match_says_why_it_read_no_order() -> None:
    src, like = zeros("act.w", "conv.w", "fc.w"), zeros("stem.w", "body.w", "head.w")
    why = "no order was read, for in the source the names are in alphabetical order, as in a sorted file; "
    with pytest.raises(TransferError) as found:
        match().apply(src, like)
    cure = "if it is that of definition all the same, use tt.weights.match_by_order"
    assert f"{why}{cure}" in str(found.value).splitlines()
    with pytest.raises(TransferError, match=r"no order was read, for in the target 'b\.0' comes after 'b\.1'"):
        match().apply(zeros("z.w", "y.w"), zeros("b.1.w", "b.0.w"))
    with pytest.raises(TransferError) as found:
        match_by_name().apply(src, like)
    assert "order was read" not in str(found.value)


def test_match_names_the_pair_that_crosses() -> None:
    src, like = zeros("patch.w", "y.w", "x.w", "pos.w"), zeros("pos.w", "patch.w", "b.w", "a.w")
    with pytest.raises(TransferError) as found:
        match().apply(src, like)
    assert (
        "no order was read, for the target has 'pos.w' before 'patch.w' and the source 'patch.w' before 'pos.w'; "
        "rename the others too, or drop what crosses"
    ) in str(found.value).splitlines()


def test_allow_takes_expressions() -> None:
    for allow in (3, [3], None):
        with pytest.raises(TransferError, match=r"^match: allow= takes a regular expression, or several"):
            match(allow=allow).plan(zeros("a"), zeros("a"))  # type: ignore[arg-type]
