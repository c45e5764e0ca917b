"""Where pip has put oneCCL: its headers, its library, and libfabric's providers."""

from __future__ import annotations

import importlib.metadata
import pathlib
from typing import NamedTuple

from ttransfer._errors import TransferError

INSTALL = "pip install 'ttransfer[oneccl]'"
# Later wheels are linked against a libccl.so.2 that none of them holds.
SERIES = "2021.15."
PACKAGES = ("oneccl-cpu-devel", "oneccl-cpu", "impi-rt")


class Runtime(NamedTuple):
    """The installed oneCCL.

    Attributes:
        version: the version of its headers and library.
        include: the directory that holds `oneapi/ccl.hpp`.
        library: `libccl.so.1`, to load.
        fabric: the directory that holds libfabric and its TCP provider.
    """

    version: str
    include: pathlib.Path
    library: pathlib.Path
    fabric: pathlib.Path


def installed() -> Runtime:
    """Find oneCCL among the installed packages, and check that they fit.

    Returns:
        Where the parts are.

    Raises:
        TransferError: if a package is missing, is of another version, or lacks a file.

    Example:
        >>> from ttransfer_ext.oneccl._runtime import installed
        >>> runtime = installed()
        >>> runtime.version.startswith("2021.15."), (runtime.include / "oneapi" / "ccl.hpp").is_file()
        (True, True)
    """
    versions = {name: _version(name) for name in PACKAGES}
    return Runtime(
        versions["oneccl-cpu-devel"],
        _file("oneccl-cpu-devel", "oneapi/ccl.hpp").parents[1],
        _file("oneccl-cpu-devel", "libccl.so.1", "oneccl-cpu"),
        _file("impi-rt", "libtcp-fi.so").parent,
    )


def _version(name: str) -> str:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise TransferError(
            f"backend 'ccl': found no package {name}; it wants {', '.join(PACKAGES)} of version {SERIES}*: {INSTALL}"
        ) from None
    if not version.startswith(SERIES):
        raise TransferError(
            f"backend 'ccl': found {name} {version}; it wants {SERIES}*, because later ones do not link: {INSTALL}"
        )
    return version


def _file(package: str, tail: str, *others: str) -> pathlib.Path:
    for name in (package, *others):
        for entry in importlib.metadata.files(name) or ():
            path = pathlib.Path(str(entry.locate())).resolve()
            if path.as_posix().endswith(f"/{tail}") and path.is_file():
                return path
    raise TransferError(
        f"backend 'ccl': found no {tail} in the package {' or '.join((package, *others))}; its files have been moved "
        f"or deleted: {INSTALL} --force-reinstall"
    )
