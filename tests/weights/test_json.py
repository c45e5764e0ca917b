"""JSON from a file that nobody vouches for."""

from __future__ import annotations

import pytest

from ttransfer.weights._json import decoded


def test_an_object_is_read_in_its_order() -> None:
    assert list(decoded('{"é": 1, "a": {"b": []}}'.encode())) == ["é", "a"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": 1, "a": 1}', "'a' stands in it twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "'b' stands in it twice"),
        (b"[1]", "it is a list, no object"),
        (b'{"a": ', "Expecting value"),
        (b"", "Expecting value"),
        (b'{"\xff": 1}', "'utf-8' codec can't decode"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "Exceeds the limit"),
    ],
)
def test_what_is_none_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decoded(text)
