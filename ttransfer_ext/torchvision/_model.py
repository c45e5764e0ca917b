"""A model by its name, untrained."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ttransfer import TransferError
from ttransfer._errors import nearest
from ttransfer_ext._needed import needed
from ttransfer_ext._untrained import untrained

__all__ = ["builder", "model"]


def model(name: str, *, classes: int | None = None, **options: Any) -> nn.Module:
    """Make a torchvision model with random weights. Nothing is ever downloaded, not for a backbone either.

    Under ``torch.device("meta")`` it costs no memory; weights come from `tt.weights.load` by `tt.weights.transfer`.

    Args:
        name: as `torchvision.models.list_models` lists it.
        classes: of the head. The model's own number unless given.
        **options: go to the model's builder.

    Returns:
        The model, in train mode.

    Raises:
        TransferError: for an unknown name, with the nearest; for options that the model does not take, or that would
            load weights; if torchvision is not installed.

    Example:
        >>> import torch
        >>> from ttransfer_ext.torchvision import model
        >>> with torch.device("meta"):
        ...     net = model("resnet18", classes=10)
        >>> net.fc
        Linear(in_features=512, out_features=10, bias=True)
        >>> model("resnet81")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: torchvision has no model 'resnet81'; did you mean 'resnet18' or ...
    """
    build = builder(name)
    if loading := [option for option in ("weights", "weights_backbone") if options.get(option) is not None]:
        raise TransferError(
            f"torchvision.model: {loading[0]} would load weights; read a file with tt.weights.load, and fill the model "
            "with tt.weights.transfer"
        )
    given = {**options} if classes is None else {"num_classes": classes, **options}
    takes = inspect.signature(build).parameters
    given.update({option: None for option in ("weights", "weights_backbone") if option in takes})

    return untrained("torchvision.model", name, lambda: build(**given))


def builder(name: str) -> Callable[..., nn.Module]:
    """Return what makes a model of that name.

    Raises:
        TransferError: with the nearest names.
    """
    models = needed("torchvision.models", "vision")
    every = models.list_models()
    if name not in every:
        raise TransferError(f"torchvision has no model {name!r}{nearest(name, every)}")
    return models.get_model_builder(name)
