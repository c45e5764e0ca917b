"""Which versions go together."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from ttransfer import TransferError

__all__ = ["WANTED", "check_versions"]

WANTED: Mapping[str, str] = {
    "intel-extension-for-pytorch": "2.8.0",
    "torch": "2.8.0",
    "torchvision": "0.23.0",
}
# IPEX imports torchvision where there is one, and one of another torch fails then.
OPTIONAL = ("torchvision",)


def check_versions(installed: Mapping[str, str | None] | None = None) -> None:
    """Refuse versions that do not work together, before anything is imported.

    Major and minor numbers must be those of `WANTED`; IPEX, torch and torchvision are built for one another.

    Args:
        installed: name to version, or None for a package that is absent; by default, what is installed here.

    Raises:
        TransferError: for an absent or another version; it says which go together.

    Example:
        >>> check_versions({"intel-extension-for-pytorch": "2.8.0+cpu", "torch": "2.8.1", "torchvision": None})
        >>> newer = {"intel-extension-for-pytorch": None, "torch": "2.15.0", "torchvision": "0.29.2"}
        >>> check_versions(newer)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: the backend 'ipex' needs intel-extension-for-pytorch 2.8.0, torch 2.8.0 ...
    """
    here = {name: _version(name) for name in WANTED} if installed is None else installed
    if all(_fits(name, here[name]) for name in WANTED):
        return
    wanted = _listed([f"{name} {number}" for name, number in WANTED.items()])
    found = _listed([f"{name} {number}" if number else f"no {name}" for name, number in here.items()])
    raise TransferError(
        f"the backend 'ipex' needs {wanted}, which go together, in an environment of their own (docs/ipex.md); "
        f"found {found}. These are the last versions of IPEX: with a newer torch use backend='inductor', the "
        "default, into which Intel has moved that work"
    )


def _fits(name: str, number: str | None) -> bool:
    if number is None:
        return name in OPTIONAL
    return number.split(".")[:2] == WANTED[name].split(".")[:2]


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
