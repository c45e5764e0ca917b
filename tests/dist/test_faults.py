"""A rank that dies, stops, raises, hangs or leaves: the others end in time, with an error that names it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.dist import faulty
from ttransfer.dist._faults import exchanging
from ttransfer.run import checkpoints

# Beside the timeout and the three seconds of silence: a busy machine, and an interpreter's end.
PATIENCE = faulty.TIMEOUT + 3 + 25
SAYS = {
    "kill": "rank {} is dead or stopped: nothing was heard for 3 s",
    "stop": "rank {} is dead or stopped: nothing was heard for 3 s",
    "raise": "rank {} failed: ValueError: no such file, say",
    "hang": "rank {} did not come, and lives: rank {} has begun",
    "leave": "rank {} came to the end of the program before this exchange",
    "terminate": "rank {} was ended by SIGTERM",
    "kill 0, keeper": "rank {}, whose process keeps the store of the group, is gone",
    "stop 0, keeper": "rank {}, whose process keeps the store of the group, does not answer",
}
STATUS = {"kill": -9, "stop": -9, "raise": 1, "hang": -15, "leave": 0, "terminate": -15}


def wrong_with(name: str, found: dict[str, Any]) -> str:
    """Compare how a group ended with what its name says; return what is wrong, if anything."""
    fault, who = name.split()[0], name.split()[1].strip(",")
    wanted = SAYS.get(name, SAYS[fault]).format(who, who)
    for rank, end in found["ranks"].items():
        if rank == who:
            if end["status"] != STATUS[fault]:
                return f"the rank that fails ended with {end['status']}"
        elif end["status"] != 1:
            return f"rank {rank} ended with {end['status']}: {end['said']}"
        elif end["seconds"] > PATIENCE:
            return f"rank {rank} took {end['seconds']} s"
        elif (said := end["said"].rpartition("TransferError: ")[2]).count(wanted) != 1:
            return f"rank {rank} does not say {wanted!r}: {said}"
        elif f"on rank {rank} of {len(found['ranks'])} (process " not in said:
            return f"rank {rank} does not say who it is: {said}"
    return f"left: {found['left']}" if found["left"] else "" if found["port is free"] else "the port is in use"


def test_the_others_end_in_time_and_name_the_rank(tmp_path: Path) -> None:
    found = faulty.run("faults", tmp_path)
    assert {name.split()[0] for name in found} == set(STATUS)
    wrong = {name: wrong_with(name, ends) for name, ends in found.items()}
    assert not any(wrong.values()), wrong


def test_a_restarted_run_ends_with_the_numbers_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = faulty.run("endings", tmp_path / "unbroken", "unbroken")["unbroken"]
    assert [end["status"] for end in unbroken["ranks"].values()] == [0, 0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1",
         "--master-addr", "127.0.0.1", "--master-port", str(port), faulty.__file__, str(tmp_path / "run")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(faulty.ROOT)},
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "rank 1 is dead or stopped" in done.stderr
    one, other = tmp_path / "unbroken" / "unbroken" / "run", tmp_path / "run"
    assert [path.name for path in checkpoints(other)] == [path.name for path in checkpoints(one)]
    for path in checkpoints(one):
        seals = [json.loads((place / path.name / "state.json").read_text())["seal"] for place in (one, other)]
        assert seals[0] == seals[1], path.name
    assert (one / "log.jsonl").read_text() == (other / "log.jsonl").read_text()
    assert faulty.free(port)


def test_without_others_an_exchange_is_what_it_is() -> None:
    with exchanging("nothing"):
        pass
