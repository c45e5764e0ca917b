"""`ttransfer losses`: what there is, from the losses' own docstrings and claims."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from ttransfer._claims import claims_of
from ttransfer._errors import TransferError, nearest
from ttransfer._references import Reference, bibtex, formula, references, section, summary
from ttransfer.cli._speeds import SPEEDS

__all__ = ["Entry", "entries", "run"]

PLACES = ("losses", "align", "terms")
HELPER = "a helper"
# What papers call their methods, where the names here say what is computed.
PAPERS = {
    "can": ("cdd",),
    "dan": ("mmd",),
    "ddc": ("mmd",),
    "deep_coral": ("coral",),
    "dsan": ("lmmd",),
    "fda": ("fourier_swap",),
    "hafn": ("afn_hard",),
    "im": ("infomax",),
    "jan": ("jmmd",),
    "mean_teacher": ("consistency",),
    "pi_model": ("consistency",),
    "rex": ("vrex",),
    "safn": ("afn",),
    "shot": ("infomax", "shot_labels"),
    "simpleshot": ("nearest_class_mean", "normalize_features"),
    "swd": ("sliced_wasserstein",),
    "tent": ("entropy",),
}


class Entry(NamedTuple):
    """A loss, a helper of losses, or a ready term.

    Attributes:
        name: under which it is found, such as "losses.kd".
        fn: it.
        papers: where it comes from; the first is its own.
        variants: the values of its `variant`, the default first.
        rows: how it treats rows, in words; of what is no loss, that it is a helper.
        tags: what it claims to obey.
        checked: what it is compared with in the tests.
        peers: packages that have it, and how they differ.
        speed: a peer's time by ours, in words.
    """

    name: str
    fn: Callable[..., Any]
    papers: tuple[Reference, ...]
    variants: tuple[str, ...]
    rows: str
    tags: tuple[str, ...]
    checked: str
    peers: str
    speed: str


def entries() -> list[Entry]:
    """All losses, alignments, their helpers and ready terms, by place and name."""
    found: list[Entry] = []
    for place in PLACES:
        module = importlib.import_module(f"ttransfer.{place}")
        for name in sorted(module.__all__):
            fn = getattr(module, name)
            if inspect.isfunction(fn):
                found.append(_entry(f"{place}.{name}", fn))
    return found


def _entry(name: str, fn: Callable[..., Any]) -> Entry:
    claims = claims_of(fn)
    tags = tuple(key.replace("_", "-") for key, value in claims.tags.items() if value is True)
    variant = inspect.signature(fn).parameters.get("variant")
    variants = () if variant is None else tuple(dict.fromkeys((variant.default, "paper", "code")))
    rows = "couples rows" if claims.coupled else "a mean"
    rows = "" if name.startswith("terms") else rows if claims.own else HELPER
    measured = [(peer, *ratios) for (loss, peer), ratios in SPEEDS.items() if loss == name]
    speed = "; ".join(f"{eager:.2g}, {compiled:.2g} ({peer})" for peer, eager, compiled in measured)
    checked, peers = (" ".join(section(fn, title).split()) for title in ("Checked against", "Peers"))
    return Entry(name, fn, tuple(references(fn)), variants, rows, tags, checked, peers, speed)


def run(name: str, cite: bool) -> int:
    """Print all of them, or one.

    Args:
        name: of one, with or without its place; "" for all.
        cite: print its papers for BibTeX and nothing else.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    known = entries()
    if not name:
        if cite:
            papers = dict.fromkeys(paper for entry in known for paper in entry.papers)
            console.print("\n\n".join(map(bibtex, papers)), soft_wrap=True)
            return 0
        _all(console, known)
        return 0
    name = name.lower()
    chosen = [entry for entry in known if name in (entry.name, entry.name.split(".")[1], f"tt.{entry.name}")]
    if not chosen:
        meant = PAPERS.get(name.replace("-", "_").replace(" ", "_"), ())
        chosen = [entry for entry in known if entry.name.split(".")[1] in meant]
    if not chosen:
        names = [entry.name.split(".")[1] for entry in known]
        raise TransferError(f"losses: there is no {name!r}{nearest(name, names)}")
    for entry in chosen:
        if cite:
            console.print("\n\n".join(map(bibtex, entry.papers)), soft_wrap=True)
        else:
            _one(console, entry)
    return 0


def _all(console: Console, known: list[Entry]) -> None:
    table = Table(box=None, pad_edge=False, header_style="", collapse_padding=True)
    for column in ("name", "paper", "rows"):
        table.add_column(column, no_wrap=column != "paper")
    for entry in known:
        table.add_row(entry.name, str(entry.papers[0]) if entry.papers else "", entry.rows)
    console.print(table)
    console.print("ttransfer losses NAME tells more of one")


def _one(console: Console, entry: Entry) -> None:
    console.print(f"tt.{entry.name}{inspect.signature(entry.fn)}", soft_wrap=True)
    console.print(summary(entry.fn), soft_wrap=True)
    lines = {
        "formula": formula(entry.fn),
        "variants": ", ".join(entry.variants),
        "rows": entry.rows,
        "claims": ", ".join(entry.tags),
        "checked against": entry.checked,
        "peers": entry.peers,
        "speed": entry.speed and f"a peer's time by ours, eager and compiled: {entry.speed}",
        "papers": "\n".join(map(str, entry.papers)),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in lines.items():
        if text:
            table.add_row(title, text)
    console.print(table)
    for title in ("Args", "Returns", "Raises", "Example"):
        if text := section(entry.fn, title):
            console.print(f"\n{title}:\n{textwrap.indent(text, '    ')}", soft_wrap=True)
    console.print()
