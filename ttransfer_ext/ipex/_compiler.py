"""IPEX's backend for `torch.compile`, imported without noise and set for steps."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ttransfer.run._inductor import has_halves, inductor_options
from ttransfer_ext.ipex._gradients import restore_gradients
from ttransfer_ext.ipex._versions import check_versions

__all__ = ["compiler"]


def compiler() -> Callable[..., Any]:
    """Import IPEX and return its backend: the entry point that ``tt.compile(step, backend="ipex")`` asks.

    IPEX replaces some of torch's CPU kernels in the whole process when it is imported, those of eager code too;
    gradients that are lost by that are restored.

    Returns:
        What ``torch.compile(backend=...)`` takes.

    Raises:
        TransferError: if IPEX is absent, or not of the version that goes with torch.
    """
    check_versions()
    with _quiet():
        importlib.import_module("intel_extension_for_pytorch")
    restore_gradients()
    return ipex


def ipex(graph: torch.fx.GraphModule, inputs: list[Tensor], **options: Any) -> Callable[..., Any]:
    """Compile a graph with IPEX."""
    from torch._dynamo import lookup_backend
    from torch._inductor import config

    caching: Any = torch.compiler.config  # its `patch` is made at run time
    # IPEX does not pass options on to inductor, in which it ends; they are set around it. Its graphs are kept apart
    # in inductor's cache, whose key does not tell who generates the code nor whether gradients were restored.
    values = [node.meta.get("example_value") for node in graph.graph.nodes]
    settings = inductor_options(torch.device("cpu"), has_halves(values))
    with config.patch(settings), caching.patch(cache_key_tag="ttransfer-ipex"):
        return lookup_backend("ipex")(graph, inputs, **options)


# What the import says although nothing is wrong. IPEX means to override torch's kernel:
OVERRIDE = re.compile(
    r"^\[W.*OperatorEntry\.cpp.*\n  Overriding a previously registered kernel .*\n(?: {2,}\S.*\n)*", re.MULTILINE
)
# and its tools for GPUs make torch look for CUDA, which a machine without a GPU may have.
NO_CUDA = "No CUDA runtime is found"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the known noise of an import from stderr, let all else through, and leave logging as it was."""
    builder, root, kind = logging.getLogger("torch.utils.cpp_extension"), logging.getLogger(), logging.getLoggerClass()
    handlers = list(root.handlers)

    def unknown(record: logging.LogRecord) -> bool:
        return NO_CUDA not in record.getMessage()

    builder.addFilter(unknown)
    try:
        with _stderr_through(lambda said: OVERRIDE.sub("", said)):
            yield
    finally:
        builder.removeFilter(unknown)
        # IPEX gives the root logger a handler, and all later loggers a class, of its own.
        root.handlers[:] = handlers
        logging.setLoggerClass(kind)


@contextmanager
def _stderr_through(change: Callable[[str], str]) -> Iterator[None]:
    """Hold back what is written to the file behind stderr, by C++ too, and write it changed at the end."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            sys.stderr.write(change(held.read()))
