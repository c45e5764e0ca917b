"""Small modules of every kind that a functional must take, each with an input that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor, nn

from ttransfer.testing.strategies._check import bounds_of, known
from ttransfer.testing.strategies._logits import features
from ttransfer.testing.strategies._values import seeded

__all__ = ["MODULES", "ModuleCase", "modules"]

Row = tuple[int, ...]


class ModuleCase(NamedTuple):
    """A module and an input for it.

    Attributes:
        module: float64, in train mode.
        x: its input, float64.

    Example:
        >>> case = ModuleCase(nn.Linear(2, 1), torch.zeros(3, 2))
        >>> case.module(case.x).shape
        torch.Size([3, 1])
    """

    module: nn.Module
    x: Tensor


def modules(*families: str, rows: tuple[int, int] = (1, 3)) -> SearchStrategy[ModuleCase]:
    """Draw a small module with an input that fits, both in float64.

    Weights and running statistics are drawn by a seed, so that no two are alike but by chance. The global random
    state is left alone.

    Args:
        *families: from which to draw, all if none is named: "linear" (one layer), "stack" (two or three, with or
            without bias and activations), "conv" (with BatchNorm, on maps), "norm" (LayerNorm), "attention"
            (on tokens), "tied" (two layers with one weight), "dropout", "in-place" (a ReLU that writes on what it
            gets, and sometimes another that so writes on the input), "twice" (one module called two times), "dict"
            and "tuple" (outputs of several tensors).
        rows: the fewest and the most of the input.

    Returns:
        A strategy for `ModuleCase`, which is (module, x); it shrinks to one linear layer and one row of zeros.

    Raises:
        TransferError: for a family that is not there, or no range of rows.

    Example:
        >>> from hypothesis import find
        >>> module, x = find(modules("linear", "conv"), lambda case: True)
        >>> module, x
        (Linear(in_features=1, out_features=1, bias=True), tensor([[0.]], dtype=torch.float64))
        >>> module(x).dtype
        torch.float64
    """
    for family in families:
        known("modules", family, MODULES)
    return _modules(families or MODULES, bounds_of("modules", "rows", rows, least=1))


@st.composite
def _modules(draw: DrawFn, families: tuple[str, ...], rows: tuple[int, int]) -> ModuleCase:
    family = draw(st.sampled_from(families))
    # All families draw as many sizes, so that none takes fewer choices than the simplest.
    size, width, classes = (draw(st.integers(1, 3)) for _ in range(3))
    before = torch.get_rng_state()  # layers fill themselves from the global generator
    try:
        module, row = _FAMILIES[family](draw, size, width, classes)
    finally:
        torch.set_rng_state(before)
    x = draw(features((draw(st.integers(*rows)), *row)))
    return ModuleCase(_filled(module.double(), draw(st.integers(0, 2**16))), x)


def _filled(module: nn.Module, seed: int) -> nn.Module:
    """Fill weights and running statistics with numbers of three decimals."""
    generator = seeded(seed)

    def normal(x: Tensor) -> Tensor:
        return (torch.randn(x.shape, generator=generator, dtype=x.dtype) * 700).round() / 1000

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(normal(parameter))
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(normal(buffer).abs() + 0.5 if name.endswith("running_var") else normal(buffer))
    return module


def _linear(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    return nn.Linear(size, width), (size,)


def _stack(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    layers: list[nn.Module] = [nn.Linear(size, width, bias=draw(st.booleans()))]
    for _ in range(draw(st.integers(0, 1))):
        layers += [*draw(st.sampled_from(_ACTIVATIONS))(), nn.Linear(width, width, bias=draw(st.booleans()))]
    layers += [*draw(st.sampled_from(_ACTIVATIONS))(), nn.Linear(width, classes, bias=draw(st.booleans()))]
    return nn.Sequential(*layers), (size,)


_ACTIVATIONS: tuple[Callable[[], list[nn.Module]], ...] = (
    list,
    lambda: [nn.ReLU()],
    lambda: [nn.Tanh()],
    lambda: [nn.GELU()],
)


def _conv(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    conv = nn.Conv2d(size, width, 2, bias=draw(st.booleans()))
    norm = nn.BatchNorm2d(width, affine=draw(st.booleans()))
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return nn.Sequential(conv, norm, *head), (size, 3, 3)


def _norm(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    # The norm of one number is 0.
    layers = (nn.Linear(size, width + 1), nn.LayerNorm(width + 1), nn.Tanh(), nn.Linear(width + 1, classes))
    return nn.Sequential(*layers), (size,)


def _attention(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    return Attention(size), (width, size)


def _tied(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    return Tied(size), (size,)


def _dropout(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    p = draw(st.sampled_from([0.5, 0.25]))
    return nn.Sequential(nn.Linear(size, width), nn.Dropout(p), nn.Linear(width, classes)), (size,)


def _in_place(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    first = [nn.ReLU(inplace=True)] * draw(st.booleans())
    return nn.Sequential(*first, nn.Linear(size, width), nn.ReLU(inplace=True), nn.Linear(width, classes)), (size,)


def _twice(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    return Twice(size), (size,)


def _dict(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    return DictOutput(size, width, classes), (size,)


def _tuple(draw: DrawFn, size: int, width: int, classes: int) -> tuple[nn.Module, Row]:
    return TupleOutput(size, width, classes), (size,)


class Attention(nn.Module):
    """One head of attention with what it gets added, on tokens (n, t, d)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Attend and add."""
        weights = (self.query(x) @ self.key(x).mT / x.shape[-1] ** 0.5).softmax(-1)
        return x + self.out(weights @ self.value(x))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(size, size), nn.Linear(size, size)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply one after the other."""
        return self.decode(self.encode(x).tanh())


class Twice(nn.Module):
    """One layer and one activation, each called two times."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(size, size), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to its own output."""
        return self.act(self.layer(self.act(self.layer(x))))


class DictOutput(nn.Module):
    """A body and a head; both outputs in a dict."""

    def __init__(self, size: int, width: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(size, width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits and features."""
        hidden = self.body(x).tanh()
        return {"logits": self.head(hidden), "features": hidden}


class TupleOutput(DictOutput):
    """A body and a head; the logits, and the features in a list, as a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits and features."""
        found = super().forward(x)
        return found["logits"], [found["features"]]


_FAMILIES: dict[str, Callable[[DrawFn, int, int, int], tuple[nn.Module, Row]]] = {
    "linear": _linear,
    "stack": _stack,
    "conv": _conv,
    "norm": _norm,
    "attention": _attention,
    "tied": _tied,
    "dropout": _dropout,
    "in-place": _in_place,
    "twice": _twice,
    "dict": _dict,
    "tuple": _tuple,
}
MODULES = tuple(_FAMILIES)
