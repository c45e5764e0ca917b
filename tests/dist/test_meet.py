"""Ranks that do not come, and places where one cannot meet: one clear error on every rank, in time."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.dist import faulty

HERE = "dist.init: 127.0.0.1:"
WANTED = {
    "one is late": {"0 1": ["rank 2 of 3 did not come in time"]},
    "one is late, no launcher": {"0 1": ["rank 2 of 3 did not come in time"]},
    "the first is late": {"1": ["rank 0 of 2 did not come in time"]},
    "nobody listens": {"1": ["cannot meet the other ranks at 127.0.0.1:"]},
    "address in use": {
        "0": [HERE, "is in use by another process; give torchrun another --master-port"],
        "1": ["cannot meet the other ranks at 127.0.0.1:", "is the address in use by another process?"],
    },
    "no number": {"0 1": ["the environment variable RANK is 'first', wanted a number"]},
    "no such rank": {"0 1": ["RANK is 2, and WORLD_SIZE 2"]},
}


def test_one_error_on_every_rank(tmp_path: Path) -> None:
    found = faulty.run("meetings", tmp_path)
    assert found.keys() == WANTED.keys()
    for name, wanted in WANTED.items():
        said = {rank: end["said"] for rank, end in found[name]["ranks"].items()}
        assert said.keys() == set(" ".join(wanted).split()), name
        for ranks, parts in wanted.items():
            for rank in ranks.split():
                text = said[rank].rpartition("TransferError: ")[2].splitlines()[0]
                assert [part for part in parts if part not in text] == [], (name, rank, said[rank])
        # Who is still cleaning up when the other has ended is sent SIGTERM.
        assert {end["status"] for end in found[name]["ranks"].values()} <= {1, -signal.SIGTERM}, name
        assert not found[name]["left"], name
        assert found[name]["port is free"], name
