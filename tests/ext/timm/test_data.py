"""What timm says of a model's pictures."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from ttransfer import TransferError
from ttransfer_ext.timm import DataConfig, data_config, model


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18.tv_in1k", "vit_tiny_patch16_224", "tf_efficientnet_lite0", "convnext_atto"]
)
def test_it_is_what_timm_resolves(name: str) -> None:
    with torch.device("meta"):
        net = model(name)
    wanted = timm.data.resolve_model_data_config(net)
    found = data_config(net)
    assert found == data_config(name)
    assert (found.mean, found.std) == (wanted["mean"], wanted["std"])
    assert found.size == wanted["input_size"][1:]
    assert (found.interpolation, found.crop) == (wanted["interpolation"], wanted["crop_pct"])


def test_the_transform_of_it_is_timms() -> None:
    found = data_config("vit_tiny_patch16_224")
    assert found == DataConfig((224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9)


def test_refusals() -> None:
    with pytest.raises(TransferError, match=r"timm.data_config: Linear is no timm model"):
        data_config(nn.Linear(2, 2))
    with pytest.raises(TransferError, match=r"timm has no model 'resnet81'"):
        data_config("resnet81")
