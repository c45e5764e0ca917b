"""The model that a command line names: its tensors' names, shapes and dtypes are what is wanted."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import inspect
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ttransfer._errors import TransferError, nearest
from ttransfer.cli._load import load

__all__ = ["GROUP", "model"]

GROUP = "ttransfer.models"  # entry points: functions (name, *, classes) -> nn.Module


def model(place: str, *, classes: int | None = None) -> nn.Module:
    """Make a model, on the meta device where it can be made there.

    Args:
        place: "timm:NAME", "torchvision:NAME" or what else the entry points in `ttransfer.models` begin; or
            "package.module:factory" or "file.py:factory", a function, a class or a module.
        classes: of its head, for those of the entry points, and for a factory that takes `classes` or `num_classes`.

    Raises:
        TransferError: for a model that is not there or cannot be made.

    Example:
        >>> model("torch.nn:Identity")
        Identity()
    """
    kind, colon, name = place.partition(":")
    kinds = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if colon and kind in kinds:
        try:
            make = kinds[kind].load()
        except Exception as error:
            raise TransferError(f"{kind}: loading {kinds[kind].value} raised {_told(error)}") from error
        return _made(place, lambda: make(name, classes=classes))
    if not colon:
        known = nearest(place, [f"{one}:{place}" for one in kinds])
        raise TransferError(
            f"{place!r} names no model: want KIND:NAME, package.module:factory or file.py:factory{known}"
        )
    if kind.isidentifier() and (meant := difflib.get_close_matches(kind, kinds)) and not importlib.util.find_spec(kind):
        raise TransferError(f"there is no module {kind!r}; did you mean '{meant[0]}:{name}'?")
    found = load(place)
    if isinstance(found, nn.Module):
        if classes is not None:
            raise TransferError(f"--classes: {place} is made already")
        return found
    if not callable(found):
        raise TransferError(f"{place} is a {type(found).__name__}; want a function or a class that makes an nn.Module")
    options = {} if classes is None else {_head(place, found): classes}
    return _made(place, lambda: found(**options))


def _head(place: str, factory: Callable[..., Any]) -> str:
    try:
        known = inspect.signature(factory).parameters
    except ValueError:
        known = {}
    for name in ("classes", "num_classes"):
        if name in known:
            return name
    raise TransferError(f"--classes: {place} takes no classes, nor num_classes")


def _made(place: str, make: Callable[[], Any]) -> nn.Module:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            with torch.device("meta"):
                found = make()
        except TransferError:
            raise
        except Exception:
            # Some look at a value while they are made, and there is none on the meta device.
            try:
                found = make()
            except TransferError:
                raise
            except Exception as error:
                raise TransferError(f"{place} raised {_told(error)}") from error
    if not isinstance(found, nn.Module):
        raise TransferError(f"{place} returned a {type(found).__name__}; want an nn.Module")
    return found


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")
