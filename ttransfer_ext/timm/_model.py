"""A model by its name, untrained."""

from __future__ import annotations

from typing import Any

from torch import nn

from ttransfer import TransferError
from ttransfer._errors import nearest
from ttransfer_ext._needed import needed
from ttransfer_ext._untrained import untrained

__all__ = ["known", "model"]

# Each of these would read weights from somewhere.
_LOADING = ("pretrained", "checkpoint_path", "pretrained_cfg_overlay", "cache_dir")


def model(name: str, *, classes: int | None = None, channels: int | None = None, **options: Any) -> nn.Module:
    """Make a timm model with random weights. Nothing is ever downloaded.

    Under ``torch.device("meta")`` it costs no memory; weights come from `tt.weights.load` by `tt.weights.transfer`.

    Args:
        name: as `timm.list_models` lists it, with or without a tag ("resnet18.a1_in1k"), which `data_config` heeds.
        classes: of the head; 0 leaves it out. The model's own number unless given.
        channels: of the input. The model's own number, which is mostly 3, unless given.
        **options: go to `timm.create_model`, such as `img_size` or `drop_path_rate`.

    Returns:
        The model, in train mode.

    Raises:
        TransferError: for an unknown name, with the nearest; for options that the model does not take, or that would
            load weights; if timm is not installed.

    Example:
        >>> import torch
        >>> from ttransfer_ext.timm import model
        >>> with torch.device("meta"):
        ...     net = model("vit_tiny_patch16_224", classes=10)
        >>> net.head
        Linear(in_features=192, out_features=10, bias=True)
        >>> model("resnet81")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: timm has no model 'resnet81'; did you mean 'resnet18' or ...
    """
    timm = needed("timm", "vision")
    known(name)
    if loading := [option for option in _LOADING if options.get(option)]:
        raise TransferError(
            f"timm.model: {loading[0]} would load weights; read a file with tt.weights.load, and fill the model with "
            "tt.weights.transfer"
        )
    given = {"num_classes": classes, "in_chans": channels, **options}

    told = {option: value for option, value in given.items() if value is not None}
    return untrained("timm.model", name, lambda: timm.create_model(name, pretrained=False, **told))


def known(name: str) -> None:
    """Refuse a name that timm does not know, or that says where to load from.

    Raises:
        TransferError: with the nearest names.
    """
    timm = needed("timm", "vision")
    if ":" in name or "/" in name:
        raise TransferError(
            f"timm has no model {name!r}: want an architecture by name; nothing is loaded from elsewhere"
        )
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise TransferError(f"timm has no model {base!r}{nearest(base, timm.list_models())}")
    tags = [one.partition(".")[2] for one in timm.list_models(base, include_tags=True)]
    if tag and tag not in tags:
        raise TransferError(f"timm has no weights {tag!r} of {base!r}{nearest(tag, tags)}")
