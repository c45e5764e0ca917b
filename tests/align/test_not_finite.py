"""What is not finite is never well aligned: NaN or inf in, no finite value out, and nothing raised."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import ttransfer as tt

A, L = tt.align, tt.losses
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(8, 4, generator=G), torch.randn(6, 4, generator=G)
LABELS = torch.arange(8) % 4

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "mmd": lambda x: A.mmd(x, Y),
    "mmd_unbiased": lambda x: A.mmd_unbiased(x, Y),
    "mmd, median": lambda x: A.mmd(x, Y, bandwidth=A.median_bandwidth),
    "mmd_linear": lambda x: A.mmd_linear(x, X.flip(0)),
    "jmmd": lambda x: A.jmmd([x, x], [Y, Y]),
    "lmmd": lambda x: A.lmmd(x, Y, LABELS, Y),
    "coral": lambda x: A.coral(x, Y),
    "energy_distance": lambda x: A.energy_distance(x, Y),
    "sinkhorn_divergence": lambda x: A.sinkhorn_divergence(x, Y),
    "afn": A.afn,
    "afn_hard": A.afn_hard,
    "bnm": A.bnm,
    "bsp": A.bsp,
    "rsd": lambda x: A.rsd(x[:3], Y[:3]),
    "mcc": A.mcc,
    "infomax": A.infomax,
    "diversity": A.diversity,
    "mcd": lambda x: A.mcd(x, x.flip(0)),
    "bss": L.bss,
    "rkd": lambda x: L.rkd(x, X.flip(0)),
    "skd_direction": lambda x: L.skd_direction(x, X.flip(0)),
    "sp": lambda x: L.sp(x, X.flip(0)),
    "cc": lambda x: L.cc(x, X.flip(0)),
    "pkt": lambda x: L.pkt(x, X.flip(0)),
    "kd": lambda x: L.kd(x, X.flip(0)),
    "dist": lambda x: L.dist(x, X.flip(0)),
}


def broken(value: float, everywhere: bool = False) -> Tensor:
    there = torch.ones_like(X, dtype=torch.bool) if everywhere else torch.arange(X.numel()).reshape(X.shape) == 9
    return torch.where(there, value, X)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", CASES)
def test_no_finite_value(name: str, value: float, everywhere: bool) -> None:
    assert CASES[name](X).isfinite()
    assert not CASES[name](broken(value, everywhere)).isfinite()


@pytest.mark.parametrize("name", ["bnm", "bsp", "rsd", "bss", "skd_direction", "energy_distance"])
def test_one_member_does_not_end_the_others(name: str) -> None:
    both: Any = torch.stack([X, broken(math.nan), broken(math.inf)])
    alone = CASES[name](X)
    values = vmap(CASES[name])(both)
    torch.testing.assert_close(values[0], alone)
    assert values.isfinite().tolist() == [True, False, False]
    slopes = vmap(grad(CASES[name]))(both)
    torch.testing.assert_close(slopes[0], grad(CASES[name])(X), rtol=1e-4, atol=1e-5)
