"""The laws that --thorough adds: what the real compiler makes of a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing._golden import golden_cases
from ttransfer.testing._law import Broken, Trial, law
from ttransfer.testing._subject import Inputs, Subject, show
from ttransfer.testing.laws._compiling import compiling

__all__ = ["LAWS", "want_compiler"]


def want_compiler() -> None:
    """Refuse, before anything runs, where inductor cannot work.

    Raises:
        TransferError: if there is no C++ compiler.
    """
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
    except ImportError:  # it is torch's own business; compiling will tell
        return
    try:
        get_cpp_compiler()
    except Exception as error:
        raise TransferError("--thorough compiles with inductor, which finds no C++ compiler; install one") from error


def _compiles(subject: Subject) -> bool:
    return not subject.tags.stochastic


@law(_compiles)
def inductor(subject: Subject) -> None:
    """Compiled by inductor, the loss has the same value and gradient.

    Broken by: what breaks one-graph; where that is obeyed, a miscompilation, which is torch's to mend.
    """
    inputs = _two(subject)[0]
    value, grads = subject.gradients(inputs)
    leaves = {i: inputs[i].clone().requires_grad_() for i in grads}

    def plain(*arguments: Any) -> Tensor:  # compile takes no partial, and a module by another way
        return subject.fn(*arguments)

    with _compiled(subject, inputs, plain) as fast:
        there = fast(*(leaves.get(i, x) for i, x in enumerate(inputs)))
        slopes = list(leaves.values())
        if there.requires_grad:
            slopes = torch.autograd.grad(there, slopes, allow_unused=True, materialize_grads=True)
        else:
            slopes = [torch.zeros_like(x) for x in slopes]
    _same(subject, inputs, [value, *grads.values()], [there.detach(), *slopes])


@law(_compiles)
def inductor_vmap(subject: Subject) -> None:
    """Many at once, compiled by inductor, have the values and gradients of one after the other.

    Broken by: what breaks compiled-vmap; where that is obeyed, a miscompilation, which is torch's to mend.
    """
    both = _two(subject)
    axes = tuple(0 if isinstance(x, Tensor) and x.ndim else None for x in both[0])
    stacked = tuple(
        torch.stack([one, other]) if axis == 0 else one for one, other, axis in zip(*both, axes, strict=True)
    )
    floats = tuple(i for i in subject.floats() if axes[i] == 0)
    run = torch.func.grad_and_value(subject.fn, floats) if floats else lambda *x: ((), subject.fn(*x))
    with _compiled(subject, both[0], torch.vmap(run, axes)) as fast:
        slopes, values = fast(*stacked)
    for k, inputs in enumerate(both):
        value, grads = subject.gradients(inputs)
        _same(subject, inputs, [value, *(grads[i] for i in floats)], [values[k], *(slope[k] for slope in slopes)])


def _two(subject: Subject) -> tuple[Inputs, Inputs]:
    """Two inputs of one shape."""
    first, *others = golden_cases(Trial(subject.name, subject, ())).values()
    alike = (x for x in others if [getattr(a, "shape", a) for a in x] == [getattr(a, "shape", a) for a in first])
    return first, next(alike, first)


@contextmanager
def _compiled(subject: Subject, inputs: Inputs, fn: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A compiled function; what goes wrong with it is the law's failure."""
    try:
        with compiling():
            yield torch.compile(fn, fullgraph=True, dynamic=False)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = " ".join(lines[:3])[:400]
        raise Broken(f"it raised {type(error).__name__}: {why}\n{show(subject, inputs)}") from error


def _same(subject: Subject, inputs: Inputs, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    for what, eager, fast in zip(("value", *["gradient"] * len(wanted)), wanted, found, strict=False):
        if not torch.allclose(eager, fast, rtol=1e-9, atol=1e-9, equal_nan=True):
            raise Broken(f"its {what} is another\n{show(subject, inputs, eager=eager, compiled=fast)}")


LAWS = (inductor, inductor_vmap)
