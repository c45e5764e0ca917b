"""Any `nn.Module` as pure functions."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, nearest
from ttransfer.core import _tree as tree
from ttransfer.core._keyed import drops
from ttransfer.core._keyed_functions import calls_dropout
from ttransfer.core._maps import Reparam
from ttransfer.core._skeleton import bind_skeleton, copy_of
from ttransfer.core._types import Functional, Layout, Out, Params

__all__ = ["functional", "reparam"]

_MODES = ("train", "eval")
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def functional(
    module: nn.Module | Callable[[], nn.Module],
    *,
    mode: str | None = None,
    inputs: Sequence[str] = ("x",),
    precision: str | None = None,
) -> Functional:
    """Turn a module into pure functions, `init` and `apply`, without touching it.

    Args:
        module: a module, whose weights as they are now are the start (they are copied), or a zero-argument
            factory, which is called under its own seed: each member of an ensemble starts differently.
        mode: "train" or "eval" forces a mode; None lets the step decide (train if it trains the net).
        inputs: the batch fields that the module takes, in order.
        precision: "bfloat16" or "float16" runs the forward under autocast; parameters, gradients, losses
            and normalisation layers stay in float32.

    Returns:
        A Functional.

    Raises:
        TransferError: if `module` is neither a module nor a factory of one, or cannot be copied.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = tt.functional(torch.nn.Linear(3, 2))
        >>> params, buffers = net.init(torch.Generator())
        >>> net.apply(params, buffers, torch.ones(4, 3)).value.shape
        torch.Size([4, 2])
    """
    if mode is not None and mode not in _MODES:
        raise TransferError(f"functional: mode must be 'train', 'eval' or None, got {mode!r}{nearest(mode, _MODES)}")
    if precision is not None and precision not in _PRECISIONS:
        raise TransferError(f"functional: unknown precision {precision!r}{nearest(precision, _PRECISIONS)}")
    if isinstance(inputs, str) or not inputs or not all(isinstance(name, str) for name in inputs):
        raise TransferError(f"functional: inputs must be names of batch fields such as ('x',), got {inputs!r}")
    if isinstance(module, nn.Module):
        make, start = None, module
    else:
        make = _factory(module)
        start = make(0)
    _check(start)
    skeleton = copy_of(start)
    # Taken now: what is done to the module later, a write_back for one, does not change where a run starts.
    given = _weights(start) if make is None else None
    autocast = None if precision is None else _PRECISIONS[precision]

    def init(generator: torch.Generator) -> tuple[Params, Params]:
        if make is None:
            return cast(tuple[Params, Params], tree.map(torch.clone, given))
        return _weights(make(int(torch.randint(2**62, (), generator=generator))))

    def bind(
        taps: Sequence[Any] = (),
        training: bool = mode == "train",
        batch_statistics: bool = True,
        precision: torch.dtype | None = None,
        adjust: Callable[[nn.Module], None] | None = None,
    ) -> Callable[..., Out]:
        return bind_skeleton(skeleton, taps, training, batch_statistics, precision or autocast, adjust)

    layout = Layout(
        {name: p.detach() for name, p in skeleton.named_parameters()},
        dict(skeleton.named_buffers()),
        tuple(name for name, _ in skeleton.named_modules() if name),
        frozenset(name for name, p in skeleton.named_parameters() if not p.requires_grad),
        drops(skeleton) or calls_dropout(skeleton),
        _saved(skeleton),
    )
    return Functional(init, bind(), bind, dict, layout, mode, tuple(inputs))


def _factory(module: Any) -> Callable[[int], nn.Module]:
    """Return seed -> module; the caller's random state is left as it was."""
    if not callable(module) or _needs_arguments(module):
        raise TransferError(
            f"functional: expected an nn.Module or a function of no arguments that makes one, got {module!r}"
        )

    def make(seed: int) -> nn.Module:
        # torch.manual_seed would leave a seed behind for devices that are not initialised yet.
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            made = module()
        if not isinstance(made, nn.Module):
            raise TransferError(f"functional: the factory made {type(made).__name__}, expected an nn.Module")
        return made

    return make


def _check(module: nn.Module) -> None:
    """Refuse what would write parameters in a forward, or would run on the module's own ones."""
    for name, child in module.named_modules():
        what = f"functional: {(name or type(child).__name__)!r}"
        if getattr(child, "max_norm", None) is not None:
            raise TransferError(f"{what} has max_norm, which writes its weight in each forward; leave it out")
        if isinstance(vars(child).get("forward"), types.FunctionType):
            raise TransferError(
                f"{what} has a forward put in by hand, which a copy would share with it; write a subclass, or bind it "
                "with types.MethodType"
            )


def _needs_arguments(factory: Callable[..., Any]) -> bool:
    try:
        inspect.signature(factory).bind()
    except TypeError:
        return True
    except ValueError:  # a callable without a signature: let it try
        return False
    return False


def _saved(skeleton: nn.Module) -> dict[str, str]:
    """Name in the state dict -> name among the parameters and buffers, where a tied one has its first name only."""
    own = {id(x): name for name, x in (*skeleton.named_parameters(), *skeleton.named_buffers())}
    return {name: own[id(x)] for name, x in skeleton.state_dict(keep_vars=True).items() if id(x) in own}


def _weights(module: nn.Module) -> tuple[Params, Params]:
    """Copy the parameters and buffers out of a module, each with a storage of its own."""
    with torch.no_grad():
        params = {name: _own(p) for name, p in module.named_parameters()}
        buffers = {name: _own(b) for name, b in module.named_buffers()}
    for name, tensor in (*params.items(), *buffers.items()):
        if tensor.device.type == "meta":
            raise TransferError(f"functional: {name!r} is on the meta device; load its weights first")
    return params, buffers


def _own(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.contiguous_format)


def reparam(net: Functional, map: Reparam) -> Functional:
    """Compute a net's parameters from a base and a delta inside the step (LoRA, masks, fake quantisation).

    The result has the base's parameters and the delta's under one roof; unless the map says otherwise,
    only the delta trains when the net is named as trainable. Buffers that the map makes too, as one of whole
    checkpoints does, are what the net reads in eval mode.

    Args:
        net: the base.
        map: for example `tt.adapters.lora("blocks.*", rank=4)`.

    Returns:
        A Functional.

    Raises:
        TransferError: if the delta's names clash with the base's.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = tt.reparam(tt.functional(torch.nn.Linear(8, 2)), tt.adapters.lora("weight", rank=1))
        >>> sorted(net.layout.parameters)
        ['bias', 'weight', 'weight.lora_a', 'weight.lora_b']
    """
    base_names = tuple(net.layout.parameters)

    def init(generator: torch.Generator) -> tuple[Params, Params]:
        params, buffers = net.init(generator)
        return {**params, **_delta(map, generator, params)}, buffers

    def mapped(params: Params) -> tuple[Params, Params]:
        base = {name: params[name] for name in base_names}
        delta = {name: value for name, value in params.items() if name not in base}
        made = map.apply(base, delta)
        own = {name: made[name].to(like.dtype) for name, like in net.layout.buffers.items() if name in made}
        return {name: made[name] for name in base_names}, own

    def merged(params: Params) -> Params:
        made, own = mapped(params)
        return {**net.merged(made), **own}

    def bind(
        taps: Sequence[Any] = (), training: bool = net.mode == "train", batch_statistics: bool = True, **more: Any
    ) -> Callable[..., Out]:
        inner = net.bind(taps, training, batch_statistics, **more)

        def apply(params: Params, buffers: Params, *inputs: Any, keys: Tensor | None = None) -> Out:
            made, own = mapped(params)
            if training and batch_statistics:
                return inner(made, buffers, *inputs, keys=keys)
            # Where running statistics are read they are the map's, if it makes any; nobody writes them there.
            out = inner(made, {**buffers, **own}, *inputs, keys=keys)
            return Out(out.value, out.taps, {**out.buffers, **{name: buffers[name] for name in own}})

        return apply

    base = net.layout
    delta = {k: v.to("meta") for k, v in _delta(map, torch.Generator(), _shaped(base.parameters)).items()}
    frozen = base.frozen if map.trains_base else frozenset(base_names)
    layout = Layout({**base.parameters, **delta}, base.buffers, base.modules, frozen, base.drops, base.saved)
    return Functional(init, bind(), bind, merged, layout, net.mode, net.inputs)


def _shaped(params: Params) -> Params:
    """Tensors of the right shape for a map that looks at values too, such as a mask by magnitude."""
    return {name: torch.zeros(p.shape, dtype=p.dtype) for name, p in params.items()}


def _delta(map: Reparam, generator: torch.Generator, params: Params) -> Params:
    delta = map.init(generator, params)
    if clash := delta.keys() & params.keys():
        raise TransferError(f"reparam: the map names its own parameter {sorted(clash)[0]!r}, as the base does")
    return delta
