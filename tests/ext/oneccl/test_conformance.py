"""The same calls on gloo and on ccl give the same results."""

from __future__ import annotations

import pytest

from tests.ext.oneccl._cases import MOVING, REDUCING, drawn
from tests.ext.oneccl._ranks import Job, Outcome, run

WORLDS = (2, 3, 4)
CASES = {world: drawn(world, 160) for world in WORLDS}


@pytest.fixture(scope="module")
def outcomes() -> dict[int, list[Outcome]]:
    found = run([Job("_compare:compare", world, CASES[world]) for world in WORLDS])
    return dict(zip(WORLDS, found, strict=True))


def test_every_call_is_drawn() -> None:
    assert {case.call for cases in CASES.values() for case in cases} == {*REDUCING, *MOVING}
    assert sum(len(cases) for cases in CASES.values()) > 400


@pytest.mark.parametrize("world", WORLDS)
def test_gloo_and_ccl_agree(outcomes: dict[int, list[Outcome]], world: int) -> None:
    for rank, outcome in enumerate(outcomes[world]):
        assert not outcome.error, f"rank {rank}: {outcome.error}"
        assert outcome.status == 0, outcome.said
        if outcome.value:
            case, difference = min(outcome.value, key=lambda failure: failure[0].size)
            pytest.fail(f"{len(outcome.value)} cases differ; on rank {rank} the smallest is {case}:\n{difference}")
