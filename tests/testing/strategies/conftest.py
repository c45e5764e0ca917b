"""What the tests of strategies share: many draws of one, the same ones each time, and the smallest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.strategies import SearchStrategy

QUIET = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


def many(strategy: SearchStrategy[Any], number: int = 100) -> list[Any]:
    found: list[Any] = []

    @settings(QUIET, max_examples=number)
    @given(strategy)
    def note(drawn: Any) -> None:
        found.append(drawn)

    note()
    return found


def least(strategy: SearchStrategy[Any], condition: Callable[[Any], Any] = lambda _: True) -> Any:
    return find(strategy, condition, settings=settings(derandomize=True, database=None, max_examples=2000))


@pytest.fixture
def draws() -> Callable[..., list[Any]]:
    """Return (strategy, number=100) -> what was drawn."""
    return many


@pytest.fixture
def smallest() -> Callable[..., Any]:
    """Return (strategy, condition=any) -> what it shrinks to."""
    return least
