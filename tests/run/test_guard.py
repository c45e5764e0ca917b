from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from ttransfer.run._guard import Guard

NAN, INF = float("nan"), float("inf")


def logs(finite: list[bool] | bool = True, **values: list[float] | float) -> dict[str, Tensor]:
    found = {name.replace("_", "."): torch.tensor(value) for name, value in values.items()}
    return {**found, "finite": torch.tensor(finite)}


REFUSED: dict[str, tuple[dict[str, float], str]] = {
    "a term": ({"loss": NAN, "task": 1.0, "kd": NAN}, "kd is nan"),
    "two terms": ({"loss": NAN, "task": INF, "kd": NAN}, "task is inf, kd is nan"),
    "a hyper": ({"loss": NAN, "task": 1.0, "kd_weight": NAN}, r"kd\.weight is nan"),
    "the sum alone": ({"loss": INF, "task": 3e38, "kd": 3e38}, "loss is inf"),
    "no value": ({"loss": 1.0, "task": 1.0}, "all terms are finite, so a gradient or a new parameter is not"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("after", [0, 2])
def test_a_refused_update_is_named_with_its_step(name: str, before: int, after: int) -> None:
    values, message = REFUSED[name]
    guard = Guard(10)
    for _ in range(before):
        guard.add(logs(loss=1.0))
    guard.add(logs(False, **values))
    for _ in range(after):
        guard.add(logs(loss=1.0))
    assert guard.check() == f"fit: the update after step {10 + before} was refused: {message}".replace("\\", "")


def test_checks_count_on() -> None:
    guard = Guard(0)
    for _ in range(3):
        guard.add(logs(loss=1.0))
        guard.add(logs(loss=1.0))
        assert guard.check() is None
    assert guard.check() is None
    guard.add(logs(False, loss=NAN))
    assert guard.check() == "fit: the update after step 6 was refused: loss is nan"


def test_many_waiting_logs_ask_for_a_check() -> None:
    guard = Guard(0)
    for _ in range(256):
        assert not guard.full
        guard.add(logs(loss=1.0))
    assert guard.full
    guard.check()
    assert not guard.full


def test_a_step_without_a_guard_is_not_judged() -> None:
    guard = Guard(0)
    guard.add({"loss": torch.tensor(NAN)})
    assert guard.check() is None


def test_a_member_is_warned_about_once_and_the_others_go_on() -> None:
    guard = Guard(4)
    guard.add(logs([True, True], loss=[1.0, 1.0], kd=[1.0, 1.0]))
    guard.add(logs([True, False], loss=[1.0, NAN], kd=[1.0, NAN]))
    guard.add(logs([True, False], loss=[1.0, NAN], kd=[1.0, NAN]))
    with pytest.warns(RuntimeWarning, match="member 1 refused the update after step 5: kd is nan; the other members"):
        assert guard.check() is None
    guard.add(logs([True, False], loss=[1.0, NAN], kd=[1.0, NAN]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert guard.check() is None
    guard.add(logs([False, False], loss=[INF, NAN], kd=[INF, NAN]))
    assert guard.check() == "fit: the update after step 8 was refused: kd is inf"
