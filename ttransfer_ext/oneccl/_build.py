"""Compiling the backend, once for each torch and oneCCL."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from types import ModuleType

import torch

from ttransfer._errors import TransferError
from ttransfer_ext.oneccl._runtime import Runtime

NAME = "_ttransfer_ccl"
SOURCES = pathlib.Path(__file__).with_name("csrc")


@functools.cache
def load(runtime: Runtime) -> ModuleType:
    """Load the compiled backend, and compile it first if this torch and oneCCL have none.

    Many ranks may call this at once: one compiles, the others wait for it.

    Args:
        runtime: the installed oneCCL.

    Returns:
        The extension module: `create(store, rank, size, timeout)` and `version()`.

    Raises:
        TransferError: if there is no C++ compiler or it fails.

    Example:
        >>> from ttransfer_ext.oneccl._build import load
        >>> from ttransfer_ext.oneccl._runtime import installed
        >>> load(installed()).version()
        '2021.15.2'
    """
    path = compiled(runtime)
    # Loaded by its name of old, so that the extension finds it without a path of this environment inside.
    ctypes.CDLL(str(runtime.library), mode=ctypes.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise TransferError(f"backend 'ccl': cannot load {path}: {error}; delete it to build it again") from error
    return module


def compiled(runtime: Runtime) -> pathlib.Path:
    """Return the compiled extension, building it if there is none yet.

    Args:
        runtime: the installed oneCCL.

    Returns:
        The shared library's path in torch's cache of extensions (`TORCH_EXTENSIONS_DIR`).

    Raises:
        TransferError: if there is no C++ compiler or it fails.

    Example:
        >>> from ttransfer_ext.oneccl._build import compiled
        >>> from ttransfer_ext.oneccl._runtime import installed
        >>> compiled(installed()).name
        '_ttransfer_ccl.so'
    """
    path = _cache() / _key(runtime) / f"{NAME}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_suffix(".lock")):
        if not path.is_file():
            for left in path.parent.glob("*.part"):
                left.unlink()
            # Under another name until it is whole, so that a build that was killed leaves nothing that loads.
            part = path.with_suffix(f".{os.getpid()}.part")
            _compile(runtime, part)
            part.replace(path)
    return path


def _cache() -> pathlib.Path:
    # As torch.utils.cpp_extension has it, whose import looks for CUDA and warns.
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return pathlib.Path(os.environ.get("TORCH_EXTENSIONS_DIR") or home / "torch_extensions")


def _key(runtime: Runtime) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    python = sys.implementation.cache_tag
    return f"ttransfer_oneccl_{runtime.version}_torch_{torch.__version__}_{python}_{digest.hexdigest()[:12]}"


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    import fcntl  # where there is oneCCL there is this; elsewhere the module must still import

    with path.open("w") as lock:
        # The kernel lets go of it when the process ends, however it ends.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is building the backend: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(runtime: Runtime, path: pathlib.Path) -> None:
    from torch.utils.cpp_extension import get_cxx_compiler, include_paths, library_paths

    compiler = get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise TransferError(
            f"backend 'ccl': found no C++ compiler {compiler!r} to build it with; install g++ 11 or later, or name "
            "one in the environment variable CXX"
        )
    python = pathlib.Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").is_file():
        raise TransferError(
            f"backend 'ccl': found no Python.h in {python} to build it with; install the headers of Python "
            f"{sys.version_info.major}.{sys.version_info.minor} (python3-dev)"
        )
    _say(f"building the backend for torch {torch.__version__} and oneCCL {runtime.version}; this is done once")
    includes = [*include_paths(), str(python), str(runtime.include)]
    command = [
        compiler,
        *("-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", f"-DTORCH_EXTENSION_NAME={NAME}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *_pybind_flags(),
        *(flag for directory in includes for flag in ("-isystem", directory)),
        str(SOURCES / "backend.cpp"),
        *(f"-L{directory}" for directory in library_paths()),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", str(runtime.library)),
        *("-o", str(path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        path.unlink(missing_ok=True)
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise TransferError(
            f"backend 'ccl': {compiler} failed with status {done.returncode}; it wants a compiler that knows C++20, "
            "and said:\n" + "\n".join(lines[:10])
        )


def _pybind_flags() -> list[str]:
    """Return what makes older pybind11 share its types with torch, which was built by another compiler."""
    names = ("COMPILER_TYPE", "STDLIB", "BUILD_ABI")
    values = {name: getattr(torch._C, f"_PYBIND11_{name}", None) for name in names}
    return [f'-DPYBIND11_{name}="{value}"' for name, value in values.items() if value is not None]


def _say(text: str) -> None:
    sys.stderr.write(f"ttransfer_ext.oneccl: {text}\n")
    sys.stderr.flush()
