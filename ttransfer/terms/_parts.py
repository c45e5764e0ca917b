"""What ready terms share: parameters in named parts, normalisation by the batch, keys of a read's domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer.core import Adapter, Params, Read, read
from ttransfer.core._paths import Field, Forward

__all__ = ["batch_norm", "keys_of", "norm_layer", "part", "under", "want_adapters"]


def under(name: str, params: Mapping[str, Tensor]) -> Params:
    """Put parameters under a name: "weight" becomes "name.weight"."""
    return {f"{name}.{key}": p for key, p in params.items()}


def part(params: Mapping[str, Tensor], name: str) -> Params:
    """Undo `under`: the parameters of one name, without it."""
    return {key.removeprefix(f"{name}."): p for key, p in params.items() if key.startswith(f"{name}.")}


def norm_layer(like: Tensor, channels: int) -> Params:
    """A batch norm as `nn.BatchNorm2d` starts it, of another parameter's dtype and device."""
    return {"weight": like.new_ones(channels), "bias": like.new_zeros(channels)}


def batch_norm(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Normalise (n, c, ...) by the mean and variance of the batch at hand, eps 1e-5.

    A term runs only while it trains, so that it needs no running statistics. Unlike `F.batch_norm` this takes a
    single value per channel, which it brings to the bias.
    """
    return torch.batch_norm(x, params["weight"], params["bias"], None, None, True, 0.0, 1e-5, False)


def want_adapters(called: str, **given: Any) -> None:
    """Refuse what is no adapter, under the names of the arguments.

    Raises:
        TransferError: naming the cure for a module.
    """
    for name, one in given.items():
        if not isinstance(one, Adapter):
            cure = "tt.adapters.mlp(256) is one, tt.adapters.module(net) makes one of an nn.Module"
            raise TransferError(f"{called}: wanted an Adapter for {name}, got {shown(one)}; {cure}")


def keys_of(called: str, given: Any) -> str:
    """The path of the keys of the rows that a read is of.

    Raises:
        TransferError: for what is no read of a domain's rows.
    """
    path = (given if isinstance(given, Read) else read(given)).path
    if not isinstance(path, (Forward, Field)):
        raise TransferError(f"{called}: wanted a read of a domain's rows, such as 'student(source)', got '{path}'")
    return f"{path.domain}:keys"
