"""What inductor is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.steps import small_step
from ttransfer.run._inductor import has_halves, inductor_options, narrow_vectors

CPU = torch.device("cpu")


def test_options_by_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inductor_options(torch.device("cuda"), True) == {}
    assert inductor_options(CPU, False) == {"layout_optimization": False}
    for capability, more in (("AVX512", {"cpp.simdlen": 256}), ("AVX2", {}), ("DEFAULT", {})):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert narrow_vectors() == more
        assert inductor_options(CPU, True) == {"layout_optimization": False, **more}


def test_halves_are_seen() -> None:
    assert has_halves([torch.ones(1), torch.ones(1, dtype=torch.float16)])
    assert not has_halves([torch.ones(1), torch.ones(1, dtype=torch.int64), None, 1.0])


@pytest.mark.parametrize(("precision", "halves"), [(None, False), ("bfloat16", True)])
def test_a_step_says_whether_it_has_halves(
    monkeypatch: pytest.MonkeyPatch, precision: str | None, halves: bool
) -> None:
    told: list[bool] = []

    def options(device: torch.device, low: bool) -> dict[str, Any]:
        told.append(low)
        raise KeyboardInterrupt  # before anything is compiled

    monkeypatch.setattr("ttransfer.run._compile.inductor_options", options)
    step = small_step(
        {"sure": tt.term(tt.losses.entropy, "student(source)")}, {"student": tt.functional(mlp(1).float())}
    )
    batch = {"source": {"x": vectors(0)["source"]["x"].float()}}
    with pytest.raises(KeyboardInterrupt):
        tt.compile(step, precision=precision)(step.init(batch), batch)
    assert told == [halves]
