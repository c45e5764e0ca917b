"""The table of losses in docs/losses.md, from the losses' own docstrings and claims; run as a script it writes it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from ttransfer._references import formula
from ttransfer.cli._losses import Entry, entries
from ttransfer.cli._speeds import SPEEDS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "losses.md"
BEGIN, END = "<!-- losses: python -m tests.support.losses_table -->\n", "<!-- /losses -->\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def maths(entry: Entry) -> str:
    return " ".join(f"$`{line}`$" for line in formula(entry.fn).splitlines())


def row(entry: Entry) -> str:
    cells = [
        f"`{entry.name}`",
        cell("; ".join(map(str, entry.papers))),
        cell(maths(entry)),
        ", ".join(entry.variants),
        ", ".join((entry.rows, *entry.tags)),
        cell(entry.checked),
        cell(entry.peers),
        *([cell(entry.speed)] if SPEEDS else []),
    ]
    return "| " + " | ".join(cells) + " |\n"


def table() -> Iterator[str]:
    heads = ["name", "paper", "formula", "variants", "rows, and what it claims", "checked against", "peers"]
    heads += ["a peer's time by ours, eager and compiled"] if SPEEDS else []
    yield "\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads) + "\n"
    for entry in entries():
        yield row(entry)
    yield "\n"


def with_table(page: str) -> str:
    """The page with the table as it should be."""
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return page[:begin] + "".join(table()) + page[end:]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
