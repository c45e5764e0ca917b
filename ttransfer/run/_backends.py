"""The compilers that `tt.compile` knows by name: torch's, and those that installed packages add."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from ttransfer._errors import TransferError, nearest

__all__ = ["GROUP", "Compiler", "backend_of"]

GROUP = "ttransfer.compilers"
Compiler = str | Callable[..., Any]


def backend_of(name: str) -> Compiler:
    """Return what `torch.compile` takes for a backend of this name, ready for use.

    A package adds a backend by an entry point in the group ``ttransfer.compilers``: a function without
    arguments that imports what it needs and returns what `torch.compile` takes, a name or a callable; or
    raises a `TransferError` that says what it lacks.

    Raises:
        TransferError: if nobody knows the name, or the package that does cannot run here.

    Example:
        >>> backend_of("inductor")
        'inductor'
    """
    from torch._dynamo import list_backends

    added = {entry.name: entry for entry in entry_points(group=GROUP)}
    # Before torch's: a package, once imported, may tell torch too of a backend of that name, as IPEX does.
    if name in added:
        return added[name].load()()
    known = list_backends(exclude_tags=())
    if name in known:
        return name
    # This library's own metadata has some, so that none at all means that it is not there, or an old one.
    lost = "" if added else f"; nor does any installed package have one ({GROUP!r}): install ttransfer (again)"
    raise TransferError(f"compile: no backend {name!r}{nearest(name, [*known, *added])}{lost}")
