"""The backend "ccl" of torch.distributed: collectives through Intel oneCCL, on CPUs.

`tt.dist.init(backend="ccl")` finds `register` by the package's entry point; nothing else need be called. What is
supported and how to bind its threads is in docs/oneccl.md.
"""

from __future__ import annotations

from ttransfer_ext.oneccl._register import register

__all__ = ["register"]
