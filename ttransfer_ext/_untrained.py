"""A model that somebody else's package makes, without weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ttransfer import TransferError
from ttransfer.core._skeleton import copy_of

__all__ = ["untrained"]


def untrained(whose: str, name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model; under ``torch.device("meta")`` one without memory.

    Args:
        whose: the function that is asked, for its message.
        name: of the model.
        make: makes it.

    Raises:
        TransferError: for options that the model does not take.

    Example:
        >>> with torch.device("meta"):
        ...     net = untrained("timm.model", "linear", lambda: nn.Linear(2, 2))
        >>> net.weight.is_meta
        True
    """

    def made() -> nn.Module:
        try:
            return make()
        except TypeError as error:
            raise TransferError(f"{whose}: {name!r} does not take these options: {error}") from error

    if torch.get_default_device().type != "meta":
        return made()
    try:
        return made()
    except (NotImplementedError, RuntimeError):
        # Some models compute with values while they are made, which meta tensors have none of.
        with torch.device("cpu"):
            return copy_of(made())
