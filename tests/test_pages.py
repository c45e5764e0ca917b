"""docs/timm.md runs from top to bottom, and prints what it says."""

from __future__ import annotations

import contextlib
import doctest
import io
import pathlib
import re

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "timm.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_page_does_what_it_says() -> None:
    space: dict[str, object] = {"__name__": "page"}
    printed = ""
    blocks = BLOCK.findall(PAGE.read_text())
    assert {kind for kind, _ in blocks} == {"python", "text"}
    for kind, text in blocks:
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, str(PAGE), "exec"), space)
            printed = out.getvalue()
            continue
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        checker, example = doctest.OutputChecker(), doctest.Example("", text)
        assert checker.check_output(text, printed, flags), checker.output_difference(example, printed, flags)
