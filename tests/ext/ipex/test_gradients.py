"""Gradients in a process that has imported IPEX. Collected only where it is."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ttransfer_ext.ipex import RESTORED, compiler

compiler()
GRAD = torch.func.grad
X = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)


def slow_layer(x: Tensor) -> Tensor:
    x = x.flatten(2).transpose(1, 2)
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * W


def slow_group(x: Tensor) -> Tensor:
    rows = x.reshape(len(x), 2, -1)
    rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return rows.reshape(x.shape) * W[:, None, None]


NORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "layer_norm": (lambda x: F.layer_norm(x.flatten(2).transpose(1, 2), (6,), W), slow_layer),
    "group_norm": (lambda x: F.group_norm(x, 2, W), slow_group),
}
MODES: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]] = {
    "eager": lambda f: f,
    "vmap": lambda f: lambda x: torch.func.vmap(f)(torch.stack([x, x]))[0],
    "compiled": lambda f: torch.compile(f, backend="aot_eager", fullgraph=True),
    "compiled vmap": lambda f: (
        lambda x: torch.compile(torch.func.vmap(f), backend="aot_eager", fullgraph=True)(x[None])[0]
    ),
    "ipex": lambda f: torch.compile(f, backend=compiler(), fullgraph=True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_normalisation_has_its_gradient(norm: str, mode: str) -> None:
    """Without `restore_gradients` it is zero in every mode."""
    torch._dynamo.reset()
    fast, slow = NORMS[norm]
    found = MODES[mode](GRAD(lambda x: fast(x).pow(3).sum()))(X)
    wanted = GRAD(lambda x: slow(x).pow(3).sum())(X)
    assert wanted.abs().max() > 1
    assert (found - wanted).abs().max() < 1e-9


def test_nothing_else_lost_its_gradient() -> None:
    """Lost is what torch composes, what IPEX has a CPU kernel of, and what nobody gave a derivative."""
    lost = set()
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::"):
            continue
        dump = torch._C._dispatch_dump(name)
        ours = re.search(r"^CPU: registered at \S*ipex", dump, re.MULTILINE)
        if ours and "CompositeImplicitAutograd[alias]" in dump and "\nAutograd[alias]" not in dump:
            lost.add(name.removeprefix("aten::"))
    assert lost == set(RESTORED)
