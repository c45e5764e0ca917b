"""What a docstring says of where a loss comes from: its sections and its references."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Reference", "bibtex", "formula", "references", "section", "summary"]

# "Geoffrey E. Hinton, Jeff Dean. A Title: With More. 2015." The period of an initial ends no list of authors.
_REFERENCE = re.compile(r"\s*(?P<authors>.+?)(?<![ .\-][A-Z])\. (?P<title>.+?)(?P<end>[.?!]) (?P<year>\d{4})\.")


class Reference(NamedTuple):
    """A source that a docstring names.

    Attributes:
        authors: their names.
        title: of the paper.
        year: of it.
    """

    authors: tuple[str, ...]
    title: str
    year: int

    @property
    def key(self) -> str:
        """A BibTeX key: the first author's last name, the year and the title's first long word."""
        last = self.authors[0].split()[-1]
        word = next((w for w in re.findall(r"\w+", self.title) if len(w) > 3), "")
        return re.sub(r"[^a-z0-9]", "", f"{last}{self.year}{word}".lower())

    def __str__(self) -> str:
        first, *others = self.authors
        who = first if not others else f"{first} and {others[0]}" if len(others) == 1 else f"{first} et al"
        return f"{who}. {self.title}. {self.year}"


def section(fn: Callable[..., Any], title: str) -> str:
    """Return the body under a title of a docstring, "" if there is none.

    Example:
        >>> section(section, "Example").splitlines()[0]
        '>>> section(section, "Example").splitlines()[0]'
    """
    found = re.search(rf"^{title}:\n((?:[ \t]+.*(?:\n|$)|\n)*)", inspect.getdoc(fn) or "", re.MULTILINE)
    return inspect.cleandoc(found[1]) if found else ""


def summary(fn: Callable[..., Any]) -> str:
    """Return the first line of a docstring.

    Example:
        >>> summary(summary)
        'Return the first line of a docstring.'
    """
    return (inspect.getdoc(fn) or "").partition("\n")[0]


def formula(fn: Callable[..., Any]) -> str:
    """Return the maths of a docstring, one line for each display, in LaTeX.

    Example:
        >>> import ttransfer as tt
        >>> formula(tt.align.coral)
        '\\\\frac{1}{4 d^2} \\\\| C_s - C_t \\\\|_F^2'
    """
    found = re.findall(r"^\.\. math::[ \t]*(.*\n(?:[ \t]+.*\n|\n)*)", inspect.getdoc(fn) or "", re.MULTILINE)
    return "\n".join(" ".join(each.split()) for each in found)


def references(fn: Callable[..., Any]) -> list[Reference]:
    """Return the papers that a docstring names.

    Example:
        >>> import ttransfer as tt
        >>> [str(one) for one in references(tt.losses.kd)]
        ['Geoffrey Hinton et al. Distilling the Knowledge in a Neural Network. 2015']
    """
    text = " ".join(section(fn, "References").split())
    return [
        Reference(tuple(m["authors"].split(", ")), m["title"] + m["end"].strip("."), int(m["year"]))
        for m in _REFERENCE.finditer(text)
    ]


def bibtex(reference: Reference) -> str:
    """Write a reference for BibTeX.

    Example:
        >>> print(bibtex(Reference(("Ada Lovelace", "Charles Babbage"), "Notes: With a Title", 1843)))
        @misc{lovelace1843notes,
          author = {Ada Lovelace and Charles Babbage},
          title = {{Notes: With a Title}},
          year = {1843},
        }
    """
    return (
        f"@misc{{{reference.key},\n  author = {{{' and '.join(reference.authors)}}},\n"
        f"  title = {{{{{reference.title}}}}},\n  year = {{{reference.year}}},\n}}"
    )
