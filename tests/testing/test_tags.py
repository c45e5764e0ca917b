"""Claims: what is claimed is asserted, what is denied is not asked."""

from __future__ import annotations

import pytest
from torch import Tensor

import ttransfer as tt
from ttransfer.testing import Tags, loss_trial


def undeclared(student: Tensor, teacher: Tensor) -> Tensor:
    return tt.losses.kd(student, teacher)


@pytest.mark.parametrize(("value", "claimed"), [(True, True), (None, None), (False, False)])
@pytest.mark.parametrize("tag", ["symmetric", "non_negative", "shift_invariant", "class_symmetric", "row_symmetric"])
def test_a_tag_claims_asks_or_denies(tag: str, value: bool | None, claimed: bool | None) -> None:
    trial = loss_trial(undeclared, tags=Tags(**{tag: value}))
    law = next(law for law in trial.laws if law.name == tag.replace("_", "-"))
    by_name = tag == "row_symmetric" and value is None  # student and teacher say so
    assert law.claim(trial.subject) is (True if by_name else claimed)


def test_what_a_loss_declares_is_claimed_unless_the_trial_says_otherwise() -> None:
    assert loss_trial(tt.losses.kd).subject.tags.shift_invariant is True
    assert loss_trial(tt.losses.kd, tags=Tags(shift_invariant=False)).subject.tags.shift_invariant is False
    assert loss_trial(undeclared).subject.tags.shift_invariant is None


def test_names_claim_and_tags_override() -> None:
    tags = loss_trial(tt.losses.kd).subject.tags
    assert (tags.detaches, tags.coupled, tags.min_batch) == (("teacher",), False, 1)
    asked = {law.name for law in loss_trial(tt.losses.kd, tags=Tags(detaches=(), not_stationary="why not")).asked}
    assert not asked & {"detached", "stationary", "lowest-at-equality"}
    assert loss_trial(tt.align.mmd_unbiased).subject.tags.min_batch == 2
