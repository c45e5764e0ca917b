"""Pages run from top to bottom, and print what they say."""

from __future__ import annotations

import contextlib
import doctest
import io
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", ["timm.md", "weights.md"])
def test_the_page_does_what_it_says(name: str) -> None:
    page = DOCS / name
    space: dict[str, object] = {"__name__": "page"}
    printed = ""
    blocks = BLOCK.findall(page.read_text())
    assert {kind for kind, _ in blocks} == {"python", "text"}
    for kind, text in blocks:
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, str(page), "exec"), space)
            printed = out.getvalue()
            continue
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        checker, example = doctest.OutputChecker(), doctest.Example("", text)
        assert checker.check_output(text, printed, flags), checker.output_difference(example, printed, flags)
