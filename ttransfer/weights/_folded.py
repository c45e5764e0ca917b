"""The module that folded weights are for."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ttransfer._errors import TransferError, nearest
from ttransfer.weights._fold_bn import BnPair, fold_bn

__all__ = ["TRANSPOSED", "at_random", "folded", "is_layer"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def folded(module: nn.Module, pairs: Mapping[str, BnPair | str]) -> nn.Module:
    """Copy a module without these batch norms, its weights folded by `fold_bn`.

    Where a batch norm was there is nothing, or what else it did: timm's BatchNormAct2d leaves its activation. The copy
    is a net of its own with the original's answers in eval mode, for instance for `tt.functional` as a teacher.

    Args:
        module: stays as it is.
        pairs: as for `fold_bn`, from `bn_pairs`.

    Returns:
        The copy, in eval mode.

    Raises:
        TransferError: for names that the module has not, a layer that is no convolution and no linear layer, an ε
            that is not the batch norm's, and a batch norm that does something else than to normalise and then to
            apply its submodules, one after another.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8)).eval()
        >>> x = torch.ones(1, 3, 5, 5)
        >>> fast = tt.weights.folded(net, tt.weights.bn_pairs(net, x))
        >>> [type(part).__name__ for part in fast], torch.allclose(fast(x), net(x), atol=1e-6)
        (['Conv2d', 'Identity'], True)
    """
    result = copy.deepcopy(module).eval()
    modules = dict(module.named_modules())
    for bn, given in pairs.items():
        pair = BnPair(given) if isinstance(given, str) else given
        for name in (bn, pair.layer):
            if name not in modules:
                raise TransferError(f"folded: the module has no {name!r}{nearest(name, modules)}")
        layer: Any = result.get_submodule(pair.layer)
        norm: Any = modules[bn]
        if not is_layer(layer):
            raise TransferError(
                f"folded: {pair.layer!r} is a {type(layer).__name__}, no convolution and no linear layer"
            )
        if getattr(norm, "eps", None) != pair.eps:
            raise TransferError(f"folded: {bn!r} has eps {getattr(norm, 'eps', None)}, and its pair says {pair.eps}")
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(norm.running_mean, dtype=layer.weight.dtype))
        result.set_submodule(bn, _rest(bn, norm, result.get_submodule(bn)))
    new = fold_bn(pairs).apply(module.state_dict(), {})
    result.load_state_dict(new, assign=any(x.is_meta for x in new.values()))
    return result


def is_layer(module: nn.Module) -> bool:
    """Whether a batch norm may be folded into it."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *TRANSPOSED))


def at_random(module: nn.Module) -> Any:
    """Copy a module to the CPU in float64 and eval mode, with other numbers."""
    generator = torch.Generator().manual_seed(0)
    result = copy.deepcopy(module).to_empty(device="cpu").double().eval()
    for name, x in result.state_dict().items():
        if x.is_floating_point():
            drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
        else:
            x.zero_()
    return result


def _rest(name: str, norm: nn.Module, own: nn.Module) -> nn.Module:
    """What a batch norm does besides, as a module of `own`'s parts.

    Raises:
        TransferError: if it is not what its submodules do, one after another.
    """
    trial = at_random(norm)
    width = trial.running_var.numel()
    for ndim in (4, 2, 3, 5):
        generator = torch.Generator().manual_seed(ndim)
        x = torch.randn(3, width, *(2,) * (ndim - 2), generator=generator, dtype=torch.float64)
        scale, shift = getattr(trial, "weight", None), getattr(trial, "bias", None)
        plain = F.batch_norm(x, trial.running_mean, trial.running_var, scale, shift, eps=trial.eps)
        with torch.no_grad():
            try:
                found = trial(x.clone())
            except (ValueError, AssertionError, RuntimeError):
                continue  # it is for another number of axes
            wanted = _parts(trial)(plain)
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-9, atol=1e-9):
            return _parts(own)
    raise TransferError(
        f"folded: {name!r} is a {type(norm).__name__}, which does something else than to normalise and then to apply "
        f"its {len(list(norm.children()))} submodules; leave it out of the pairs"
    )


def _parts(norm: nn.Module) -> nn.Module:
    """A module's parts, under their names, in order."""
    parts = OrderedDict(norm.named_children())
    return nn.Sequential(parts) if parts else nn.Identity()
