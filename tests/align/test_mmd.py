"""The three estimates of MMD against slow loops, and the laws that tie them together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.utils._pytree import tree_map

from ttransfer._claims import claims_of
from ttransfer._errors import TransferError
from ttransfer.align import mmd, mmd_linear, mmd_unbiased

SIZES = [(2, 2, 1), (6, 6, 3), (5, 9, 4), (7, 3, 12)]
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
KEYWORDS: list[dict[str, Any]] = [{}, {"bandwidth": 1.5}, {"scales": (1.0,)}, {"bandwidth": 0.5, "scales": (1.0, 3.0)}]
Rows = list[list[float]]


def pair(n: int, m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return source, torch.randn(m, d, dtype=torch.float64, generator=generator) + 0.5


def squared(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def mean_squared(rows: Rows) -> float:
    n = len(rows)
    return sum(squared(rows[i], rows[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


class Slow:
    """The papers' sums, pair by pair."""

    def __init__(self, source: Tensor, target: Tensor, bandwidth: float | None, scales: Sequence[float]) -> None:
        self.s: Rows = source.tolist()
        self.t: Rows = target.tolist()
        variance = mean_squared(self.s + self.t) if bandwidth is None else bandwidth**2
        self.widths = [c * variance for c in scales]

    def k(self, x: list[float], y: list[float]) -> float:
        return sum(math.exp(-squared(x, y) / (2 * w)) for w in self.widths)

    def mmd(self) -> float:
        def mean(xs: Rows, ys: Rows) -> float:
            return float(np.mean([self.k(x, y) for x in xs for y in ys]))

        return mean(self.s, self.s) + mean(self.t, self.t) - 2 * mean(self.s, self.t)

    def mmd_unbiased(self) -> float:
        def apart(xs: Rows) -> float:
            n = len(xs)
            return sum(self.k(xs[i], xs[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

        cross = [self.k(x, y) for x in self.s for y in self.t]
        return apart(self.s) + apart(self.t) - 2 * sum(cross) / len(cross)

    def mmd_linear(self) -> float:
        p = min(len(self.s), len(self.t)) // 2
        total = 0.0
        for i in range(p):
            s1, s2, t1, t2 = self.s[2 * i], self.s[2 * i + 1], self.t[2 * i], self.t[2 * i + 1]
            total += self.k(s1, s2) + self.k(t1, t2) - self.k(s1, t2) - self.k(s2, t1)
        return total / p


ESTIMATES = [mmd, mmd_unbiased, mmd_linear]
estimates = pytest.mark.parametrize("estimate", ESTIMATES)


@estimates
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keywords", KEYWORDS)
def test_value(estimate: Callable[..., Tensor], size: tuple[int, int, int], keywords: dict[str, Any]) -> None:
    s, t = pair(*size)
    slow = Slow(s, t, **{"bandwidth": None, "scales": SCALES, **keywords})
    assert estimate(s, t, **keywords).item() == pytest.approx(getattr(slow, estimate.__name__)(), rel=1e-9, abs=1e-12)


Fn = Callable[..., Any]


def compiled(fn: Fn) -> Fn:
    torch.compiler.reset()
    return torch.compile(fn, backend="aot_eager", fullgraph=True)


def mapped(fn: Fn) -> Fn:
    return lambda *xs: tree_map(lambda y: y[0], vmap(fn)(*(torch.stack([x, 2 * x]) for x in xs)))


MODES: dict[str, Callable[[Fn], Fn]] = {
    "compiled": compiled,
    "vmapped": mapped,
    "compiled vmapped": lambda fn: compiled(mapped(fn)),
}


@estimates
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("given", [False, True], ids=["width of the data", "width given"])
def test_modes_agree(estimate: Callable[..., Tensor], mode: str, given: bool) -> None:
    inputs = (*pair(5, 9, 4), torch.tensor(1.5, dtype=torch.float64))

    def loss(s: Tensor, t: Tensor, bandwidth: Tensor) -> Tensor:
        return estimate(s, t, bandwidth=bandwidth) if given else estimate(s, t)

    both = grad_and_value(loss, argnums=(0, 1, 2))
    torch.testing.assert_close(MODES[mode](both)(*inputs), both(*inputs), rtol=1e-10, atol=1e-13)


@estimates
@pytest.mark.parametrize("size", SIZES)
def test_gradient(estimate: Callable[..., Tensor], size: tuple[int, int, int]) -> None:
    inputs = (*pair(*size), torch.tensor(1.5, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda s, t, bandwidth: estimate(s, t, bandwidth=bandwidth),
        tuple(x.requires_grad_() for x in inputs),
        atol=1e-7,
    )


@estimates
def test_width_of_the_data_has_no_gradient(estimate: Callable[..., Tensor]) -> None:
    s, t = pair(5, 9, 4)
    width = math.sqrt(mean_squared([*s.tolist(), *t.tolist()]))
    for argnum in (0, 1):
        free = grad(estimate, argnum)(s, t)
        held = grad(lambda s, t: estimate(s, t, bandwidth=width), argnum)(s, t)
        assert torch.allclose(free, held, rtol=1e-10)
        assert free.count_nonzero() > 0


@estimates
def test_widths_map(estimate: Callable[..., Tensor]) -> None:
    s, t = pair(5, 9, 4)
    widths = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    got = vmap(lambda b: estimate(s, t, bandwidth=b))(widths)
    slow = [getattr(Slow(s, t, b, SCALES), estimate.__name__)() for b in widths.tolist()]
    assert got.tolist() == pytest.approx(slow, rel=1e-9)
    assert vmap(lambda b: estimate(s.float(), t.float(), bandwidth=b))(widths).dtype == torch.float32


@estimates
def test_laws(estimate: Callable[..., Tensor]) -> None:
    s, t = pair(5, 9, 4)
    value = estimate(s, t)
    assert torch.allclose(estimate(t, s), value, rtol=1e-10)
    assert torch.allclose(estimate(s + 100, t + 100), value, rtol=1e-9)
    assert torch.allclose(estimate(30 * s, 30 * t), value, rtol=1e-10)
    assert torch.allclose(estimate(30 * s, 30 * t, bandwidth=30.0), estimate(s, t, bandwidth=1.0), rtol=1e-10)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    assert torch.allclose(estimate(s @ rotation, t @ rotation), value, rtol=1e-10)
    assert claims_of(estimate).coupled


@pytest.mark.parametrize("estimate", [mmd, mmd_unbiased])
def test_rows_permute(estimate: Callable[..., Tensor]) -> None:
    s, t = pair(5, 9, 4)
    assert torch.allclose(estimate(s.flip(0), t[torch.randperm(9)]), estimate(s, t), rtol=1e-10)


def test_far_domains_reach_the_bound() -> None:
    same, far = torch.zeros(3, 2), torch.full((4, 2), 1e4)
    assert mmd(same, far, bandwidth=1.0).item() == pytest.approx(2 * len(SCALES))


def test_one_row_each() -> None:
    s, t = torch.tensor([[0.0]]), torch.tensor([[1.0]])
    assert mmd(s, t, bandwidth=1.0, scales=(1.0,)).item() == pytest.approx(2 - 2 * math.exp(-0.5))


def test_biased_is_zero_and_flat_at_equality() -> None:
    s, _ = pair(6, 6, 3)
    assert mmd(s, s.flip(0)).item() == pytest.approx(0, abs=1e-14)
    assert grad(mmd)(s, s).abs().max() < 1e-15


def test_biased_is_never_negative() -> None:
    lifted = 0
    for seed in range(40):
        s = pair(16, 16, 8, seed)[0].float()
        t = s.flip(0) + 1e-6
        assert mmd(s, t).item() >= 0
        if mmd(s, t).item() == 0:  # rounding went below: the gradient is there all the same
            lifted += 1
            assert grad(mmd)(s, t).count_nonzero() > 0
    assert lifted > 0


def test_unbiased_is_unbiased() -> None:
    """Over all subsamples of a population, the mean of a U-statistic is the population's own."""
    s, t = pair(5, 4, 2)
    subsets = [
        mmd_unbiased(s[list(a)], t[list(b)], bandwidth=1.0)
        for a in itertools.combinations(range(5), 3)
        for b in itertools.combinations(range(4), 2)
    ]
    assert torch.allclose(torch.stack(subsets).mean(), mmd_unbiased(s, t, bandwidth=1.0), rtol=1e-12)
    assert min(subsets).item() < 0


def test_linear_is_unbiased() -> None:
    """Over all orders of the rows, its mean is the U-statistic."""
    s, t = pair(4, 4, 2)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    values = vmap(lambda a: vmap(lambda b: mmd_linear(s[a], t[b]))(orders))(orders)
    assert torch.allclose(values.mean(), mmd_unbiased(s, t), rtol=1e-12)


def test_linear_cuts_the_longer_domain() -> None:
    s, t = pair(5, 9, 4)
    assert torch.equal(mmd_linear(s, t, bandwidth=1.0), mmd_linear(s[:4], t[:4], bandwidth=1.0))
    assert not torch.allclose(mmd_linear(s, t), mmd_linear(s[:4], t[:4]))  # the width sees them all


COLLAPSED = {
    "equal rows": (torch.full((5, 16), 0.1), torch.full((7, 16), 0.1)),
    "zeros": (torch.zeros(5, 16), torch.zeros(7, 16)),
    "two points": (torch.full((5, 16), 0.1), torch.full((7, 16), 0.3)),
    "duplicates": (torch.eye(16).repeat(2, 1), torch.eye(16)),
    "large": (torch.full((5, 16), 1e3), torch.full((7, 16), -1e3)),
    "one point and a cloud": (torch.full((5, 16), 3.0), torch.eye(16)),
}


@estimates
@pytest.mark.parametrize("case", COLLAPSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bandwidth", [None, 1.0])
def test_collapsed_rows_are_finite(
    estimate: Callable[..., Tensor], case: str, dtype: torch.dtype, bandwidth: float | None
) -> None:
    s, t = (x.to(dtype) for x in COLLAPSED[case])
    value = estimate(s, t, bandwidth=bandwidth)
    assert value.dtype == dtype
    slow = Slow(s.double(), t.double(), bandwidth or (1.0 if case in ("equal rows", "zeros") else None), SCALES)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert value.item() == pytest.approx(getattr(slow, estimate.__name__)(), rel=tolerance, abs=tolerance)
    for argnum in (0, 1):
        slope = grad(lambda s, t: estimate(s, t, bandwidth=bandwidth), argnum)(s, t)
        assert slope.isfinite().all()
        assert slope.abs().max() < 10


@pytest.mark.parametrize("estimate", [mmd, mmd_unbiased])
def test_kernel_stays_below_one_when_the_width_is_below_the_rounding(estimate: Callable[..., Tensor]) -> None:
    # A squared distance that rounds below 0 would give exp(+large).
    s = pair(12, 10, 64)[0].float()
    value = estimate(s, s.flip(0), bandwidth=1e-5, scales=(1.0,))
    assert value.abs() <= 2 / 12
    assert grad(lambda x: estimate(x, s, bandwidth=1e-5, scales=(1.0,)))(s).isfinite().all()


@estimates
def test_float32_survives_a_common_offset(estimate: Callable[..., Tensor]) -> None:
    s, t = pair(12, 10, 8)
    wide = estimate(s, t)
    # At 1000 the spacing of float32 is 6e-5: what is left is the rounding of the inputs.
    assert torch.allclose(estimate(s.float() + 1000, t.float() + 1000).double(), wide, atol=1e-3, rtol=0)


@estimates
def test_no_scales_are_refused(estimate: Callable[..., Tensor]) -> None:
    with pytest.raises(TransferError, match=rf"{estimate.__name__}: wanted at least one scale, got \(\)"):
        estimate(torch.zeros(4, 3), torch.zeros(4, 3), scales=())
