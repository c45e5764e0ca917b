"""Which versions go together, and the noise of the import. Needs no IPEX."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import ttransfer as tt
from ttransfer_ext.ipex import WANTED, check_versions
from ttransfer_ext.ipex._compiler import OVERRIDE

RIGHT = dict(WANTED)
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "change", [{}, {"torch": "2.8.0+cpu"}, {"torch": "2.8.1"}, {"torchvision": None}], ids=["", "+cpu", "patch", "none"]
)
def test_what_goes_together(change: dict[str, str | None]) -> None:
    check_versions({**RIGHT, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch": "2.15.0"}, "found intel-extension-for-pytorch 2.8.0, torch 2.15.0 and torchvision 0.23.0"),
        ({"torchvision": "0.24.0"}, "torchvision 0.24.0"),
        ({"intel-extension-for-pytorch": "2.7.0+cpu"}, "found intel-extension-for-pytorch 2.7.0+cpu"),
        ({"intel-extension-for-pytorch": None}, "found no intel-extension-for-pytorch"),
        ({"torch": None}, "no torch"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else "",
)
def test_what_does_not(change: dict[str, str | None], said: str) -> None:
    with pytest.raises(tt.TransferError) as found:
        check_versions({**RIGHT, **change})
    for part in (said, *(f"{name} {number}" for name, number in WANTED.items()), "'inductor', the default"):
        assert part in str(found.value)


def test_the_extra_installs_what_is_wanted() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {f"{name}=={number}" for name, number in WANTED.items()} <= set(extras["ipex"])


NOISE = """\
[W1126 10:32:06.570829985 OperatorEntry.cpp:218] Warning: Warning only once for all operators.
  Overriding a previously registered kernel for the same operator and the same dispatch key
  operator: aten::_addmm_activation(Tensor self, Tensor mat1) -> Tensor
    registered at RegisterSchema.cpp:6
  dispatch key: AutocastCPU
  previous kernel: registered at autocast_mode.cpp:327
       new kernel: registered at autocast_mode.cpp:112 (function operator())
"""


def test_the_known_noise_goes_and_nothing_else() -> None:
    assert OVERRIDE.sub("", f"before\n{NOISE}after\n") == "before\nafter\n"
    other = "[W1126 10:32:06.570829985 Other.cpp:1] Warning: the disk is full\n  quite\n"
    assert OVERRIDE.sub("", other) == other
