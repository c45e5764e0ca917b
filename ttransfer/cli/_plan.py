"""`ttransfer plan`: what would become of a checkpoint in a model, before anything is done."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from rich.text import Text
from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.cli._models import model
from ttransfer.core._maps import Plan, WeightMap
from ttransfer.weights import chain, drop, load, match, match_by_name, match_by_order, match_by_shape, rename
from ttransfer.weights._match import unread
from ttransfer.weights._show import lines
from ttransfer.weights._transfer import plan_into

__all__ = ["Options", "run"]

FEW = 12  # rows of one sort, unless all are asked for
MATCHES = {"": match, "name": match_by_name, "order": match_by_order, "shape": match_by_shape}
PATTERN = re.compile(r"[\\^$*+?()\[\]{}|]")  # what no parameter's name has, and a regular expression does


class Options(NamedTuple):
    """What was typed.

    Attributes:
        src: a checkpoint.
        model: what it is for.
        of: which checkpoint in the file.
        rename: OLD=NEW.
        drop: patterns.
        allow: patterns.
        by: "" or name, order or shape.
        classes: of the model's head.
        every: all rows.
    """

    src: str
    model: str
    of: str | None = None
    rename: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    by: str = ""
    classes: int | None = None
    every: bool = False


class _Sort(NamedTuple):
    """Rows of one sort: how one and several are called, and how they look."""

    one: str
    several: str
    style: str
    rows: list[tuple[str, str, str]]


def run(options: Options) -> int:
    """Run `ttransfer plan`; return its exit code: 0 all is accounted for, 1 it is not, 2 there is no plan.

    Args:
        options: what was typed.
    """
    system = None if os.environ.get("NO_COLOR") else "auto"
    out, err = (Console(color_system=system, highlight=False, stderr=stderr) for stderr in (False, True))
    try:
        return _planned(options, out)
    except TransferError as error:
        err.print(f"ttransfer plan: {error}", markup=False, soft_wrap=True)
        return 2


def _planned(options: Options, out: Console) -> int:
    before, last = _maps(options)
    said: list[str] = []
    src = load(options.src, of=options.of, tell=said.append)
    own = model(options.model, classes=options.classes).state_dict(keep_vars=True)
    like = {name: x.detach() for name, x in own.items() if isinstance(x, Tensor)}
    plan, _ = plan_into(src, own, chain(before, last))
    renamed = before.apply(src, like)
    for line in said:
        _print(out, line.removeprefix("load: "), "dim")
    _print(out, f"{options.src}: {_size(src)}")
    _print(out, f"{options.model}: {_size(like)}\n")
    sorts = _sorts(plan)
    width = max((len(str(len(one.rows))) for one in sorts), default=1)
    for one in sorts:
        _print(out, f"{len(one.rows):>{width}} {one.one if len(one.rows) == 1 else one.several}", one.style)
    shown = [one for one in sorts if options.every or one.several != COPIED]
    widths = [max((len(row[i]) for one in shown for row in _few(one.rows, options)), default=0) for i in range(2)]
    for one in shown:
        _print(out, "")
        rows = _few(one.rows, options)
        for name, what, why in rows:
            _print(out, f"{name:<{widths[0]}}  {what:<{widths[1]}}  {why}".rstrip(), one.style)
        if len(rows) < len(one.rows):
            _print(out, f"... and {len(one.rows) - len(rows)} more; --all prints them", "dim")
    bad = [one for one in sorts if one.style == BAD]
    _print(out, "")
    if told := _strange(src, renamed, like):
        _print(out, told, "yellow")
    if plan.ambiguous and not options.by and (told := unread(renamed, like, options.allow)):
        _print(out, f"{told[0].upper()}{told[1:]}.")
    if bad:
        _print(out, "Not all is accounted for. --rename OLD=NEW, --drop PATTERN and --allow PATTERN say what is meant.")
        if not options.rename and (told := _prefix(src, like)):
            _print(out, told)
    else:
        _print(out, "All is accounted for.", "green")
    return int(bool(bad))


COPIED, CHANGED = "taken as they are, by name", "changed or put together on the way"
BAD = "red"


def _sorts(plan: Plan) -> list[_Sort]:
    """Sort a plan's rows: first what stands in the way, then what was decided, last what goes without saying."""
    targets = {*plan.made, *plan.kept, *plan.missing, *plan.mismatched, *plan.ambiguous}
    told = lines(plan)
    rows, unused = told[: len(targets)], told[len(targets) :]
    plain = {name for name, one in plan.made.items() if one.sources == (name,) and not one.how and not one.why}
    bad = {*plan.mismatched, *plan.missing, *plan.ambiguous}

    def among(names: set[str]) -> list[tuple[str, str, str]]:
        return [row for row in rows if row[0] in names]

    misfit, unclear = set(plan.mismatched), set(plan.ambiguous) - set(plan.mismatched)
    renamed = {n for n, one in plan.made.items() if len(one.sources) == 1 and not one.how} - plain
    found = [
        _Sort("target does not fit", "targets do not fit", BAD, among(misfit)),
        _Sort("target is ambiguous", "targets are ambiguous", BAD, among(unclear)),
        _Sort("target gets nothing", "targets get nothing", BAD, among(set(plan.missing) - misfit - unclear)),
        _Sort("source goes nowhere", "sources go nowhere", BAD, [row for row in unused if not row[2]]),
        _Sort(CHANGED, CHANGED, "cyan", among(set(plan.made) - plain - renamed - bad)),
        _Sort("taken from another name", "taken from other names", "", among(renamed - bad)),
        _Sort(
            "target stays as it is, as allowed",
            "targets stay as they are, as allowed",
            "yellow",
            among(set(plan.kept) - bad),
        ),
        _Sort(
            "source goes nowhere, as was said",
            "sources go nowhere, as was said",
            "yellow",
            [row for row in unused if row[2]],
        ),
        _Sort("taken as it is, by name", COPIED, "", among(plain - bad)),
    ]
    return [one for one in found if one.rows]


def _few(rows: list[tuple[str, str, str]], options: Options) -> list[tuple[str, str, str]]:
    return rows if options.every or len(rows) <= FEW + 1 else rows[:FEW]


def _print(out: Console, text: str, style: str = "") -> None:
    # The terminal breaks a line that is too long for it; in a pipe each row is one line.
    shown = "".join(x if x.isprintable() or x == "\n" else repr(x)[1:-1] for x in text)  # a name may hold anything
    out.print(Text(shown, style=style), soft_wrap=True)


def _size(tensors: Mapping[str, Tensor]) -> str:
    numbers = sum(x.numel() for x in tensors.values())
    size = sum(x.numel() * x.element_size() for x in tensors.values())
    return f"{len(tensors)} tensor{'s' * (len(tensors) != 1)}, {numbers:,} numbers, {size / 1e6:.1f} MB"


def _prefix(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str:
    """Say which prefix is in the way, if one is: without it, or with it, more names are the target's."""
    found = Counter({"": sum(name in like for name in src)})
    for names, others, renaming in ((src, like, "{0}="), (like, src, r"(.*)={0}.\1")):
        for name in names:
            for at in (i for i, letter in enumerate(name) if letter == "."):
                found[renaming.format(name[:at])] += name[at + 1 :] in others
    best = max(found, key=lambda renaming: found[renaming])
    return f"{found[best]} names would be the model's with --rename {shlex.quote(best)}" if best else ""


def _strange(src: Mapping[str, Tensor], renamed: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str:
    """Say which new names are none of the model's: what has such a name is matched by other means, or not at all."""
    strange = [name for name in renamed if name not in src and name not in like]
    if not strange:
        return ""
    many = f"{len(strange)} renamed tensors have names" if len(strange) > 1 else "1 renamed tensor has a name"
    return f"{many} that the model has not: {strange[0]!r}{nearest(strange[0], like)}"


def _maps(options: Options) -> tuple[WeightMap, WeightMap]:
    """What drops and renames, in the order given, and what matches."""
    if options.by not in MATCHES:
        raise TransferError(f"--by {options.by}: want name, order or shape")
    steps = [drop(options.drop)] if options.drop else []
    steps += [_renaming(text) for text in options.rename]
    return chain(*steps), MATCHES[options.by](allow=options.allow)


def _renaming(text: str) -> WeightMap:
    # What is looked for may hold a "=", as in (?=...); a new name does not.
    old, equals, new = text.rpartition("=")
    if not equals or not old:
        raise TransferError(
            f"--rename {text}: want OLD=NEW, names or prefixes, or a regular expression and what it gives"
        )
    if PATTERN.search(old):
        return rename(old, new)
    return rename({old: new}) if new else rename(rf"{re.escape(old.removesuffix('.'))}\.(.*)", r"\1")
