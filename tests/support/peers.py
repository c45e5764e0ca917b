"""Losses of other packages beside ours: imported without their warnings, compared in value and gradient."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

__all__ = ["same", "tapped", "theirs"]


def theirs(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Make a loss of a package that may not be installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module.partition(".")[0])
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


def tapped(**outputs: Any) -> dict[str, dict[str, Any]]:
    """What torchdistill's losses read: path -> what was seen there."""
    return {path: {"output": output} for path, output in outputs.items()}


def same(ours: Callable[..., Tensor], other: Callable[..., Tensor], *inputs: Tensor, relative: float = 1e-9) -> None:
    """Compare value and gradient by the first input, in float64."""
    found, wanted = [], []
    for loss, into in ((ours, found), (other, wanted)):
        first, *others = (x.detach().double().clone() for x in inputs)
        first.requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = loss(first.clone(), *others)  # some write on what they are given
        into += [value.detach(), *torch.autograd.grad(value, first)]
    torch.testing.assert_close(found, wanted, rtol=relative, atol=relative)
