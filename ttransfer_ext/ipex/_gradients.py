"""Gradients that IPEX takes away when it is imported, and giving them back."""

from __future__ import annotations

import functools

import torch

__all__ = ["RESTORED", "restore_gradients"]

# What torch composes of differentiable parts and IPEX replaces by one CPU kernel without a derivative. Loss.backward()
# still finds one, inside the kernel; torch.func.grad does not, and returns zeros for all that lies before: eager and
# compiled, whatever the compiler. tests/ext/ipex looks for others in the installed version.
RESTORED = ("layer_norm", "group_norm")


@functools.cache
def restore_gradients() -> torch.library.Library:
    """Let layer and group normalisation have gradients under `torch.func` again, once IPEX is imported.

    Where a gradient is asked for, torch's own composition is run; elsewhere IPEX's kernel stays.
    ``tt.compile(step, backend="ipex")`` calls this. Call it yourself if you import IPEX without that.

    Returns:
        The registration, which lasts as long as the process.
    """
    library = torch.library.Library("aten", "IMPL")
    for name in RESTORED:
        library.impl(name, getattr(torch.ops.aten, name).default.decompose, "AutogradCPU")
    return library
