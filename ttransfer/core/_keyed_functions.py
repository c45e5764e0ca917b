"""Keyed dropout for nets that call `torch.nn.functional.dropout` in a forward of their own.

Such a call is no module that could be replaced. A function mode around the forward catches it; it is
entered only for nets whose code mentions dropout, because a mode costs time at every operation.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ttransfer.core._keyed import Box, drop_alpha, drop_channels, drop_elements, next_call

__all__ = ["KeyedFunctions", "calls_dropout"]

_NUMBER = (1 << 20) - 1  # a module number that no module has

_RULES: Mapping[Any, Callable[[Box, int, Tensor, float], Tensor]] = {
    F.dropout: drop_elements,
    F.dropout1d: drop_channels,
    F.dropout2d: drop_channels,
    F.dropout3d: drop_channels,
    F.alpha_dropout: drop_alpha,
}


class KeyedFunctions(TorchFunctionMode):
    """Inside it, functional dropout draws from the box's keys."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.box = box

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace a dropout; leave all else as it is."""
        rule = _RULES.get(func)
        return func(*args, **(kwargs or {})) if rule is None else self._drop(rule, *args, **(kwargs or {}))

    def _drop(
        self,
        rule: Callable[[Box, int, Tensor, float], Tensor],
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0.0:
            return input
        return rule(self.box, next_call(self.box, _NUMBER), input, float(p))


_NAMES = {function.__name__ for function in _RULES}


def calls_dropout(root: nn.Module) -> bool:
    """Say whether the code of any module's class, torch's own left out, mentions a functional dropout."""
    kinds = {kind for module in root.modules() for kind in type(module).__mro__}
    return any(
        _NAMES & set(code.co_names)
        for kind in kinds
        if not kind.__module__.startswith("torch.nn")
        for code in _codes(kind)
    )


def _codes(kind: type) -> Iterator[types.CodeType]:
    for member in vars(kind).values():
        if isinstance(member, types.FunctionType):
            yield member.__code__
