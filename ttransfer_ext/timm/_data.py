"""What images a timm model was trained on."""

from __future__ import annotations

from typing import Any

from torch import nn

from ttransfer import TransferError
from ttransfer_ext._images import DataConfig
from ttransfer_ext._needed import needed
from ttransfer_ext.timm._model import known

__all__ = ["data_config"]


def data_config(model: nn.Module | str) -> DataConfig:
    """Say how the pictures of a timm model's published weights were prepared, for evaluation.

    Args:
        model: from `model` or `timm.create_model`; or a name, for which none is made.

    Returns:
        A `DataConfig`; its `interpolation` is timm's word, its `size` that of the weights.

    Raises:
        TransferError: for a model that is not timm's, or an unknown name.

    Example:
        >>> from ttransfer_ext.timm import data_config
        >>> data_config("tf_efficientnet_lite0")
        DataConfig(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation='bicubic', crop=0.875)
    """
    data = needed("timm.data", "vision")
    if isinstance(model, str):
        known(model)
        found: Any = needed("timm.models", "vision").get_pretrained_cfg(model)
        config = {} if found is None else found.to_dict()
    else:
        config = getattr(model, "pretrained_cfg", None)
        if not isinstance(config, dict):
            raise TransferError(f"timm.data_config: {type(model).__name__} is no timm model: it has no pretrained_cfg")
    got = data.resolve_data_config(args={}, pretrained_cfg=config or {"input_size": (3, 224, 224)})
    mean, std = (tuple(float(x) for x in got[name]) for name in ("mean", "std"))
    height, width = got["input_size"][-2:]
    return DataConfig((int(height), int(width)), mean, std, got["interpolation"], float(got["crop_pct"]))
