"""The path grammar: what it reads, what it refuses and where, and that it prints what it read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.core._paths import Field, Forward, Keys, NetFn, NetParams, Path, Tap, parse_path

GOOD: dict[str, Path] = {
    "student(source)": Forward("student", "source"),
    "student(source)#2": Forward("student", "source", 2),
    "student(source)#10.fc": Forward("student", "source", 10, Tap("fc")),
    "s(d).layer4": Forward("s", "d", 1, Tap("layer4")),
    "s(d).fc:in": Forward("s", "d", 1, Tap("fc", True)),
    "s(d).layer1.0.relu@1": Forward("s", "d", 1, Tap("layer1.0.relu", False, 1)),
    "s(d).act:in@0": Forward("s", "d", 1, Tap("act", True, 0)),
    "s(d)[0]": Forward("s", "d", 1, None, (0,)),
    "s(d)[-1][logits]": Forward("s", "d", 1, None, (-1, "logits")),
    "s(d)#3.a.b:in@12[2][key]": Forward("s", "d", 3, Tap("a.b", True, 12), (2, "key")),
    # Names of modules may hold what names in Python may not.
    "s(d).block-1.conv/3": Forward("s", "d", 1, Tap("block-1.conv/3")),
    "s(d).größe": Forward("s", "d", 1, Tap("größe")),
    "teacher:params": NetParams("teacher"),
    "teacher:fn": NetFn("teacher"),
    "source.y": Field("source", "y"),
    "source:keys": Keys("source"),
    "source.y[0][mask]": Field("source", "y", (0, "mask")),
    "_a1.B_": Field("_a1", "B_"),
    "params.fn": Field("params", "fn"),
}

BAD: dict[str, tuple[int, str]] = {
    "": (0, "the name of a net or domain"),
    " s(d)": (0, "the name of a net or domain"),
    "1s(d)": (0, "the name of a net or domain"),
    "é(d)": (0, "the name of a net or domain"),
    "student": (7, "'(', '.' or ':'"),
    "s d.y": (1, "'(', '.' or ':'"),
    "s[0]": (1, "'(', '.' or ':'"),
    "s()": (2, "the name of a domain"),
    "s( d)": (2, "the name of a domain"),
    "s(d": (3, "')'"),
    "s(d,e)": (3, "')'"),
    "s(d)x": (4, "the end"),
    "s(d)#": (5, "the number of the pass"),
    "s(d)#x": (5, "the number of the pass"),
    "s(d)#0": (5, "a number from 2"),
    "s(d)#1.fc": (5, "a number from 2"),
    "s(d)#02": (5, "a number from 2"),
    "s(d)#2#3": (6, "the end"),
    "s(d).": (5, "the name of a submodule"),
    "s(d)..fc": (5, "the name of a submodule"),
    "s(d).fc.": (7, "the end"),
    "s(d).fc:out": (7, "the end"),
    "s(d).fc:inner": (10, "the end"),
    "s(d).fc@": (8, "the number of the call"),
    "s(d).fc@-1": (8, "the number of the call"),
    "s(d).fc@1:in": (9, "the end"),
    "s(d).fc@01": (9, "the end"),
    "s(d).fc@00": (9, "the end"),
    "s(d).fc@1234567890": (17, "the end"),
    "s(d)[": (5, "an index or a key"),
    "s(d)[]": (5, "an index or a key"),
    "s(d)[-0]": (5, "an index or a key"),
    "s(d)[01]": (6, "']'"),
    "s(d)[00]": (6, "']'"),
    "s(d)[1": (6, "']'"),
    "s(d)[a.b]": (6, "']'"),
    "s(d)[0].fc": (7, "the end"),
    "s(d)\n": (4, "the end"),
    "s:param": (2, "'params', 'fn' or 'keys'"),
    "s:": (2, "'params', 'fn' or 'keys'"),
    "s:params.fc": (8, "the end"),
    "s:fn[0]": (4, "the end"),
    "d.": (2, "the name of a field"),
    "d.0": (2, "the name of a field"),
    "d.x.y": (3, "the end"),
    "d.x:in": (3, "the end"),
}


@pytest.mark.parametrize("text", GOOD)
def test_reads_and_prints_back(text: str) -> None:
    path = parse_path(text)
    # Named tuples of different types may be equal.
    assert (type(path), path) == (type(GOOD[text]), GOOD[text])
    assert str(path) == text


@pytest.mark.parametrize("text", BAD)
def test_refuses_and_says_where(text: str) -> None:
    at, wanted = BAD[text]
    found = repr(text[at]) if at < len(text) else "the end"
    with pytest.raises(TransferError) as caught:
        parse_path(text)
    said = str(caught.value)
    assert said.startswith(f"cannot read {text!r}: expected {wanted}")
    assert said.endswith(f" at position {at}, found {found}")


@pytest.mark.parametrize("thing", [None, 3, b"s(d)", ["s(d)"]])
def test_only_text_is_read(thing: object) -> None:
    with pytest.raises(TransferError, match="expected a string such as"):
        tt.read(thing)


def test_the_public_name() -> None:
    assert tt.parse_path is parse_path
    assert tt.read("s(d).fc:in").path == GOOD["s(d).fc:in"]


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
PARTS = st.text(st.characters(exclude_characters=".:@[]()#|", exclude_categories=["Z", "C"]), min_size=1, max_size=4)
MODULES = st.lists(PARTS, min_size=1, max_size=3).map(".".join)
COUNTS = st.integers(0, 10**9 - 1)
PICKS = st.lists(st.integers(-(10**9) + 1, 10**9 - 1) | NAMES, max_size=3).map(tuple)
TAPS = st.builds(Tap, MODULES, st.booleans(), st.none() | COUNTS)
PATHS: st.SearchStrategy[Path] = st.one_of(
    st.builds(Forward, NAMES, NAMES, st.just(1) | st.integers(2, 10**9 - 1), st.none() | TAPS, PICKS),
    st.builds(NetParams, NAMES),
    st.builds(NetFn, NAMES),
    st.builds(Field, NAMES, NAMES, PICKS),
)
EDITS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([*"().:@#[]|-_ 019ainé\n", ""])), min_size=1, max_size=4)


@given(PATHS)
@settings(max_examples=300)
def test_whatever_prints_reads_back(path: Path) -> None:
    again = parse_path(str(path))
    assert (type(again), again) == (type(path), path)


def reads_back_or_refuses(text: str) -> bool:
    """Say whether a text is a path; fail if it is one that prints as another, or is refused without a position."""
    try:
        path = parse_path(text)
    except TransferError as error:
        found = re.fullmatch(r"cannot read .* at position (\d+), found (.+)", str(error), re.DOTALL)
        assert found is not None
        at = int(found[1])
        assert 0 <= at <= len(text)
        assert found[2] == (repr(text[at]) if at < len(text) else "the end")
        return False
    assert str(path) == text
    return True


@given(st.text(max_size=30) | st.text("abin_019().:@#[]|-", max_size=15))
@settings(max_examples=500)
def test_any_text_reads_back_or_is_refused(text: str) -> None:
    reads_back_or_refuses(text)


@given(PATHS, EDITS, st.booleans())
@settings(max_examples=500)
def test_any_edited_path_reads_back_or_is_refused(path: Path, edits: list[tuple[int, str]], insert: bool) -> None:
    text = str(path)
    for at, char in edits:
        at %= len(text) + 1
        text = text[:at] + char + text[at + (not insert) :]
    reads_back_or_refuses(text)


@pytest.mark.parametrize("text", GOOD)
def test_every_single_deletion(text: str) -> None:
    outcomes = [reads_back_or_refuses(text[:i] + text[i + 1 :]) for i in range(len(text))]
    assert False in outcomes
