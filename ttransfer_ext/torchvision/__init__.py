"""torchvision's models: by name, what they were trained on, their layers in order."""

from __future__ import annotations

from ttransfer_ext._images import DataConfig, renormalise, renormalised
from ttransfer_ext.torchvision._data import data_config
from ttransfer_ext.torchvision._layers import layer_groups
from ttransfer_ext.torchvision._model import model

__all__ = ["DataConfig", "data_config", "layer_groups", "model", "renormalise", "renormalised"]
