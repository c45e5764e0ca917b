"""The path grammar: where a term reads from, parsed once and printed back the same.

Paths are:
    net(domain)             the output of a forward
    net(domain)#2           of an independent second pass (other dropout)
    net(domain).tap         a submodule's output, by its dotted name
    net(domain).tap:in      a submodule's input
    net(domain).tap@1       the second call of a module that is called more than once
    ...[0], ...[key]        a part of a tuple or dict
    net:params              all parameters of a net, a flat dict
    net:fn                  the net as a pure function of its inputs
    domain.field            a tensor of the batch
    domain:keys             a number for each row, from which a loss draws at random
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, NoReturn, cast

from ttransfer._errors import TransferError

__all__ = ["Field", "Forward", "Keys", "NetFn", "NetParams", "Path", "Pick", "Tap", "parse_path"]

Pick = int | str

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODULE = re.compile(r"[^\s.:@\[\]()#|]+(?:\.[^\s.:@\[\]()#|]+)*")
_INDEX = re.compile(r"0|-?[1-9][0-9]{0,8}")
_COUNT = re.compile(r"0|[1-9][0-9]{0,8}")


def _picked(picks: tuple[Pick, ...]) -> str:
    return "".join(f"[{pick}]" for pick in picks)


class Tap(NamedTuple):
    """A value inside a forward: a module's output or input, at one of its calls."""

    module: str
    input: bool = False
    call: int | None = None

    def __str__(self) -> str:
        return self.module + (":in" if self.input else "") + ("" if self.call is None else f"@{self.call}")


class Forward(NamedTuple):
    """A reading of a forward pass."""

    net: str
    domain: str
    number: int = 1
    tap: Tap | None = None
    picks: tuple[Pick, ...] = ()

    def __str__(self) -> str:
        again = "" if self.number == 1 else f"#{self.number}"
        tap = "" if self.tap is None else f".{self.tap}"
        return f"{self.net}({self.domain}){again}{tap}{_picked(self.picks)}"


class NetParams(NamedTuple):
    """All parameters of a net."""

    net: str

    def __str__(self) -> str:
        return f"{self.net}:params"


class NetFn(NamedTuple):
    """A net as a pure function."""

    net: str

    def __str__(self) -> str:
        return f"{self.net}:fn"


class Field(NamedTuple):
    """A tensor of the batch."""

    domain: str
    field: str
    picks: tuple[Pick, ...] = ()

    def __str__(self) -> str:
        return f"{self.domain}.{self.field}{_picked(self.picks)}"


class Keys(NamedTuple):
    """One integer for each row of a domain, another at each step: what `tt.uniform` draws from."""

    domain: str

    def __str__(self) -> str:
        return f"{self.domain}:keys"


Path = Forward | NetParams | NetFn | Field | Keys


class _Scanner:
    """A position in a text, and what may come there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, wanted: str) -> NoReturn:
        found = repr(self.text[self.at]) if self.at < len(self.text) else "the end"
        raise TransferError(f"cannot read {self.text!r}: expected {wanted} at position {self.at}, found {found}")

    def take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def need(self, literal: str) -> None:
        if not self.take(literal):
            self.fail(repr(literal))

    def match(self, pattern: re.Pattern[str], wanted: str) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            self.fail(wanted)
        self.at = found.end()
        return found.group()

    def picks(self) -> tuple[Pick, ...]:
        picks: list[Pick] = []
        while self.take("["):
            if index := _INDEX.match(self.text, self.at):
                self.at = index.end()
                picks.append(int(index.group()))
            else:
                picks.append(self.match(_NAME, "an index or a key"))
            self.need("]")
        return tuple(picks)

    def end(self) -> None:
        if self.at < len(self.text):
            self.fail("the end of the path")


_WHOLE: dict[str, type[NetParams | NetFn | Keys]] = {"params": NetParams, "fn": NetFn, "keys": Keys}


def parse_path(text: str) -> Path:
    """Parse one path; `str` of the result is the text again.

    Args:
        text: see the module's docstring for the grammar.

    Raises:
        TransferError: if the text is no path; the message tells the position.

    Example:
        >>> parse_path("student(source).fc:in")
        Forward(net='student', domain='source', number=1, tap=Tap(module='fc', input=True, call=None), picks=())
        >>> str(parse_path("student(source)#2.encoder.0@1[hidden]"))
        'student(source)#2.encoder.0@1[hidden]'
    """
    if not isinstance(cast(Any, text), str):
        raise TransferError(f"cannot read a {type(text).__name__}: expected a string such as 'net(domain)'")
    scan = _Scanner(text)
    name = scan.match(_NAME, "the name of a net or domain")
    if scan.take("("):
        return _forward(scan, name)
    if scan.take(":"):
        kind = scan.match(_NAME, "'params', 'fn' or 'keys'")
        if kind not in _WHOLE:
            scan.at -= len(kind)
            scan.fail("'params', 'fn' or 'keys'")
        scan.end()
        return _WHOLE[kind](name)
    if not scan.take("."):
        scan.fail("'(', '.' or ':'")
    path = Field(name, scan.match(_NAME, "the name of a field"), scan.picks())
    scan.end()
    return path


def _forward(scan: _Scanner, net: str) -> Forward:
    """Parse what follows "net("."""
    domain = scan.match(_NAME, "the name of a domain")
    scan.need(")")
    number = 1
    if scan.take("#"):
        number = int(scan.match(_COUNT, "the number of the pass, from 2"))
        if number < 2:
            scan.at -= 1
            scan.fail("a number from 2 (the first pass is written without '#')")
    tap = None
    if scan.take("."):
        module = scan.match(_MODULE, "the name of a submodule")
        inner = scan.take(":in")
        call = int(scan.match(_COUNT, "the number of the call, from 0")) if scan.take("@") else None
        tap = Tap(module, inner, call)
    picks = scan.picks()
    scan.end()
    return Forward(net, domain, number, tap, picks)
