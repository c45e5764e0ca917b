"""The table for people."""

from __future__ import annotations

from ttransfer.core._maps import Made, Plan
from ttransfer.weights import show


def test_table() -> None:
    plan = Plan(
        {
            "conv.weight": Made(("a.b",)),
            "fc": Made(("fc",)),
            "mean": Made(("a", "b", "c", "d"), "average", "asked"),
            "head": Made((), "normal 0.02"),
        },
        ("left",),
        ("new",),
        {"fc": "why", "alone": "because"},
        {"either": ("a", "b", "c", "d")},
        {"old": "", "older": "dropped"},
    )
    assert show(plan).splitlines() == [
        "conv.weight  <- a.b",
        "fc           <- fc !! does not fit  why",
        "mean         <- a, b, c and 1 more  average; asked",
        "head         <- made anew           normal 0.02",
        "alone        !! does not fit        because",
        "either       ?? ambiguous           it may be a, b, c or 1 more",
        "left         -- stays as it is",
        "new          !! missing",
        "old          -> nowhere",
        "older        -> nowhere             dropped",
    ]


def test_nothing() -> None:
    assert show(Plan({})) == ""
