"""Joining: what is asked for and cannot be had is one clear error on every rank."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch.distributed as dist

import ttransfer as tt
from tests.dist import faulty
from tests.support.steps import refused

WANTED = {
    "mixed": ["the ranks ask for different backends: {0: 'gloo', 1: 'fake'}; give all the same"] * 2,
    "unknown": ["no backend 'glo'; did you mean 'gloo'?"] * 2,
    "unknown on one": ["rank 1 of 2 cannot take part: dist.init: no backend 'glo'", "dist.init: no backend 'glo'"],
    "size": ["size=3, but 2 processes were started; run torchrun --nproc-per-node 3"] * 2,
    "size on one": ["rank 1 of 2 cannot take part: dist.init: size=3", "dist.init: size=3, but 2"],
    "no compiler on one": ["rank 1 of 2 cannot take part: backend 'ccl': found no C++", "backend 'ccl': found no C++"],
}


def test_one_error_on_every_rank(tmp_path: Path) -> None:
    found = faulty.run("refusals", tmp_path)
    assert found.keys() == WANTED.keys()
    for name, wanted in WANTED.items():
        for rank, text in enumerate(wanted):
            end = found[name]["ranks"][str(rank)]
            # Who is still cleaning up when the other has ended is sent SIGTERM.
            assert end["status"] in (1, -signal.SIGTERM), name
            assert text in end["said"].rpartition("TransferError: ")[2].splitlines()[0], (name, rank, end["said"])
        assert not found[name]["left"], name
        assert found[name]["port is free"], name


def test_one_process_is_a_group_of_one() -> None:
    mesh = tt.dist.init(size=1)
    assert (mesh.size(), mesh.mesh_dim_names, dist.get_backend()) == (1, ("batch",), "gloo")
    assert tt.dist.init().get_group().group_name == mesh.get_group().group_name


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_a_time(timeout: float) -> None:
    refused(lambda: tt.dist.init(timeout=timeout), "timeout must be more than 0 seconds")


def test_joined_already() -> None:
    tt.dist.init()
    refused(lambda: tt.dist.init("fake"), "has joined a 'gloo' group already, and asks for 'fake'")
    refused(lambda: tt.dist.init(size=2), "size=2, but 1 process was started", "torchrun --nproc-per-node 2")
