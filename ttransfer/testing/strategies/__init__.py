"""Hypothesis strategies for what transfer learning works on; all shrink to something a person can read."""

from __future__ import annotations

from ttransfer.testing.strategies._batches import batches
from ttransfer.testing.strategies._labels import labels
from ttransfer.testing.strategies._logits import features, logits, probabilities
from ttransfer.testing.strategies._maps import MapCase, weight_maps
from ttransfer.testing.strategies._modules import ModuleCase, modules
from ttransfer.testing.strategies._trees import Pair, params, trees
from ttransfer.testing.strategies._values import generic, grid, masks, orthogonal, repeated

__all__ = [
    "MapCase",
    "ModuleCase",
    "Pair",
    "batches",
    "features",
    "generic",
    "grid",
    "labels",
    "logits",
    "masks",
    "modules",
    "orthogonal",
    "params",
    "probabilities",
    "repeated",
    "trees",
    "weight_maps",
]
