"""What was done to a step, and what that needs outside of its graph."""

from __future__ import annotations

from ttransfer.core._transforms import SHARDS, TOTALS, Outside, Transform, outside_of


def same(step: object) -> object:
    return step


def test_what_is_needed_outside_is_that_of_the_transform_that_says_so() -> None:
    outside = Outside(lambda s, b, c: c(), lambda s: s, lambda s: s, bool, True, str, lambda p, s, b: {})
    plain, sharded = Transform("ensemble", {}, same), Transform("shard", {}, same, outer=True, outside=outside)
    assert outside_of([plain]) is None
    assert outside_of([plain, sharded, Transform("compile", {}, same, outer=True)]) is outside


def test_no_domain_can_have_the_names_that_a_prepared_batch_uses() -> None:
    assert not any(name.isidentifier() for name in (SHARDS, TOTALS))
