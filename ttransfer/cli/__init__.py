"""The `ttransfer` command."""

from __future__ import annotations

from ttransfer.cli._app import main

__all__ = ["main"]
