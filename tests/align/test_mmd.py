"""The three estimates of MMD against slow loops, other packages, and the laws that tie them together."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from tests.support.peers import same, theirs
from ttransfer._errors import TransferError
from ttransfer.align._mmd import mmd, mmd_linear, mmd_unbiased
from ttransfer.testing import loss_trial, parametrize_with_checks

SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
HELD = {"gradcheck": "the width of the batch is held constant"}


def mean_square(rows: Tensor) -> Tensor:
    pairs = [((a - b) ** 2).sum() for a, b in itertools.combinations(rows.detach(), 2)]
    mean = torch.stack(pairs).mean()
    return mean if mean > 0 else mean + 1


class Slow:
    """The papers' sums, pair by pair."""

    def __init__(
        self, source: Tensor, target: Tensor, bandwidth: float | None = None, scales: Sequence[float] = SCALES
    ) -> None:
        self.s, self.t = source, target
        variance = mean_square(torch.cat([source, target])) if bandwidth is None else bandwidth**2
        self.widths = [c * variance for c in scales]

    def k(self, x: Tensor, y: Tensor) -> Tensor:
        square = ((x - y) ** 2).sum()
        return torch.stack([(-square / (2 * w)).exp() for w in self.widths]).sum()

    def mean(self, xs: Tensor, ys: Tensor, apart: bool = False) -> Tensor:
        pairs = [(i, j) for i in range(len(xs)) for j in range(len(ys)) if not (apart and i == j)]
        return torch.stack([self.k(xs[i], ys[j]) for i, j in pairs]).mean()

    def mmd(self) -> Tensor:
        return self.mean(self.s, self.s) + self.mean(self.t, self.t) - 2 * self.mean(self.s, self.t)

    def mmd_unbiased(self) -> Tensor:
        within = self.mean(self.s, self.s, apart=True) + self.mean(self.t, self.t, apart=True)
        return within - 2 * self.mean(self.s, self.t)

    def mmd_linear(self) -> Tensor:
        p = min(len(self.s), len(self.t)) // 2
        total = torch.zeros((), dtype=torch.float64)
        for i in range(p):
            s1, s2, t1, t2 = self.s[2 * i], self.s[2 * i + 1], self.t[2 * i], self.t[2 * i + 1]
            total = total + self.k(s1, s2) + self.k(t1, t2) - self.k(s1, t2) - self.k(s2, t1)
        return total / p


def slow(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda source, target: getattr(Slow(source, target), name)()


def pair(n: int, m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return source, torch.randn(m, d, dtype=torch.float64, generator=generator) + 0.5


def far_apart(fn: Callable[..., Tensor]) -> tuple[Tensor, float]:
    return fn(torch.zeros(3, 2), torch.full((4, 2), 1e4), bandwidth=1.0), 2.0 * len(SCALES)


TRIALS = (
    loss_trial(
        mmd,
        reference=slow("mmd"),
        limits={
            "one row each": lambda fn: (
                fn(torch.zeros(1, 1), torch.ones(1, 1), bandwidth=1.0, scales=(1.0,)),
                2 - 2 * math.exp(-0.5),
            ),
            "far domains": far_apart,
        },
        expected_failed_checks=HELD,
        examples=4,
    ),
    loss_trial(mmd_unbiased, reference=slow("mmd_unbiased"), expected_failed_checks=HELD, examples=4),
    loss_trial(mmd_linear, reference=slow("mmd_linear"), expected_failed_checks=HELD, examples=4),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


ESTIMATES = [mmd, mmd_unbiased, mmd_linear]
estimates = pytest.mark.parametrize("estimate", ESTIMATES)
KEYWORDS: list[dict[str, Any]] = [{"bandwidth": 1.5}, {"scales": (1.0,)}, {"bandwidth": 0.5, "scales": (1.0, 3.0)}]


@estimates
@pytest.mark.parametrize("keywords", KEYWORDS)
def test_numbers(estimate: Callable[..., Tensor], keywords: dict[str, Any]) -> None:
    def slowly(s: Tensor, t: Tensor) -> Tensor:
        return getattr(Slow(s, t, **keywords), estimate.__name__)()

    same(functools.partial(estimate, **keywords), slowly, *pair(5, 9, 4))


@estimates
def test_widths_map_and_have_a_gradient(estimate: Callable[..., Tensor]) -> None:
    s, t = pair(5, 9, 4)
    widths = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    got = vmap(lambda b: estimate(s, t, bandwidth=b))(widths)
    wanted = [getattr(Slow(s, t, b), estimate.__name__)().item() for b in widths.tolist()]
    assert got.tolist() == pytest.approx(wanted, rel=1e-9)
    assert vmap(lambda b: estimate(s.float(), t.float(), bandwidth=b))(widths).dtype == torch.float32
    inputs = [x.requires_grad_() for x in (s, t, widths[1].clone())]
    assert torch.autograd.gradcheck(lambda s, t, b: estimate(s, t, bandwidth=b), inputs, atol=1e-7)
    assert torch.autograd.gradgradcheck(lambda s, b: estimate(s, t, bandwidth=b), [inputs[0], inputs[2]], atol=1e-6)


@pytest.mark.parametrize("estimate", [mmd, mmd_unbiased])
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("bandwidth", [None, 1.5])
def test_chunks_change_nothing(estimate: Callable[..., Tensor], chunk: int, bandwidth: float | None) -> None:
    s, t = pair(5, 9, 4)
    by_chunks = functools.partial(estimate, bandwidth=bandwidth, chunk=chunk)
    whole = functools.partial(estimate, bandwidth=bandwidth)
    same(by_chunks, whole, s, t)
    same(lambda t, s: by_chunks(s, t), lambda t, s: whole(s, t), t, s)


def test_geomloss_has_half() -> None:
    other = theirs("geomloss", "SamplesLoss", "gaussian", blur=1.5)
    same(functools.partial(mmd, bandwidth=1.5, scales=(1.0,)), lambda s, t: 2 * other(s, t), *pair(5, 9, 4))


@pytest.mark.parametrize(("kind", "estimate"), [("quadratic", mmd_unbiased), ("linear", mmd_linear)])
def test_pytorch_adapt_means_over_kernels(kind: str, estimate: Callable[..., Tensor]) -> None:
    s, t = pair(6, 9 if kind == "quadratic" else 6, 4)
    square = torch.cdist(s, s).square().median().item()  # an example's distance to itself among them
    scales = (0.5, 1.0, 2.0)
    factors = torch.tensor([1 / c for c in scales], dtype=torch.float64)
    other = theirs("pytorch_adapt.layers", "MMDLoss", kernel_scales=factors, mmd_type=kind)
    ours = functools.partial(estimate, bandwidth=math.sqrt(square / 2), scales=scales)
    same(lambda s, t: ours(s, t) / len(scales), other, s, t)


def test_skada_has_another_kernel() -> None:
    s, t = (x.float() for x in pair(5, 9, 4))
    theirs_now = theirs("skada.deep.losses", "dan_loss", s, t, sigmas=[2.0])
    laplace = Slow(s, t)
    laplace.k = lambda x, y: (-(x - y).norm() / 2.0).exp()
    assert theirs_now.item() == pytest.approx(laplace.mmd().item(), rel=1e-5)
    ours = mmd(s, t, bandwidth=1.0, scales=(1.0,))  # exp(-d² / 2)
    assert abs(theirs_now.item() / ours.item() - 1) > 0.2


def test_never_negative() -> None:
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
