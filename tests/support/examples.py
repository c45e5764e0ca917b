"""An example imported as a module, and forgotten afterwards."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

FOLDER = pathlib.Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def imported(name: str) -> Iterator[Any]:
    """Import an example by its name, among its neighbours; what it brought from the folder goes with it."""
    known = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
        for neighbour in {path.stem for path in FOLDER.glob("*.py")} & set(sys.modules) - known:
            del sys.modules[neighbour]
