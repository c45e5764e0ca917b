"""What images a torchvision model was trained on."""

from __future__ import annotations

from typing import Any

from ttransfer import TransferError
from ttransfer._errors import nearest
from ttransfer_ext._images import DataConfig
from ttransfer_ext._needed import needed
from ttransfer_ext.torchvision._model import builder

__all__ = ["data_config"]


def data_config(name: str, *, weights: str = "DEFAULT") -> DataConfig:
    """Say how the pictures of a model's published weights are prepared, for evaluation. Nothing is downloaded.

    Args:
        name: of the model: which weights a model has is not to be seen from the module.
        weights: which of the model's weights, such as "IMAGENET1K_V1".

    Returns:
        A `DataConfig`; `crop` is 1 where the pictures are resized and not cropped.

    Raises:
        TransferError: for an unknown model or weights, or such as are not given pictures of one size.

    Example:
        >>> from ttransfer_ext.torchvision import data_config
        >>> data_config("resnet18").size, data_config("resnet18").crop
        ((224, 224), 0.875)
    """
    known: Any = needed("torchvision.models", "vision").get_model_weights(builder(name))
    if weights not in known.__members__:
        raise TransferError(f"torchvision has no weights {weights!r} of {name!r}{nearest(weights, known.__members__)}")
    prepare = known[weights].transforms()
    resize, crop = _pair(getattr(prepare, "resize_size", None)), _pair(getattr(prepare, "crop_size", None))
    size = crop or resize
    if size is None or resize is None or not hasattr(prepare, "mean"):
        raise TransferError(
            f"torchvision.data_config: the pictures of {name!r} are of no one size, says {type(prepare).__name__}"
        )
    mean, std = (tuple(float(x) for x in getattr(prepare, name)) for name in ("mean", "std"))
    return DataConfig(size, mean, std, prepare.interpolation.value, size[0] / resize[0])


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    numbers = [int(x) for x in size]
    return numbers[0], numbers[-1]
