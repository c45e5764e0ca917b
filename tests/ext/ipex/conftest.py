"""IPEX is here or it is not: each has tests of its own, chosen when they are collected."""

from __future__ import annotations

import importlib.util

HERE = importlib.util.find_spec("intel_extension_for_pytorch") is not None

collect_ignore = ["test_absent.py"] if HERE else ["test_compiler.py", "test_gradients.py", "test_timm.py"]
