"""Compiling in a law: quietly, from a clean start, and counting graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["compiling", "graphs"]


@contextmanager
def compiling() -> Iterator[None]:
    """A compiler that remembers nothing and says nothing."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch._dynamo.reset()


def graphs() -> int:
    """How many graphs were compiled since `compiling` began."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
