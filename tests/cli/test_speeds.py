"""What was measured is of losses that are there."""

from __future__ import annotations

from ttransfer.cli._losses import entries
from ttransfer.cli._speeds import SPEEDS


def test_what_was_measured_is_there() -> None:
    assert {loss for loss, _ in SPEEDS} <= {entry.name for entry in entries()}
    assert all(eager > 0 and compiled > 0 for eager, compiled in SPEEDS.values())
