"""What docstrings say of their sources."""

from __future__ import annotations

import pytest

import ttransfer as tt
from ttransfer._references import Reference, bibtex, formula, references, section, summary


def documented() -> None:
    """Do nothing.

    .. math:: a = b \\
        + c

    and

    .. math::
        d

    References:
        Ada B. Lovelace, J. R. R. Tolkien. Is It? A Study: of Nothing. 1843.
        François Laviolette,
        Mario Marchand. Domain-Adversarial Training. 2016.
    """


def test_sections_of_a_docstring() -> None:
    assert summary(documented) == "Do nothing."
    assert formula(documented) == "a = b \\ + c\nd"
    assert section(documented, "Returns") == ""
    first, second = references(documented)
    assert first == Reference(("Ada B. Lovelace", "J. R. R. Tolkien"), "Is It? A Study: of Nothing", 1843)
    assert str(first) == "Ada B. Lovelace and J. R. R. Tolkien. Is It? A Study: of Nothing. 1843"
    assert second.authors == ("François Laviolette", "Mario Marchand")
    assert second.key == "laviolette2016domain"
    assert "author = {Ada B. Lovelace and J. R. R. Tolkien}" in bibtex(first)


def test_a_question_is_kept() -> None:
    def asked() -> None:
        """Ask.

        References:
            Ann Lee. Why Not? 2020.
        """

    assert references(asked) == [Reference(("Ann Lee",), "Why Not?", 2020)]


@pytest.mark.parametrize("module", ["losses", "align", "terms"])
def test_every_reference_of_the_library_is_read(module: str) -> None:
    where = getattr(tt, module)
    for name in where.__all__:
        fn = getattr(where, name)
        lines = section(fn, "References")
        found = references(fn)
        assert len(found) == len([line for line in lines.splitlines() if line.endswith(".") and line[-5:-1].isdigit()])
        assert found or not lines, name
