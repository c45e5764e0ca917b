"""What every test starts from: one thread, seeded generators, float32 as the default dtype."""

from __future__ import annotations

import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seed before a module is imported: what it draws for its examples decides which laws are asked of them."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Seed the global generators before a test, and fail the test if it leaves torch's defaults changed."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- other packages draw from it
    torch.manual_seed(0)
    yield
    left = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_num_threads(1)
    assert left == (torch.float32, True, 1), "the test left torch's defaults changed"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the mutation score, if mutants were tried."""
    reports = [r for name in ("passed", "failed") for r in terminalreporter.stats.get(name, ())]
    found = [dict(r.user_properties)["mutant"] for r in reports if "mutant" in dict(r.user_properties)]
    if not found:
        return
    total, missed, by_word = len(found), found.count("missed"), found.count("by word")
    right = sum("test_a_right_part_is_not_accused" in r.nodeid for r in terminalreporter.stats.get("failed", ()))
    terminalreporter.write_line(
        f"mutation score: {total - missed} of {total} wrong parts found ({(total - missed) / total:.1%}); "
        f"{total - missed - by_word} ({(total - missed - by_word) / total:.1%}) without their references and known "
        f"values; {right} right parts accused"
    )
