"""Works, futures, groups and refusals, on real ranks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ext.oneccl._ranks import Job, Outcome, run

JOBS = {
    "one": Job("_programs:one_rank", 1),
    "asynchronous": Job("_programs:asynchronous", 2),
    "groups": Job("_programs:groups", 3),
    "refusals": Job("_programs:refusals", 2),
    "replicated": Job("_programs:replicated", 2),
    "unfinished": Job("_programs:unfinished", 2),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    return dict(zip(JOBS, run(list(JOBS.values())), strict=True))


def values(outcomes: dict[str, list[Outcome]], name: str) -> list[Any]:
    for rank, outcome in enumerate(outcomes[name]):
        assert not outcome.error, f"rank {rank}: {outcome.error}"
        assert outcome.status == 0, f"rank {rank} ended with {outcome.status}: {outcome.said}"
    return [outcome.value for outcome in outcomes[name]]


def test_a_group_of_one(outcomes: dict[str, list[Outcome]]) -> None:
    (found,) = values(outcomes, "one")
    assert len(found) == 11
    assert all(value == [3.0, 3.0] for value in found.values()), found


def test_asynchronous_calls(outcomes: dict[str, list[Outcome]]) -> None:
    for found in values(outcomes, "asynchronous"):
        assert found["chained"] == [6.0] * 4
        assert found["completed"] == (True, True)
        assert found["result"] == [[6.0] * 4]
        assert found["then"] == [10.0, 10.0]
        assert found["many"]
        assert found["after"] == [2.0, 2.0]
    assert "50 ms that wait() was given" in outcomes["asynchronous"][1].value["short wait"]


def test_several_groups(outcomes: dict[str, list[Outcome]]) -> None:
    for rank, found in enumerate(values(outcomes, "groups")):
        assert found["crossed"] == [3.0, 30.0]
        for pair in ((0, 1), (1, 2), (0, 2)):
            if rank in pair:
                assert found[str(pair)] == sum(pair)
        assert found["ring"] == [(rank - 1) % 3]
        assert found["objects"] == [{"rank": r} for r in range(3)]


REFUSED = {
    "op": "got ReduceOp.BAND; there are: SUM, AVG, PRODUCT, MIN, MAX",
    "average of integers": "got ReduceOp.AVG of (2,) Int; it averages floating-point numbers",
    "average of bool": "got ReduceOp.AVG of (2,) Bool; it averages floating-point numbers",
    "dtype": "cannot reduce (2,) Float8_e4m3fn; it reduces float32,",
    "device": "got a tensor on meta; it takes tensors on the CPU",
    "gathered size": "got (2,) Float to gather into (5,) Float; it wants 2 times as many elements",
    "scattered size": "got (5,) Float to scatter into (2,) Float; it wants an input of 2 times as many elements",
    "own part": "got (2,) Float and for this rank's own part the output (3,) Float",
    "list": "got a list of 1 tensors; the group has 2 ranks",
    "splits": "got 2 splits with 3 rows in all for (4,) Float; it wants 2 splits with 4 rows in all",
    "rows": "got (3,) Float without splits; its first dimension must be a multiple of 2",
    "source": "got no source; oneCCL receives from a named rank only: give src=",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_call_is_refused(outcomes: dict[str, list[Outcome]], name: str) -> None:
    for found in values(outcomes, "refusals"):
        kind, message = found[name]
        assert kind == "TransferError", message
        assert "on backend 'ccl': " in message
        assert REFUSED[name] in message


def test_a_refused_call_leaves_the_group_usable(outcomes: dict[str, list[Outcome]]) -> None:
    assert [found["afterwards"] for found in values(outcomes, "refusals")] == [("", "[2.0, 2.0]")] * 2


def test_data_parallel_gradients(outcomes: dict[str, list[Outcome]]) -> None:
    for parallel, whole in values(outcomes, "replicated"):
        assert parallel == pytest.approx(whole, rel=1e-12, abs=1e-12)


def test_leaving_without_a_wait(outcomes: dict[str, list[Outcome]]) -> None:
    values(outcomes, "unfinished")
    assert max(outcome.seconds for outcome in outcomes["unfinished"]) < 30
