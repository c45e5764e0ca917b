"""Ready steps, and ready orders of steps: what a paper calls a method, written as an expression that can be changed."""

from __future__ import annotations

from ttransfer.recipes._cut import cut, features
from ttransfer.recipes._finetune import finetune, layerwise
from ttransfer.recipes._layers import Layers, last, layers
from ttransfer.recipes._phases import Phase, in_turn, lp_ft, thaw

__all__ = ["Layers", "Phase", "cut", "features", "finetune", "in_turn", "last", "layers", "layerwise", "lp_ft", "thaw"]
