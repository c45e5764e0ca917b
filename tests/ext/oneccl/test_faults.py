"""A peer that dies or is late: an exception within the timeout, and no process left behind."""

from __future__ import annotations

import signal

import pytest

from tests.ext.oneccl._ranks import Job, Outcome, run

TIMEOUT = 2.0
WAYS = ("killed in a collective", "killed before", "slow")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    jobs = [Job("_programs:faulty", 2, how, timeout=TIMEOUT, limit=40) for how in WAYS]
    return dict(zip(WAYS, run(jobs), strict=True))


@pytest.mark.parametrize("how", WAYS)
def test_the_other_rank_gets_an_exception(outcomes: dict[str, list[Outcome]], how: str) -> None:
    found = outcomes[how][0].value
    assert not outcomes[how][0].error
    for call in ("wait", "future", "next"):
        kind, message = found[call]
        assert kind == "DistBackendError", message
        assert "no result after 2000 ms" in message or "a peer has died" in message
    assert "cannot be used any more" in found["next"][1]
    assert found["seconds"] < TIMEOUT + 1.5
    assert not found["success"]


@pytest.mark.parametrize("how", WAYS)
def test_every_process_ends(outcomes: dict[str, list[Outcome]], how: str) -> None:
    first, second = outcomes[how]
    assert first.status == 0, "a rank that caught the exception ends as it likes"
    assert second.status == (0 if how == "slow" else -signal.SIGKILL)
    assert max(first.seconds, second.seconds) < 20
