"""How a rank ends that is not in an exchange when another fails, or that goes on after one broke."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.dist import faulty


def test_who_is_ended_says_which_rank_is_the_cause(tmp_path: Path) -> None:
    found = faulty.run("endings", tmp_path)
    causes = {
        "kill": "rank 1 is dead or stopped",
        "raise": "rank 1 failed: ValueError: no such file, say",
        "terminate": "",  # all are ended alike
    }
    for fault, cause in causes.items():
        ends = found[f"{fault} 1, others busy"]
        for rank in "02":
            end = ends["ranks"][rank]
            assert end["status"] == -signal.SIGTERM
            assert f"rank {rank} of 3 (process " in end["said"] if cause else not end["said"]
            assert f"was ended by SIGTERM: {cause}" in end["said"] or not cause
        assert not ends["left"]

    first = found["caught"]["ranks"]["0"]
    assert first["status"] == 1
    assert "TransferError: the group of rank 0 of 2 is broken: rank 1 is dead or stopped" in first["said"]
    for end in found["unbroken"]["ranks"].values():
        assert (end["status"], "Error" in end["said"]) == (0, False), end["said"]
