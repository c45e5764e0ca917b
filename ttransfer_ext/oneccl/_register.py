"""Making "ccl" a name that torch.distributed knows."""

from __future__ import annotations

import importlib
import importlib.util

import torch
import torch.distributed as dist

from ttransfer._errors import TransferError
from ttransfer_ext.oneccl._build import load
from ttransfer_ext.oneccl._environment import prepare
from ttransfer_ext.oneccl._runtime import installed

# Intel's own bindings, retired: they register the name when they are imported.
RETIRED = "oneccl_bindings_for_pytorch"


def register() -> None:
    """Make `torch.distributed.init_process_group("ccl")` work.

    Intel's bindings are imported where they are installed. Otherwise this library's backend is loaded, which the first
    call with a new torch or oneCCL compiles (half a minute; the ranks of one machine share it), and the environment
    variables that oneCCL reads are set where they are not.

    Raises:
        TransferError: if torch was built without its distributed package; if oneCCL's packages are missing or of a
            version that does not link; if there is no C++ compiler or it fails.

    Example:
        >>> import torch.distributed as dist
        >>> from ttransfer_ext.oneccl import register
        >>> register()
        >>> "ccl" in dist.Backend.backend_list
        True
    """
    if not dist.is_available():
        raise TransferError(f"backend 'ccl': torch {torch.__version__} has no torch.distributed; install another build")
    if "ccl" in dist.Backend.backend_list:
        return
    if importlib.util.find_spec(RETIRED):
        importlib.import_module(RETIRED)
        return
    runtime = installed()
    prepare(runtime)
    dist.Backend.register_backend("ccl", load(runtime).create, devices=["cpu"])
