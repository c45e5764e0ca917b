"""Other packages, where they are installed."""

from __future__ import annotations

import importlib
from typing import Any

from ttransfer import TransferError

__all__ = ["needed"]


def needed(package: str, extra: str) -> Any:
    """Import a package.

    Args:
        package: its name, or that of one of its modules.
        extra: the extra of ours that installs it.

    Raises:
        TransferError: if it is not installed.

    Example:
        >>> needed("no_such_package", "vision")
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: no_such_package is needed and not installed: pip install 'ttransfer[vision]'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        top = package.partition(".")[0]
        if not f"{package}.".startswith(f"{error.name}."):
            raise
        raise TransferError(f"{top} is needed and not installed: pip install 'ttransfer[{extra}]'") from error
