"""Options of a step in every form in which they may be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import mlp, vectors
from tests.support.steps import TASK, refused, small_step

BATCH = vectors(0)
NETS = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}


@pytest.mark.parametrize(
    "trainable",
    [
        ("student",),
        ["student"],
        {"student"},
        {"student": ()},
        {"student": None},
        {"student": ".*"},
        {"student": [".*"]},
    ],
    ids=str,
)
def test_ways_to_say_that_a_net_trains(trainable: Any) -> None:
    step, plain = small_step(nets=NETS, trainable=trainable), small_step(nets=NETS)
    assert worst(step(step.init(BATCH), BATCH), plain(plain.init(BATCH), BATCH)) == 0.0


@pytest.mark.parametrize("joint", [[("source", "target")], (["source", "target"],)], ids=str)
def test_ways_to_join_domains(joint: Any) -> None:
    terms = {"task": TASK, "ent": tt.term(tt.losses.entropy, "student(target)")}
    assert small_step(terms, joint=joint).spec.expression.joint == (("source", "target"),)


def test_nothing_may_be_written_as_none() -> None:
    none = small_step(nets=NETS, buffers=None, ema=None)
    assert none.spec.expression._replace(optimizer=None) == small_step(nets=NETS).spec.expression._replace(
        optimizer=None
    )


BAD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "buffers for all": (lambda: small_step(buffers="eval"), ("buffers maps names", "{'student': 'eval'}", "got str")),
    "a list of averages": (lambda: small_step(ema=[tt.ema("student")]), ("ema maps names", "tt.ema", "got list")),
    "a list of terms": (lambda: small_step([TASK]), ("terms maps names", "tt.term", "got list")),  # type: ignore[arg-type]
    "one net": (lambda: small_step(nets=NETS["student"]), ("nets maps names", "got Functional")),  # type: ignore[arg-type]
    "one net put in": (lambda: tt.replace(small_step(), nets=NETS["student"]), ("nets maps names", "got Functional")),
    "policies put in": (lambda: tt.replace(small_step(), buffers="eval"), ("buffers maps names", "got str")),
    "a fraction for a seed": (lambda: small_step().init(BATCH, seed=0.5), ("seed", "0.5")),  # type: ignore[arg-type]
    "a seed of more bits": (lambda: small_step().init(BATCH, seed=2**63), ("seed", "64 bits")),
}


@pytest.mark.parametrize("name", BAD)
def test_other_ways_are_refused(name: str) -> None:
    make, parts = BAD[name]
    refused(make, *parts)


def test_any_seed_of_64_bits_is_kept() -> None:
    for seed in (-(2**63), -1, 0, 2**63 - 1):
        assert int(small_step().init(BATCH, seed=seed).seed) == seed
