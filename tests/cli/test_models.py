"""The model that a command line names."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ttransfer._errors import TransferError
from ttransfer.cli import _models
from ttransfer.cli._models import GROUP, model

CODE = """
import torch
from torch import nn

def net(width=3, num_classes=5):
    print("made")
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, num_classes))

def looks():
    made = nn.Linear(2, 2)
    return made if made.weight.sum().item() < 99 else None

class Net(nn.Linear):
    def __init__(self, classes=4):
        super().__init__(2, classes)

made = nn.Linear(2, 2)
three = 3
def number(): return 3
def fails(): raise ValueError("no such width\\nat all")
def needs(width): return nn.Linear(width, 2)
"""


@pytest.fixture
def nets(folder: Path) -> Path:
    (folder / "my_nets.py").write_text(CODE)
    return folder / "my_nets.py"


def test_a_factory_is_called_on_the_meta_device(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = model("my_nets.py:net")
    assert [tuple(p.shape) for p in made.parameters()] == [(3, 2), (3,), (5, 3), (5,)]
    assert all(p.is_meta for p in made.parameters())
    assert not capsys.readouterr().out
    assert model("my_nets:Net").weight.is_meta


def test_one_that_looks_at_values_is_made_on_the_cpu(nets: Path) -> None:
    assert not model("my_nets:looks").weight.is_meta


def test_a_module_is_taken_as_it_is(nets: Path) -> None:
    assert isinstance(model("my_nets.py:made"), nn.Linear)


def test_classes(nets: Path) -> None:
    assert model("my_nets:net", classes=7)[1].weight.shape == (7, 3)
    assert model("my_nets:Net", classes=7).weight.shape == (7, 2)


@pytest.mark.parametrize(
    ("place", "classes", "why"),
    [
        ("my_nets:made", 3, "--classes: my_nets:made is made already"),
        ("my_nets:looks", 3, "--classes: my_nets:looks takes no classes, nor num_classes"),
        ("my_nets:three", None, "my_nets:three is a int; want a function or a class that makes an nn.Module"),
        ("my_nets:number", None, "my_nets:number returned a int; want an nn.Module"),
        ("my_nets:fails", None, "my_nets:fails raised ValueError: no such width"),
        ("my_nets:needs", None, "my_nets:needs raised TypeError: needs() missing 1 required positional argument"),
        ("my_nets:nett", None, "my_nets has no 'nett'; did you mean 'net'"),
        ("tim:resnet18", None, "there is no module 'tim'; did you mean 'timm:resnet18'?"),
        ("resnet18", None, "'resnet18' names no model: want KIND:NAME, package.module:factory or file.py:factory"),
    ],
)
def test_what_is_no_model_is_told(nets: Path, place: str, classes: int | None, why: str) -> None:
    with pytest.raises(TransferError) as caught:
        model(place, classes=classes)
    assert str(caught.value).startswith(why)


def make(name: str, *, classes: int | None = None) -> nn.Module:
    if name != "tiny":
        raise TransferError(f"mine: there is no {name!r}; did you mean 'tiny'?")
    return nn.Linear(2, classes or 9)


def test_other_packages_add_kinds_of_model(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "mine": importlib.metadata.EntryPoint("mine", f"{__name__}:make", GROUP),
        "gone": importlib.metadata.EntryPoint("gone", "no_such_module_at_all:model", GROUP),
    }

    def entry_points(group: str) -> Any:
        return list(points.values()) if group == GROUP else []

    monkeypatch.setattr(_models.importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: {"mine": make}.get(self.name) or _absent())
    made = model("mine:tiny", classes=3)
    assert made.weight.shape == (3, 2)
    assert made.weight.device == torch.device("meta")
    with pytest.raises(TransferError, match=re.escape("mine: there is no 'tini'; did you mean 'tiny'?")):
        model("mine:tini")
    with pytest.raises(TransferError, match="gone: loading no_such_module_at_all:model raised ModuleNotFoundError"):
        model("gone:tiny")
    with pytest.raises(TransferError, match=r"'tiny' names no model: .*; did you mean 'mine:tiny'"):
        model("tiny")


def _absent() -> Any:
    raise ModuleNotFoundError("No module named 'no_such_module_at_all'")


def test_the_package_has_kinds_of_its_own() -> None:
    kinds = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    assert (
        kinds.items() >= {"timm": "ttransfer_ext.timm:model", "torchvision": "ttransfer_ext.torchvision:model"}.items()
    )
