"""The mutation score: every wrong twin is found out, no right one is accused.

The score is printed at the end of a run. Laws that need somebody's word, a reference or a known value, are
counted apart: without them an error of scale cannot be seen.

All of them take ten minutes of a core: ``make test`` tries every fourth pair, ``make test-mutants`` all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import ttransfer as tt
from tests.testing import mutants
from tests.testing.mutants import Pair
from ttransfer.testing import Tags, Trial, judge

# Wrong twins that no law finds, with why. The score counts them as missed.
MISSED: dict[str, str] = {
    "diversity-of-mean-logits": "the mean of softmaxes for the softmax of the mean has all symmetries of the right, "
    "and its author gave no reference",
    "adam-root-without-gradient-at-zero": "only its second derivative is wrong, where a gradient is 0",
    "square-matrix-transposed": "a map may transpose; that this one must not, verbatim=True, was not claimed",
    "vicreg-covariance-uncentred": "nothing was claimed that an uncentred covariance would break",
    "consistency-threshold-on-sharpened-confidence": "which rows count is a choice that no claim speaks of",
}


FEW, MANY = 6, 20  # inputs that each law draws


def trial_of(pair: Pair, part: Any, examples: int) -> Trial:
    more = {"expected_failed_checks": pair.expected_failed_checks, "name": pair.name, "examples": examples}
    if pair.kind == "loss":
        return tt.testing.loss_trial(
            part, pair.example, tags=Tags(**pair.tags), reference=pair.reference, limits=pair.limits, **more
        )
    if pair.kind == "weight_map":
        return tt.testing.weight_map_trial(part, *pair.example, reference=pair.reference, **pair.tags, **more)
    if pair.kind == "optimizer":
        return tt.testing.optimizer_trial(part, reference=pair.reference, **more)
    made: dict[str, Callable[..., Trial]] = {
        "adapter": tt.testing.adapter_trial,
        "reparam": tt.testing.reparam_trial,
    }
    return made[pair.kind](part, pair.example, reference=pair.reference, **pair.tags, **more)


def by_word(law: str) -> bool:
    """Whether a law is somebody's word, a reference or a known value."""
    return law.startswith(("reference", "limit-"))


def broken(trial: Trial) -> str:
    """The first law that a part breaks, "" if none; what needs nobody's word comes first, and the compiler last."""
    order = sorted(trial.asked, key=lambda law: (by_word(law.name), "graph" in law.name or "compile" in law.name))
    return next((law.name for law in order if judge(trial, only=[law.name]).failed), "")


def cases(pairs: Sequence[Pair]) -> list[Any]:
    return [pytest.param(pair, id=pair.name, marks=[pytest.mark.full] if i % 4 else []) for i, pair in enumerate(pairs)]


def rights() -> list[Pair]:
    """The right parts, each with the claims that are made of it once."""
    seen: set[tuple[Any, ...]] = set()
    out: list[Pair] = []
    for pair in mutants.PAIRS:
        key = (id(pair.right), str(sorted(pair.tags)), pair.reference, *pair.limits)
        if key not in seen:
            out.append(pair)
        seen.add(key)
    return out


@pytest.mark.parametrize("pair", cases(rights()))
def test_a_right_part_is_not_accused(pair: Pair) -> None:
    report = judge(trial_of(pair, pair.right, FEW))
    assert not report.failed, str(report)


@pytest.mark.parametrize("pair", cases(mutants.PAIRS))
def test_a_wrong_part_is_found_out(pair: Pair, record_property: Callable[[str, object], None]) -> None:
    try:
        # A slip that few inputs show needs no more of them.
        law = broken(trial_of(pair, pair.wrong, FEW)) or broken(trial_of(pair, pair.wrong, MANY))
    except tt.TransferError:  # it cannot even be called
        law = "none: it cannot be called"
    record_property("mutant", "missed" if not law else "by word" if by_word(law) else "found")
    assert (pair.name in MISSED) == (not law), law


def test_the_score() -> None:
    assert len({pair.name for pair in mutants.PAIRS}) == len(mutants.PAIRS) >= 60
    assert len(MISSED) <= 0.05 * len(mutants.PAIRS)
