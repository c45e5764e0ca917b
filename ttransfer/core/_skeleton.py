"""A private copy of a module with no storage, on which pure applies run.

Parameters and buffers of the copy live on the meta device and are replaced at each call, so nothing
of the user's module is touched, and a name that is forgotten cannot be filled in silently.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ttransfer._errors import TransferError
from ttransfer.core._keyed import Box, key_modules
from ttransfer.core._keyed_functions import KeyedFunctions, calls_dropout
from ttransfer.core._paths import Tap
from ttransfer.core._types import Out, Params

__all__ = ["bind_skeleton", "copy_of"]


def copy_of(module: nn.Module) -> nn.Module:
    """Copy a module with every parameter and buffer on the meta device; ties between them are kept."""
    memo: dict[int, Any] = {}
    try:
        for parameter in module.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        for buffer in module.buffers():
            memo[id(buffer)] = buffer.detach().to("meta")
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise TransferError(f"functional: {type(module).__name__} cannot be copied: {error}") from error


def bind_skeleton(
    skeleton: nn.Module,
    taps: Sequence[Tap] = (),
    training: bool = False,
    batch_statistics: bool = True,
    precision: torch.dtype | None = None,
    adjust: Callable[[nn.Module], None] | None = None,
) -> Callable[..., Out]:
    """Return an apply on a copy of the skeleton made for these taps and this mode.

    Args:
        skeleton: from `copy_of`.
        taps: what to hand out beside the output.
        training: train or eval mode.
        batch_statistics: False leaves normalisation layers in eval mode.
        precision: the dtype of autocast; normalisation layers stay in float32.
        adjust: what else is to be done to the copy, such as letting its normalisation ask other processes.
    """
    box: Box = {}
    net = copy_of(skeleton).train(training)
    net = key_modules(net, box)
    if not batch_statistics:
        for module in net.modules():
            if hasattr(module, "running_mean"):
                module.eval()
    if adjust is not None:
        adjust(net)
    if precision is not None:
        _norms_in_float32(net)
    for tap in dict.fromkeys(Tap(tap.module, tap.input) for tap in taps):
        _record(net, tap, box)
    functional = training and calls_dropout(net)
    wanted = [(str(tap), str(Tap(tap.module, tap.input)), tap.call) for tap in dict.fromkeys(taps)]

    def keyed_call(*args: Any, **kwargs: Any) -> Any:
        with KeyedFunctions(box):
            return torch.func.functional_call(*args, **kwargs)

    def apply(params: Params, buffers: Params, *inputs: Any, keys: Tensor | None = None) -> Out:
        box.clear()
        box["keys"] = keys
        # Modules write buffers in place: they get copies, and the copies are handed out. Some write their input.
        inputs = _copied(inputs)
        given = {**params, **{name: buffer.clone() for name, buffer in buffers.items()}}
        try:
            run = keyed_call if functional else torch.func.functional_call
            if precision is None:
                value = run(net, given, inputs, strict=True)
            else:
                with torch.autocast(_device_of(params), precision):
                    value = run(net, given, inputs, strict=True)
            found = {name: _pick_call(name, box.get(recorded, ()), call) for name, recorded, call in wanted}
        finally:
            # A functorch wrapper that outlives its transform breaks compilation.
            box.clear()
        # A buffer that was assigned, not written in place, is a new tensor in `given`.
        return Out(value, found, {name: given[name] for name in buffers} if training else buffers)

    return apply


def _device_of(params: Params) -> str:
    for parameter in params.values():
        return parameter.device.type
    return "cpu"


def _copied(value: Any) -> Any:
    """Clone the tensors of a value: modules downstream may write into them in place."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)


def _record(net: nn.Module, tap: Tap, box: Box) -> None:
    """Hook a module so that each of its calls appends a value to the box."""
    name = str(tap)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = (*args, *kwargs.values())
        box.setdefault(name, []).append(_copied(values[0] if len(values) == 1 else values))

    def after(_: nn.Module, __: Any, output: Any) -> None:
        box.setdefault(name, []).append(_copied(output))

    module = net.get_submodule(tap.module)
    if tap.input:
        module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        module.register_forward_hook(after)


def _pick_call(name: str, calls: Sequence[Any], call: int | None) -> Any:
    """Return the value of the call that a tap means."""
    if not calls:
        raise TransferError(f"tap '{name}': the module was not called in this forward")
    if call is None and len(calls) > 1:
        raise TransferError(
            f"tap '{name}': the module is called {len(calls)} times in one forward; "
            f"say which call, from '{name}@0' to '{name}@{len(calls) - 1}'"
        )
    if call is not None and call >= len(calls):
        raise TransferError(f"tap '{name}': the module is called {len(calls)} times, and calls count from 0")
    return calls[call or 0]


_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def _norms_in_float32(net: nn.Module) -> None:
    """Run normalisation layers outside autocast: in bfloat16 they fail under vmap(grad)."""
    for module in net.modules():
        if isinstance(module, _NORMS):
            cast(Any, module).forward = functools.partial(_in_float32, module.forward)


def _in_float32(forward: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.to(torch.promote_types(x.dtype, torch.float32)), *rest).to(x.dtype)
