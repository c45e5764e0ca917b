"""Compilers by name: torch's, and those of installed packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import mlp, vectors
from ttransfer.run import _backends
from ttransfer.run._backends import GROUP, backend_of

MODULE = """
from ttransfer import TransferError
seen = []
def run(graph, inputs, **options):
    seen.append(options)
    return graph
def ready():
    return run
def absent():
    raise TransferError("the backend 'lame' needs legs")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package with two compilers, installed as pip would."""
    (tmp_path / "ttransfer_test_compilers.py").write_text(MODULE)
    metadata = tmp_path / "ttransfer_test_compilers-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ttransfer-test-compilers\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        f"[{GROUP}]\nswift = ttransfer_test_compilers:ready\nlame = ttransfer_test_compilers:absent\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("ttransfer_test_compilers")


def step() -> tt.Step:
    return tt.step(
        {"net": tt.functional(mlp(1))},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
    )


def test_torchs_own_go_by_their_names() -> None:
    assert backend_of("inductor") == "inductor"
    assert backend_of("aot_eager") == "aot_eager"


def test_a_package_adds_a_compiler(package: Any) -> None:
    plain, fast = step(), tt.compile(step(), backend="swift")
    state = plain.init(vectors(0))
    assert worst(fast(state, vectors(0)), plain(state, vectors(0))) < 1e-12
    assert len(package.seen) == 1
    again = tt.replace(fast, more=tt.term(torch.nn.functional.cross_entropy, "net(source)", "source.y"))
    again(again.init(vectors(0)), vectors(0))
    assert len(package.seen) == 2


def test_it_comes_before_a_backend_that_torch_has_of_that_name(package: Any) -> None:
    def other(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        raise AssertionError

    torch._dynamo.register_backend(other, name="swift")
    try:
        assert backend_of("swift") is package.run
    finally:
        del torch._dynamo.backends.registry._COMPILER_FNS["swift"]


@pytest.mark.usefixtures("package")
def test_what_it_lacks_is_said_at_once() -> None:
    with pytest.raises(tt.TransferError, match="needs legs"):
        tt.compile(step(), backend="lame")


@pytest.mark.usefixtures("package")
def test_an_unknown_name_tells_what_is_near() -> None:
    with pytest.raises(tt.TransferError, match="no backend 'inductr'; did you mean 'inductor'"):
        tt.compile(step(), backend="inductr")
    with pytest.raises(tt.TransferError, match=r"no backend 'swif'; did you mean 'swift'\?$"):
        tt.compile(step(), backend="swif")


def test_sources_that_are_not_installed_are_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "entry_points", lambda group: ())
    with pytest.raises(tt.TransferError, match=r"no backend 'ipex'.*'ttransfer\.compilers'.*install ttransfer"):
        tt.compile(step(), backend="ipex")


def test_the_library_brings_ipex() -> None:
    (entry,) = {e.value for e in _backends.entry_points(group=GROUP) if e.name == "ipex"}
    assert entry == "ttransfer_ext.ipex:compiler"
