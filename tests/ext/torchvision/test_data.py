"""What torchvision says of a model's pictures."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from ttransfer import TransferError
from ttransfer_ext.torchvision import DataConfig, data_config


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "convnext_tiny", "efficientnet_b0", "swin_t"])
def test_pictures_prepared_by_it_are_those_of_its_transforms(name: str) -> None:
    found = data_config(name)
    picture = torch.randint(256, (3, 300, 300), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    wanted = torchvision.models.get_model_weights(name).DEFAULT.transforms()(picture)
    side = round(found.size[0] / found.crop)
    x = tvf.center_crop(
        tvf.resize(picture, [side], InterpolationMode(found.interpolation), antialias=True), list(found.size)
    )
    x = (x.double() / 255 - torch.tensor(found.mean).view(-1, 1, 1)) / torch.tensor(found.std).view(-1, 1, 1)
    torch.testing.assert_close(x.float(), wanted, rtol=0, atol=1e-5)
    assert F.l1_loss(x.float(), wanted) < 1e-6


def test_weights_differ() -> None:
    first, second = (data_config("resnet50", weights=f"IMAGENET1K_V{i}") for i in (1, 2))
    assert (first.crop, second.crop) == (224 / 256, 224 / 232)
    assert data_config("resnet50") == second


def test_without_a_crop() -> None:
    assert data_config("fcn_resnet50") == DataConfig(
        (520, 520), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 1.0
    )


def test_refusals() -> None:
    with pytest.raises(TransferError, match=r"torchvision has no weights 'IMAGENET' of 'resnet18'; .*IMAGENET1K_V1"):
        data_config("resnet18", weights="IMAGENET")
    with pytest.raises(
        TransferError, match=r"the pictures of 'retinanet_resnet50_fpn' are of no one size, says ObjectDetection"
    ):
        data_config("retinanet_resnet50_fpn")
    with pytest.raises(TransferError, match=r"torchvision has no model 'resnet81'"):
        data_config("resnet81")
