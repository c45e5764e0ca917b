"""What batch norm has counted, counted anew: a merged net's activations are not those of its ingredients."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, shown
from ttransfer.core._types import Params
from ttransfer.weights._merging import wide
from ttransfer.weights._routes import Tensors

__all__ = ["Moments", "Stop", "batch_statistics", "batches_of", "loaded", "moments", "pooled", "run_all"]


def batch_statistics(module: nn.Module, params: Tensors, batches: Iterable[Any]) -> Params:
    """Return the mean and variance of what every batch norm of a net is given, over all rows of some batches.

    They are those of the whole population, as if it were one batch: counted layer by layer, each behind layers that
    have theirs already, without momentum, and batches count by their rows. In eval mode the net then does to these rows
    what it would do to them as one batch in train mode; so the variance is divided by n, where torch's running average
    divides by n - 1. Everything else, dropout too, is in eval mode. A batch norm that is called more than once has the
    statistics of all its calls together; train mode takes those of each call, which no one mean and variance can give.

    Args:
        module: the net; it is copied, and left as it is.
        params: its parameters and buffers, such as a soup's; buffers that are not there are the module's.
        batches: inputs, a tensor or a tuple for more than one argument; a tensor in place of a list of them is one
            batch. One batch costs one forward, more cost about half a pass over all of them for each batch norm.

    Returns:
        Names of running means and variances -> tensors, for ``{**params, **batch_statistics(...)}``; none for a net
        without batch norm.

    Raises:
        TransferError: for parameters that the module does not have, or that are missing, or no batches.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.BatchNorm1d(1)
        >>> x = torch.tensor([[1.0], [3.0], [5.0]])
        >>> tt.weights.batch_statistics(net, net.state_dict(), [x[:2], x[2:]])
        {'running_mean': tensor([3.]), 'running_var': tensor([2.6667])}

    References:
        Keller Jordan, Hanie Sedghi, Olga Saukh, Rahim Entezari, Behnam Neyshabur. REPAIR: REnormalizing Permuted
        Activations for Interpolation Repair. 2023.
        Pavel Izmailov, Dmitrii Podoprikhin, Timur Garipov, Dmitry Vetrov, Andrew Gordon Wilson. Averaging Weights Leads
        to Wider Optima and Better Generalization. 2018.
    """
    net = loaded("batch_statistics", module, params)
    given = list(batches_of("batch_statistics", batches))
    if not given:
        raise TransferError("batch_statistics: there are no batches")
    norms = {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    }
    seen: dict[str, Moments] = {}
    calls: dict[str, int] = {}

    def watch(name: str, stop: bool = False) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            seen[name] = pooled(seen.get(name), moments(inputs[0]))
            if stop:
                raise Stop

        return hook

    # One batch tells all at once, in train mode; of many the first tells the order.
    hooks = [layer.train(len(given) == 1).register_forward_pre_hook(watch(name)) for name, layer in norms.items()]
    run_all(net, given[:1])
    order = dict(calls)
    for hook in hooks:
        hook.remove()
    for name, count in order.items():
        if len(given) > 1:
            del seen[name]
            hook = norms[name].train(count > 1).register_forward_pre_hook(watch(name, stop=count == 1))
            run_all(net, given)
            hook.remove()
        norms[name].eval()
        _set(norms[name], seen[name])
    prefix = {name: f"{name}." if name else "" for name in order}
    return {
        f"{prefix[name]}{leaf}": getattr(norms[name], leaf)
        for name in norms
        if name in order
        for leaf in ("running_mean", "running_var")
    }


def _set(norm: nn.modules.batchnorm._BatchNorm, of: Moments) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean = of.mean.to(norm.running_mean.dtype)
    norm.running_var = (of.squares / of.count).to(norm.running_var.dtype)


def batches_of(whose: str, batches: Iterable[Any]) -> Iterable[Any]:
    """What is given as batches, of which a tensor or a dict is one: its rows and its names are none.

    Raises:
        TransferError: for what can be no batches.
    """
    if isinstance(batches, (Tensor, Mapping)):
        return [batches]
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise TransferError(f"{whose}: wanted batches, such as a list of tensors, got {shown(batches)}")
    return batches


class Stop(Exception):
    """What is wanted of a forward is known."""


class Moments(NamedTuple):
    """How many values each channel has had, their mean, and the sum of squares of what they differ from it."""

    count: int
    mean: Tensor
    squares: Tensor


def moments(x: Tensor, axis: int = 1) -> Moments:
    """The moments of a tensor's channels, in float32 at least."""
    rows = x.detach().to(wide(x)).movedim(axis, 0).reshape(x.shape[axis], -1)
    mean = rows.mean(1)
    return Moments(rows.shape[1], mean, (rows - mean[:, None]).square().sum(1))


def pooled(a: Moments | None, b: Moments) -> Moments:
    """The moments of two sets together."""
    if a is None:
        return b
    count = a.count + b.count
    apart = b.mean - a.mean
    return Moments(
        count,
        a.mean + apart * (b.count / count),
        a.squares + b.squares + apart.square() * (a.count * b.count / count),
    )


def loaded(whose: str, module: nn.Module, params: Tensors) -> nn.Module:
    """A copy of a module, in eval mode, with other weights, whatever their dtype and device."""
    net = copy.deepcopy(module).eval()
    own = net.state_dict()
    buffers = dict(net.named_buffers())
    new = {name: x.detach().clone() for name, x in params.items()}
    if extra := [name for name in new if name not in own]:
        raise TransferError(f"{whose}: the module has no {extra[0]!r}")
    if missing := [name for name in own if name not in new and name not in buffers]:
        raise TransferError(f"{whose}: the module's {missing[0]!r} is missing, one of {len(missing)}")
    wrong = [name for name, x in new.items() if x.shape != own[name].shape]
    if wrong:
        raise TransferError(
            f"{whose}: {wrong[0]!r} is {tuple(new[wrong[0]].shape)}, the module's {tuple(own[wrong[0]].shape)}"
        )
    net.load_state_dict({**own, **new}, assign=True)
    return net


def run_all(net: nn.Module, batches: list[Any]) -> None:
    """Run a net on batches, until a hook has what it wants."""
    with torch.no_grad():
        for batch in batches:
            with contextlib.suppress(Stop):
                net(*(batch if isinstance(batch, tuple) else (batch,)))
