"""Without IPEX: what asking for it says. Collected only there."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

import ttransfer as tt
from tests.support.nets import mlp


def test_asking_for_it_says_which_versions_go_together_and_what_to_use() -> None:
    step = tt.step(
        {"net": tt.functional(mlp(1))},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
    )
    with pytest.raises(tt.TransferError) as found:
        tt.compile(step, backend="ipex")
    said = str(found.value)
    assert "intel-extension-for-pytorch 2.8.0, torch 2.8.0 and torchvision 0.23.0" in said
    assert f"found no intel-extension-for-pytorch, torch {torch.__version__.split('+')[0]}" in said
    assert "backend='inductor', the default, into which Intel has moved that work" in said
    assert "intel_extension_for_pytorch" not in sys.modules
