"""Laws on modes: one graph, many at once, and both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ttransfer.testing._law import Broken, law
from ttransfer.testing._subject import Inputs, Subject, drawn, for_all, show
from ttransfer.testing.laws._compiling import compiling
from ttransfer.testing.laws._tools import differs, far, tensors

__all__ = ["LAWS"]


def _one(subject: Subject) -> Inputs:
    """One plain input with several rows."""
    found: list[Inputs] = []
    rows = (max(4, subject.fewest), max(4, subject.fewest))
    for_all(drawn(subject, "generic", rows=rows, least=3), found.append, examples=2)
    return tensors(found[-1], torch.Tensor.double)


def _other(subject: Subject, inputs: Inputs) -> Inputs:
    """A second input of the same shapes."""
    out: list[Any] = []
    for a, x in zip(subject.arguments, inputs, strict=True):
        if isinstance(x, Tensor) and a.kind in ("logits", "features"):
            out.append(x.flip(0) * 0.75)
        else:
            out.append(x.flip(a.axis) if a.has_rows and isinstance(x, Tensor) else x)
    return tuple(out)


def _why(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:3])[:400]


@law(lambda s: not s.tags.stochastic)
def one_graph(subject: Subject) -> None:
    """The loss compiles to one graph, with the same value and gradient.

    Broken by: .item(), a Python branch on a value, indexing by a mask, nonzero, NumPy, print, try.
    """
    inputs = _one(subject)
    value, grads = subject.gradients(inputs)

    def compiled(*arguments: Any) -> Any:
        return subject.fn(*arguments)

    with compiling():
        fast = torch.compile(compiled, backend="aot_eager", fullgraph=True, dynamic=False)
        leaves = {i: inputs[i].clone().requires_grad_() for i in grads}
        try:
            there = fast(*(leaves.get(i, x) for i, x in enumerate(inputs)))
            found = (
                torch.autograd.grad(there, list(leaves.values()), allow_unused=True, materialize_grads=True)
                if there.requires_grad
                else tuple(torch.zeros_like(x) for x in leaves.values())
            )
        except Exception as error:
            raise Broken(f"it does not compile: {_why(error)}") from error
    if far(value.item(), there.item()):
        raise differs(subject, inputs, "eager and compiled it is", value.item(), there.item())
    for i, grad in zip(leaves, found, strict=True):
        if not torch.allclose(grad, grads[i], rtol=1e-9, atol=1e-9):
            name = subject.arguments[i].name
            raise Broken(
                f"compiled, the gradient of {name} is another\n{show(subject, inputs, eager=grads[i], now=grad)}"
            )


def _vmapped(subject: Subject, run: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Compare the loss of two stacked inputs, and its gradient, with one after the other."""
    one = _one(subject)
    other = _other(subject, one)
    axes = tuple(0 if isinstance(x, Tensor) and x.ndim else None for x in one)
    stacked = tuple(torch.stack([a, b]) if axis == 0 else a for a, b, axis in zip(one, other, axes, strict=True))
    wanted = [subject.gradients(x) for x in (one, other)]
    floats = tuple(subject.floats())
    single = torch.func.grad_and_value(subject.fn, floats) if floats else None
    try:
        if single is None:
            values, grads = run(torch.vmap(subject.fn, axes))(*stacked), ()
        else:
            grads, values = run(torch.vmap(single, axes))(*stacked)
    except Exception as error:
        raise Broken(f"it raised {type(error).__name__}: {_why(error)}\n{show(subject, one)}") from error
    for k, (inputs, (value, slopes)) in enumerate(zip((one, other), wanted, strict=True)):
        if far(value.item(), values[k].item()):
            raise differs(subject, inputs, "alone and beside another it is", value.item(), values[k].item())
        for i, grad in zip(floats, grads, strict=True):
            part = grad[k] if axes[i] == 0 else grad
            if axes[i] == 0 and not torch.allclose(part, slopes[i], rtol=1e-9, atol=1e-9):
                name = subject.arguments[i].name
                more = {"alone": slopes[i], "beside_another": part}
                raise Broken(f"beside another, the gradient of {name} is another\n{show(subject, inputs, **more)}")


@law(lambda s: not s.tags.stochastic)
def vmap(subject: Subject) -> None:
    """Many losses may be taken at once: vmap and grad agree with one after the other.

    Broken by: .item(), in-place writes, a Python branch on a value, a custom autograd function without
    generate_vmap_rule.
    """
    _vmapped(subject, lambda fn: fn)


@law(lambda s: not s.tags.stochastic)
def compiled_vmap(subject: Subject) -> None:
    """Many at once compile to one graph as well.

    Broken by: what breaks one-graph or vmap.
    """
    with compiling():
        _vmapped(subject, lambda fn: torch.compile(fn, backend="aot_eager", fullgraph=True, dynamic=False))


LAWS = (one_graph, vmap, compiled_vmap)
