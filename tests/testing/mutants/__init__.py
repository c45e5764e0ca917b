"""Pairs of a right part and a wrong twin, written by authors who did not know the laws."""

from __future__ import annotations

from tests.testing.mutants import (
    adapters,
    alignment,
    features,
    fresh,
    logits,
    optimizers,
    predictions,
    regularisers,
    reparams,
    weight_maps,
)
from tests.testing.mutants._pair import Pair

LOSSES = (*logits.PAIRS, *features.PAIRS, *alignment.PAIRS, *predictions.PAIRS, *regularisers.PAIRS)
PARTS = (*adapters.PAIRS, *reparams.PAIRS, *weight_maps.PAIRS, *optimizers.PAIRS)
# Planted last, when the laws were done. As they came, 9 of the 10 wrong ones were found, and 2 right ones accused of
# what their argument's name, teacher, claims; they have tags for that now, without which one of the 9 is missed.
FRESH = fresh.PAIRS
PAIRS: tuple[Pair, ...] = (*LOSSES, *PARTS, *FRESH)
