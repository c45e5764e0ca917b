"""Without MONAI there is nothing to test here."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("monai") is not None else ["test_losses.py"]
