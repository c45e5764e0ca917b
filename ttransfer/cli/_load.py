"""Import what a command line names: `package.module:name` or `file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ttransfer._errors import TransferError, nearest

__all__ = ["load"]


def load(place: str) -> Any:
    """Import one object, with the current directory on the path.

    A file inside a package is imported as a part of that package, so that its own relative imports work.

    Args:
        place: "package.module:name" or "path/file.py:name"; the name may be dotted.

    Returns:
        The object.

    Raises:
        TransferError: if there is no such file, module or name, or if importing it raises.

    Example:
        >>> load("math:sqrt")(9.0)
        3.0
        >>> load("math:sqr")
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: math has no 'sqr'; did you mean 'sqrt' or 'isqrt'?
    """
    where, colon, name = place.rpartition(":")
    if not colon or not where or place.endswith(".py"):
        raise TransferError(f"{place!r} names no function: want package.module:name or file.py:name{_meant(place)}")
    _on_path(os.getcwd())
    module = _of_file(Path(where)) if _is_file(where) else _of_name(where, where)
    return _attribute(module, where, name)


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where or os.sep in where


def _meant(place: str) -> str:
    if _is_file(place):
        if not Path(place).is_file():
            return ""
        _on_path(os.getcwd())
        return nearest("", _names(_of_file(Path(place))))
    module, dot, name = place.rpartition(".")
    return f"; did you mean '{module}:{name}'?" if dot else ""


def _on_path(folder: str) -> None:
    if folder not in sys.path and not (folder == os.getcwd() and "" in sys.path):
        sys.path.insert(0, folder)


def _of_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        there = [p.name for p in path.parent.glob("*.py")]
        raise TransferError(f"there is no file {_short(path)}{nearest(path.name, there)}")
    if path.suffix != ".py":
        raise TransferError(f"{_short(path)} is no Python file; want file.py:name")
    top, parts = path.parent, [path.stem]
    while (top / "__init__.py").is_file():
        top, parts = top.parent, [top.name, *parts]
    _on_path(str(top))
    name = ".".join(parts if parts[-1] != "__init__" else parts[:-1])
    if _is_at(name, path):
        return _of_name(name, _short(path))
    # Another module has this name, or it is none: the file gets a name of its own.
    alias = f"_ttransfer_{path.stem}_{abs(hash(str(path))):x}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[alias]
        raise _raised(_short(path), error) from error
    return module


def _is_at(name: str, path: Path) -> bool:
    """Whether importing a name would import this file."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path


def _of_name(name: str, shown: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and f"{name}.".startswith(f"{missing}."):
            near = nearest(missing, _modules_beside(missing))
            raise TransferError(f"there is no module {missing!r}{near}") from error
        raise _raised(shown, error) from error
    except (Exception, SystemExit) as error:
        raise _raised(shown, error) from error


def _modules_beside(name: str) -> list[str]:
    parent, dot, _ = name.rpartition(".")
    folders: Iterable[str] = getattr(sys.modules.get(parent), "__path__", []) if dot else [os.getcwd()]
    return [f"{parent}{dot}{m.name}" for m in pkgutil.iter_modules(folders)]


def _raised(shown: str, error: BaseException) -> TransferError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    place = ""  # a SyntaxError says it itself
    if frames and frames[-1].filename != __file__ and not isinstance(error, SyntaxError):
        place = f" ({_short(Path(frames[-1].filename))}:{frames[-1].lineno})"
    text = str(error).strip().split("\n")[0]
    return TransferError(f"importing {shown} raised {type(error).__name__}: {text}{place}")


def _attribute(module: ModuleType, where: str, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            known = _names(found) if isinstance(found, ModuleType) else [n for n in dir(found) if n[0] != "_"]
            raise TransferError(f"{where} has no {name!r}{nearest(part, known)}") from None
    return found


def _names(module: ModuleType) -> list[str]:
    """The names in a module that can be called, its own before those that it imported."""
    called = [n for n, value in vars(module).items() if n[0] != "_" and callable(value)]
    own = [n for n in called if _is_own(vars(module)[n], module)]
    return own or called or [n for n in dir(module) if n[0] != "_"]


def _is_own(value: Any, module: ModuleType) -> bool:
    """An instance, such as a partial, does not say where it was made."""
    where = getattr(value, "__module__", None)
    return where == module.__name__ if inspect.isroutine(value) or inspect.isclass(value) else True


def _short(path: Path) -> str:
    """The path as a reader in the current directory would write it."""
    inside = path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd()) if inside else path)
