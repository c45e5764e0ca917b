"""The table for people."""

from __future__ import annotations

from ttransfer.core._maps import Plan
from ttransfer.weights import show


def test_table() -> None:
    plan = Plan({"conv.weight": "a.b", "fc": "fc"}, ("old", "older"), ("new",), {"fc": "why", "alone": "because"})
    assert show(plan).splitlines() == [
        "conv.weight  <- a.b",
        "fc           <- fc !! why",
        "alone        !! because",
        "new          -- missing",
        "unused: old, older",
    ]


def test_nothing() -> None:
    assert show(Plan({}, (), (), {})) == ""
