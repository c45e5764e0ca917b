"""Hyper-parameters as tensors: flattening, evaluating, setting.

A number is one entry of `State.hyper` under its own name; a schedule is one entry for each of its
numbers ("optim.lr.peak") and is evaluated at the step. All are float64, cast where they are used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.core._types import Fixed, Schedule, State

__all__ = ["at_use", "evaluate", "fixed", "is_number", "numbers", "numbers_set", "resolve", "set_hyper"]


def fixed(value: Any) -> Fixed:
    """Keep a hyper-parameter a Python value: it is compiled in, and cannot be swept.

    Args:
        value: what the loss gets.

    Example:
        >>> import ttransfer as tt
        >>> tt.fixed(4.0)
        Fixed(value=4.0)
    """
    return Fixed(value)


def is_number(value: Any) -> bool:
    """Say whether a value can be a hyper-parameter: a float, an int, a 0-d tensor or a schedule."""
    if isinstance(value, Tensor):
        return value.ndim == 0
    return isinstance(value, (int, float, Schedule)) and not isinstance(value, bool)


def numbers(name: str, value: Any) -> dict[str, float]:
    """Return the entries of `State.hyper` that a hyper-parameter needs.

    Example:
        >>> numbers("kd.temperature", 4.0)
        {'kd.temperature': 4.0}
        >>> numbers("optim.lr", Schedule(lambda step, h: h["peak"], {"peak": 0.1}))
        {'optim.lr.peak': 0.1}
    """
    if isinstance(value, Schedule):
        return {f"{name}.{key}": float(number) for key, number in value.hyper.items()}
    return {name: float(value)}


def evaluate(name: str, value: Any, hyper: Mapping[str, Tensor], step: Tensor) -> Tensor:
    """Return the value of a hyper-parameter at a step, a 0-d float64 tensor."""
    if isinstance(value, Schedule):
        own = {key: hyper[f"{name}.{key}"] for key in value.hyper}
        return value.apply(step.to(torch.float64), own).to(torch.float64)
    return hyper[name]


def resolve(
    declared: Mapping[str, Any], hyper: Mapping[str, Tensor], step: Tensor, prefix: str = ""
) -> dict[str, Tensor]:
    """Evaluate all declared hyper-parameters that `hyper` has entries for."""
    found: dict[str, Tensor] = {}
    for key, value in declared.items():
        name = prefix + key
        entries = [f"{name}.{part}" for part in value.hyper] if isinstance(value, Schedule) else [name]
        if not isinstance(value, Fixed) and all(entry in hyper for entry in entries):
            found[key] = evaluate(name, value, hyper, step)
    return found


def at_use(hyper: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast hyper-parameters to the dtype they are used with, float32 at least."""
    to = torch.promote_types(dtype, torch.float32)
    return {key: value.to(to) for key, value in hyper.items()}


def set_hyper(state: State, values: Mapping[str, float | Tensor]) -> State:
    """Return the state with hyper-parameters changed; nothing recompiles.

    A net's own parameter that is one number, such as the coefficient of a `tt.as_reparam`, is set as "net.name".

    Args:
        state: of any step, an ensemble's too (one value is then given to every member).
        values: name -> number, or a tensor that broadcasts to the entry's shape.

    Returns:
        A state that shares all other tensors with `state`.

    Raises:
        TransferError: for a name that is neither in `state.hyper` nor such a parameter, or a value that is no number
            or does not fit.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> net = tt.functional(torch.nn.Linear(2, 2))
        >>> step = tt.step({"net": net}, tt.optim.sgd(0.1), trainable=("net",),
        ...                task=tt.term(F.cross_entropy, "net(source)", "source.y"))
        >>> state = step.init({"source": {"x": torch.ones(3, 2), "y": torch.tensor([0, 1, 0])}})
        >>> tt.set_hyper(state, {"optim.lr": 0.5}).hyper["optim.lr"]
        tensor(0.5000, dtype=torch.float64)
    """
    return numbers_set("set_hyper", state, values)


def numbers_set(whose: str, state: State, values: Mapping[str, float | Tensor]) -> State:
    """Do what `set_hyper` does, under another's name in messages."""
    hyper, nets = dict(state.hyper), {"trainable": dict(state.trainable), "frozen": dict(state.frozen)}
    for name, value in values.items():
        if name in hyper:
            hyper[name] = _in_place_of(whose, name, hyper[name], value)
            continue
        for group in nets.values():
            for net, own in group.items():
                key = name.removeprefix(f"{net}.")
                if net != "terms" and key != name and key in own and own[key].ndim == state.step.ndim:
                    group[net] = {**own, key: _in_place_of(whose, name, own[key], value)}
                    break
            else:
                continue
            break
        else:
            raise TransferError(f"{whose}: {_unknown(name, [*hyper, *_single(state)])}")
    return State(
        nets["trainable"],
        nets["frozen"],
        state.buffers,
        state.terms,
        state.opt,
        state.ema,
        hyper,
        state.step,
        state.seed,
    )


def _single(state: State) -> list[str]:
    """Parameters of nets that are one number."""
    groups = ({k: v for k, v in state.trainable.items() if k != "terms"}, state.frozen)
    every = [(net, own) for group in groups for net, own in group.items()]
    return [f"{net}.{key}" for net, own in every for key, x in own.items() if x.ndim == state.step.ndim]


def _in_place_of(whose: str, name: str, old: Tensor, value: float | Tensor) -> Tensor:
    try:
        new = torch.as_tensor(value, dtype=old.dtype, device=old.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TransferError(f"{whose}: {name!r} wants a number, got {value!r}") from error
    try:
        return new.expand(old.shape).clone()
    except RuntimeError as error:
        raise TransferError(
            f"{whose}: {name!r} has shape {tuple(old.shape)}, the value given {tuple(new.shape)}"
        ) from error


def _unknown(name: str, known: Collection[str]) -> str:
    """Say that a state has no such number, and why that may be."""
    static = "; a number that its loss takes no tensor for, or tt.fixed, is not in the state: see tt.describe"
    return f"no hyper-parameter {name!r}{nearest(name, known)}" + (static if "." in name else "")
