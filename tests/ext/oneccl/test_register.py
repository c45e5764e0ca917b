"""Finding oneCCL, setting its environment, building the backend, registering it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from ttransfer._errors import TransferError
from ttransfer_ext.oneccl import _build, _environment, _register, _runtime, register
from ttransfer_ext.oneccl._runtime import Runtime, installed

ROOT = pathlib.Path(__file__).parents[3]


def test_the_entry_point_names_register() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["ttransfer.backends"]["ccl"] == "ttransfer_ext.oneccl:register"


def test_registering_twice_is_registering_once() -> None:
    register()
    known = dist.Backend._plugins["CCL"]
    register()
    assert dist.Backend._plugins["CCL"] is known


def test_what_the_wheels_say_and_what_is_loaded_are_the_same() -> None:
    assert _build.load(installed()).version() == importlib.metadata.version("oneccl-cpu-devel")


@pytest.mark.parametrize("package", _runtime.PACKAGES)
def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(TransferError, match=rf"found no package {package}; .*pip install 'ttransfer\[oneccl\]'"):
        installed()


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2021.17.0")
    with pytest.raises(TransferError, match=r"found oneccl-cpu-devel 2021\.17\.0; it wants 2021\.15\.\*"):
        installed()


def test_a_header_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(TransferError, match=r"found no oneapi/ccl\.hpp in the package oneccl-cpu-devel; .*--force-rei"):
        installed()


def test_the_users_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = installed()
    wanted = _environment.defaults(runtime)
    for name in wanted:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FI_PROVIDER", "verbs")
    found = _environment.prepare(runtime)
    assert os.environ["FI_PROVIDER"] == "verbs"
    assert found == {name: value for name, value in wanted.items() if name != "FI_PROVIDER"}
    assert all(os.environ[name] == value for name, value in found.items())


def test_nobody_outside_is_let_in_by_default() -> None:
    found = _environment.defaults(installed())
    assert (found["FI_TCP_IFACE"], found["CCL_KVS_IFACE"]) == ("lo", "lo")


@pytest.fixture
def empty_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_no_compiler(empty_cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TransferError, match=r"no C\+\+ compiler 'no-such-compiler' .* environment variable CXX"):
        _build.compiled(installed())


def test_no_headers_of_python(
    empty_cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(_build.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(TransferError, match=r"found no Python\.h in .* \(python3-dev\)"):
        _build.compiled(installed())


def script(place: pathlib.Path, text: str) -> str:
    path = place / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_fails(
    empty_cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("CXX", script(tmp_path, "echo 'x.hpp:1: error: no C++20 here' >&2; exit 1"))
    with pytest.raises(TransferError, match=r"(?s)failed with status 1; .*error: no C\+\+20 here"):
        _build.compiled(installed())
    assert "building the backend for torch" in capsys.readouterr().err
    assert not list(empty_cache.rglob("*.so"))
    assert not list(empty_cache.rglob("*.part"))


def test_a_library_that_does_not_load(
    empty_cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", script(tmp_path, 'for last; do :; done; echo nothing > "$last"'))
    with pytest.raises(TransferError, match=r"cannot load .*_ttransfer_ccl\.so: .*delete it to build it again"):
        _build.load.__wrapped__(installed())


def test_of_many_ranks_one_builds(
    empty_cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    count = tmp_path / "count"
    compiler = script(tmp_path, f'for last; do :; done; sleep 0.5; echo . >> {count}; echo nothing > "$last"')
    monkeypatch.setenv("CXX", compiler)
    importlib.import_module("torch.utils.cpp_extension")
    # A lock on a file does not tell threads from processes: each opens it for itself.
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(_build.compiled, [installed()] * 3))
    assert {path.name for path in paths} == {"_ttransfer_ccl.so"}
    assert count.read_text().split() == ["."]
    assert not list(empty_cache.rglob("*.part"))
    assert capsys.readouterr().err.count("waiting for it") >= 1


def test_the_cache_knows_torch_and_oneccl(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = installed()
    keys = {_build._key(runtime), _build._key(runtime._replace(version="2021.15.9"))}
    monkeypatch.setattr(_build.torch, "__version__", "2.8.0")
    keys.add(_build._key(runtime))
    assert len(keys) == 3


def test_intels_own_bindings_are_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(dist.Backend, "backend_list", ["gloo"])
    monkeypatch.setattr(_register.importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(_register.importlib, "import_module", imported.append)
    register()
    assert imported == ["oneccl_bindings_for_pytorch"]


def test_torch_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(TransferError, match=r"has no torch\.distributed; install another build"):
        register()


def test_runtime_is_found_where_pip_has_put_it() -> None:
    found: Runtime = installed()
    assert found.library.name == "libccl.so.1"
    assert (found.fabric / "libtcp-fi.so").is_file()
