"""The error type, and what its messages suggest."""

from __future__ import annotations

import difflib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ttransfer as tt
from ttransfer._errors import TransferError, nearest

MODULES = ["conv1", "layer1", "layer1.0.bn1", "layer4", "fc"]


def test_a_transfer_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="cannot read"):
        tt.read("student(source")
    assert tt.TransferError is TransferError


@pytest.mark.parametrize(
    ("name", "candidates", "said"),
    [
        ("layr4", MODULES, "; did you mean 'layer4' or 'layer1'?"),
        ("student", ["student"], "; did you mean 'student'?"),
        # Far as a whole, near in the last part.
        ("bn2", MODULES, "; there are: conv1, fc, layer1, layer1.0.bn1, layer4"),
        ("encoder.stages.bn_1", ["a.bn1", "fc"], "; did you mean 'a.bn1'?"),
        ("zzz", ["b", "a", "a"], "; there are: a, b"),
        ("zzz", [], "; there are none"),
        ("", ["a"], "; there are: a"),
    ],
)
def test_nearest(name: str, candidates: list[str], said: str) -> None:
    assert nearest(name, candidates) == said


def test_a_long_list_is_cut() -> None:
    said = nearest("zzz", (f"a{i:02}" for i in range(20)))
    assert said == "; there are: " + ", ".join(f"a{i:02}" for i in range(12)) + ", ... (20 in all)"


def test_very_many_names_are_searched_quickly() -> None:
    many = [f"encoder.layers.{i // 100}.part{i % 100}.weight" for i in range(100_000)]
    begin = time.process_time()
    difflib.get_close_matches("encoder.layer.7.part3.weight", many[:10_000])
    tenth = time.process_time() - begin
    begin = time.process_time()
    assert nearest("encoder.layer.7.part3.weight", many).startswith("; did you mean 'encoder.layers.7.part3.weight'")
    assert nearest("module.layers.712.part38.weights", many).startswith(
        "; did you mean 'encoder.layers.712.part38.weight'"
    )
    assert nearest("zzz", many).endswith("(100000 in all)")
    assert nearest("", many).endswith("(100000 in all)")
    assert time.process_time() - begin < 8 * tenth  # for four searches; difflib alone takes ten tenths for each


def test_at_most_so_many_suggestions() -> None:
    assert nearest("block", [f"block{i}" for i in range(9)], limit=2).count("'block") == 2


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=20))
def test_any_names_give_a_tail(name: str, candidates: list[str]) -> None:
    said = nearest(name, candidates)
    assert said.startswith("; ")
    assert (said == "; there are none") == (not candidates)
    if name in candidates:
        assert repr(name) in said or not name
