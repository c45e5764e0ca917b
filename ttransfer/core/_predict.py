"""Taking networks out of a state: as a function, as a state dict, into a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, nearest
from ttransfer.core._alternate import Alternation
from ttransfer.core._forward import picked
from ttransfer.core._members import members_of
from ttransfer.core._paths import Forward, parse_path
from ttransfer.core._spec import Expression, source_of
from ttransfer.core._step import Step
from ttransfer.core._types import Functional, Params, State

__all__ = ["predict", "state_dict", "write_back"]


def predict(step: Step, state: State, path: str) -> Callable[..., Any]:
    """Return a net of the state as a pure function of its inputs, in eval mode.

    It can be differentiated: a validation loss through it, by a hyper-parameter, is a meta-gradient.

    Args:
        step: the step that the state is of; for an ensemble or a sweep the function returns stacked outputs.
        state: the state.
        path: a net's name, "student"; or "student(target)" where buffers are per domain; or with a tap,
            "student(target).fc:in".

    Returns:
        inputs -> output (or the tapped value), members first where there are several.

    Raises:
        TransferError: for a net, domain or tap that does not exist.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> train = tt.step({"net": tt.functional(torch.nn.Linear(2, 3))}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(F.cross_entropy, "net(source)", "source.y"))
        >>> state = train.init({"source": {"x": torch.ones(4, 2), "y": torch.zeros(4, dtype=torch.int64)}})
        >>> tt.predict(train, state, "net")(torch.ones(5, 2)).shape
        torch.Size([5, 3])
    """
    read = _parsed(path)
    functional = functional_of(step, read.net)
    if read.tap is not None and read.tap.module not in functional.layout.modules:
        raise TransferError(
            f"predict: {read.net!r} has no submodule {read.tap.module!r}"
            f"{nearest(read.tap.module, functional.layout.modules)}"
        )
    depth = members_of(step.spec.transforms)
    params, buffers = weights_of(state, read.net, read.domain)
    _check(functional, read.net, params, state, depth)
    apply = functional.bind((read.tap,) if read.tap is not None else (), training=False)

    def run(params: Params, buffers: Params, inputs: tuple[Tensor, ...]) -> Any:
        out = apply(params, buffers, *inputs)
        return picked(out.value if read.tap is None else out.taps[str(read.tap)], read)

    for _ in range(depth):
        run = torch.func.vmap(run, in_dims=(0, 0, None))

    def call(*inputs: Tensor) -> Any:
        return run(params, buffers, inputs)

    return call


def _check(functional: Functional, net: str, params: Params, state: State, depth: int) -> None:
    """Refuse a state that is not of the step."""
    if state.step.ndim != depth:
        raise TransferError(
            f"the state is stacked {state.step.ndim} deep, and {depth} is wanted: use the step that made the state, or "
            "take one run out of it with tt.member(state, i)"
        )
    if wrong := params.keys() ^ functional.layout.parameters.keys():
        raise TransferError(f"the state is of another step: parameters of {net!r} differ, the first in {min(wrong)!r}")


def _parsed(path: str) -> Forward:
    """A bare net's name stands for its forward over any domain."""
    if path.isidentifier():
        return Forward(path, "")
    parsed = parse_path(path)
    if not isinstance(parsed, Forward):
        raise TransferError(f"predict: '{path}' is no forward; write 'net', 'net(domain)' or 'net(domain).tap'")
    return parsed


def functional_of(step: Step, net: str) -> Functional:
    """Find a net in an expression, or in the phases of an alternation."""
    expression = step.spec.expression
    found: list[Expression] = (
        [phase.spec.expression for phase in expression.phases.values()]
        if isinstance(expression, Alternation)
        else [expression]
    )
    for one in found:
        if net in one.nets or net in one.ema:
            return source_of(one, net)
    raise TransferError(
        f"no net {net!r} in this step{nearest(net, [n for one in found for n in (*one.nets, *one.ema)])}"
    )


def weights_of(state: State, net: str, domain: str = "") -> tuple[Params, Params]:
    """Return a net's parameters and its buffers, for a domain where these are per domain."""
    known = [*dict.fromkeys([*state.trainable, *state.frozen, *state.ema])]
    known.remove("terms")
    if net not in known:
        raise TransferError(f"no net {net!r} in this state{nearest(net, known)}")
    params = state.ema.get(net) or {**state.frozen.get(net, {}), **state.trainable.get(net, {})}
    if net in state.buffers:
        return params, state.buffers[net]
    where = f"{net}({domain})"
    if where not in state.buffers:
        kept = [slot for slot in state.buffers if slot.startswith(f"{net}(")]
        raise TransferError(f"the buffers of {net!r} are per domain: say which, one of {', '.join(map(repr, kept))}")
    return params, state.buffers[where]


def state_dict(step: Step, state: State, path: str) -> dict[str, Tensor]:
    """Return a net's parameters and buffers under its module's own names, reparametrisations computed.

    Args:
        step: the step that the state is of.
        state: the state of one run.
        path: a net's name, or "net(domain)" where buffers are per domain.

    Returns:
        Copies under the names of the module's own state dict, ready for `nn.Module.load_state_dict` or a
        safetensors file. Tied parameters are there under each of their names.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = tt.reparam(tt.functional(torch.nn.Linear(4, 3)), tt.adapters.lora("weight", rank=1))
        >>> train = tt.step({"net": net}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(torch.nn.functional.mse_loss, "net(s)", "s.y"))
        >>> state = train.init({"s": {"x": torch.ones(2, 4), "y": torch.ones(2, 3)}})
        >>> sorted(tt.state_dict(train, state, "net"))
        ['bias', 'weight']
    """
    merged = _merged(step, state, path)
    saved = functional_of(step, _parsed(path).net).layout.saved
    return {name: merged[own].clone() for name, own in saved.items()}


def _merged(step: Step, state: State, path: str) -> dict[str, Tensor]:
    """A net's parameters and buffers under its module's own names, reparametrisations computed."""
    read = _parsed(path)
    functional = functional_of(step, read.net)
    params, buffers = weights_of(state, read.net, read.domain)
    _check(functional, read.net, params, state, 0)
    with torch.no_grad():
        return {**buffers, **functional.merged(params)}


def write_back(state: State, module: nn.Module, *, net: str | None = None, step: Step | None = None) -> None:
    """Copy a net's parameters and buffers from a state into a module, in place.

    Args:
        state: the state of one run; take a member of a stacked one first.
        module: of the same architecture.
        net: the net's name, or "net(domain)" where buffers are per domain; None takes the one net whose names
            and shapes are the module's, the trained one if several are.
        step: needed for a net with a reparametrisation, which is then computed.

    Raises:
        TransferError: when names or shapes differ, or when no net or more than one fits. The module is then
            unchanged.

    Example:
        >>> import torch, ttransfer as tt
        >>> model = torch.nn.Linear(4, 3)
        >>> train = tt.step({"net": tt.functional(model)}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(torch.nn.functional.mse_loss, "net(s)", "s.y"))
        >>> batch = {"s": {"x": torch.ones(2, 4), "y": torch.ones(2, 3)}}
        >>> state, _ = train(train.init(batch), batch)
        >>> tt.write_back(state, model)
        >>> torch.equal(model.weight, state.trainable["net"]["weight"])
        True
    """
    name = net or _fitting(state, module, step)
    source = _source(state, name, step)
    target = _slots(module)
    wrong = _difference(source, target)
    if wrong:
        hint = "; a net with a reparametrisation needs step=" if step is None and target.keys() < source.keys() else ""
        raise TransferError(f"write_back: net {name!r} does not fit {type(module).__name__}: {wrong}{hint}")
    with torch.no_grad():
        for key, tensor in target.items():
            tensor.copy_(source[key])


def _source(state: State, name: str, step: Step | None) -> Mapping[str, Tensor]:
    """A net's parameters and buffers under its module's own names."""
    if step is not None:
        return _merged(step, state, name)
    read = _parsed(name)
    params, buffers = weights_of(state, read.net, read.domain)
    return {**params, **buffers}


def _slots(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _difference(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    """Say in what the first difference between two sets of tensors lies; empty if there is none."""
    for key, tensor in target.items():
        if key not in source:
            return f"the module has {key!r}, the net does not{nearest(key, source)}"
        if source[key].shape != tensor.shape:
            got = tuple(source[key].shape)
            hint = "; take one member of the stacked state first" if got[1:] == tuple(tensor.shape) else ""
            return f"{key!r} is {got} in the net and {tuple(tensor.shape)} in the module{hint}"
    for key in source:
        if key not in target:
            return f"the net has {key!r}, the module does not{nearest(key, target)}"
    return ""


def _fitting(state: State, module: nn.Module, step: Step | None) -> str:
    target = _slots(module)
    every = [net for net in dict.fromkeys([*state.trainable, *state.frozen, *state.ema]) if net != "terms"]
    fits: list[str] = []
    reasons: list[str] = []
    for net in every:
        try:
            why = _difference(_source(state, net, step), target)
        except TransferError as error:
            reasons.append(str(error))
            continue
        if why:
            reasons.append(f"{net!r}: {why}")
        else:
            fits.append(net)
    trained = [net for net in fits if net in state.trainable]
    if len(fits) == 1 or len(trained) == 1:
        return (trained or fits)[0]
    if fits:
        raise TransferError(f"write_back: {', '.join(map(repr, fits))} all fit; say which with net=")
    raise TransferError(f"write_back: no net of the state fits {type(module).__name__}: " + "; ".join(reasons))
