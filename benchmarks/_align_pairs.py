"""Alignment terms of ours beside those of other packages and beside what one writes by hand, at realistic sizes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from _loss_pairs import Loss, Pair, labels, made
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt

ADAPT, SKADA, GEOMLOSS, POT, PLAIN = "pytorch-adapt", "skada", "geomloss", "POT", "by hand"
FEATURES, LOGITS, WIDE = ((128, 256),) * 2, ((128, 65),), ((256, 512),) * 2
align, partial = tt.align, functools.partial
OF_10 = labels(10, 128)  # made before anything is compiled


def layer(name: str, *args: object, **kwargs: object) -> Loss:
    return made("pytorch_adapt.layers", name, *args, **kwargs)


def skada(name: str, **kwargs: object) -> Loss:
    return lambda *xs: made("skada.deep.losses", name, *xs, **kwargs)


SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def kernel_by_hand(x: Tensor, y: Tensor, variance: Tensor) -> Tensor:
    squared = (x[:, None] - y[None]).square().sum(2)
    return torch.stack([(-squared / (2 * c * variance)).exp() for c in SCALES]).sum(0)


def variance_by_hand(x: Tensor) -> Tensor:
    n = len(x)
    return ((x[:, None] - x[None]).square().sum() / (n * (n - 1))).detach()


def mmd_by_hand(s: Tensor, t: Tensor) -> Tensor:
    """All differences written out, as in the code that most repositories copy."""
    both = torch.cat([s, t])
    k, n = kernel_by_hand(both, both, variance_by_hand(both)), len(s)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def median(x: Tensor) -> float:
    return torch.cdist(x, x).square().median().item()


def mmd_of(kind: str) -> Loss:
    """Its width is from the median of the source, detached; the mean over kernels and not the sum."""
    return layer("MMDLoss", kernel_scales=torch.tensor([1 / c for c in SCALES]), mmd_type=kind)


def as_theirs(estimate: Loss) -> Loss:
    def ours(s: Tensor, t: Tensor) -> Tensor:
        return estimate(s, t, bandwidth=math.sqrt(median(s.detach()) / 2)) / len(SCALES)

    return ours


def jmmd_ours(s: Tensor, s2: Tensor, t: Tensor, t2: Tensor) -> Tensor:
    widths = [math.sqrt(median(x.detach()) / 2) for x in (s, s2)]
    return align.jmmd_unbiased([s, s2], [t, t2], bandwidth=widths, scales=(1.0,))


def jmmd_peer() -> Loss:
    loss = layer("MMDLoss", mmd_type="quadratic")
    return lambda s, s2, t, t2: loss([s, s2], [t, t2])


def energy_by_hand(s: Tensor, t: Tensor) -> Tensor:
    def mean(x: Tensor, y: Tensor) -> Tensor:
        return (x[:, None] - y[None]).norm(dim=2).mean()

    return 2 * mean(s, t) - mean(s, s) - mean(t, t)


def sliced_peer() -> Loss:
    return lambda s, t, p: made("ot", "sliced_wasserstein_distance", s, t, projections=p / p.norm(dim=0)).square()


def sinkhorn_peer() -> Loss:
    """POT iterates until its marginals hold; ours 100 times."""
    return lambda s, t: made("ot", "solve_sample", s, t, reg=200.0, debias=True, max_iter=100, tol=0).value / 2


def wasserstein(s: Tensor, t: Tensor) -> Tensor:
    return align.sinkhorn_divergence(s, t, epsilon=100.0, iterations=100)


def atdoc_memory(dtype: torch.dtype) -> align.Memory:
    g = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(4000, 256, generator=g, dtype=torch.float64))
    return align.Memory(features.to(dtype), torch.rand(4000, 65, generator=g, dtype=torch.float64).to(dtype))


MEMORIES = {dtype: atdoc_memory(dtype) for dtype in (torch.float32, torch.float64)}
INDEX = torch.arange(128)


def atdoc_ours(z: Tensor, f: Tensor) -> Tensor:
    return align.atdoc(z, align.neighbourhood(f, INDEX, MEMORIES[f.dtype]))


def atdoc_peer() -> Loss:
    loss = layer("NeighborhoodAggregation", 4000, 256, 65, k=5, T=0.5)
    weights = layer("ConfidenceWeights")

    def call(z: Tensor, f: Tensor) -> Tensor:
        loss.feat_memory, loss.pred_memory = MEMORIES[f.dtype]
        votes, q = loss(f, z, update=False, idx=INDEX)
        return (weights(q) * F.cross_entropy(z, votes, reduction="none")).mean()

    return call


def symnets_peer() -> Loss:
    one, two = layer("SymNetsDomainLoss", 0), layer("SymNetsDomainLoss", 1)
    return lambda s, s2, t, t2: one(s, s2) + two(t, t2)


def lmmd_by_hand(s: Tensor, t: Tensor) -> Tensor:
    y, p = F.one_hot(OF_10, 10).to(s.dtype), (t[:, :10]).softmax(1).detach()
    w, v = y / y.sum(0).clamp_min(1e-30), p / p.sum(0)
    variance = variance_by_hand(torch.cat([s, t]))
    present = (y.sum(0) > 0).to(s.dtype)
    total = s.new_zeros(())
    for c in range(10):
        both = (w[:, c], v[:, c])
        total = total + present[c] * (
            (both[0][:, None] * both[0] * kernel_by_hand(s, s, variance)).sum()
            + (both[1][:, None] * both[1] * kernel_by_hand(t, t, variance)).sum()
            - 2 * (both[0][:, None] * both[1] * kernel_by_hand(s, t, variance)).sum()
        )
    return total / present.sum()


def ours_of(fn: Callable[..., Tensor], **keywords: object) -> Loss:
    return partial(fn, **keywords)


PAIRS = (
    Pair("align.mmd", align.mmd, PLAIN, lambda: mmd_by_hand, WIDE),
    Pair(
        "align.mmd",
        ours_of(align.mmd, bandwidth=16.0, scales=(1.0,)),
        GEOMLOSS,
        lambda: made("geomloss", "SamplesLoss", "gaussian", blur=16.0),
        WIDE,
        2.0,
    ),
    Pair("align.mmd_unbiased", as_theirs(align.mmd_unbiased), ADAPT, lambda: mmd_of("quadratic"), WIDE),
    Pair("align.mmd_linear", as_theirs(align.mmd_linear), ADAPT, lambda: mmd_of("linear"), WIDE),
    Pair("align.jmmd_unbiased", jmmd_ours, ADAPT, jmmd_peer, ((128, 256), (128, 65)) * 2),
    Pair("align.coral", align.coral, ADAPT, lambda: layer("CORALLoss"), FEATURES),
    Pair("align.coral", align.coral, SKADA, lambda: skada("deepcoral_loss"), FEATURES),
    Pair("align.energy_distance", align.energy_distance, PLAIN, lambda: energy_by_hand, WIDE),
    Pair("align.sliced_wasserstein", align.sliced_wasserstein, POT, sliced_peer, (*FEATURES, (256, 128))),
    Pair("align.sinkhorn_divergence", wasserstein, POT, sinkhorn_peer, FEATURES),
    Pair("align.mcc", align.mcc, ADAPT, lambda: layer("MCCLoss", T=2.5), LOGITS),
    Pair("align.bnm", align.bnm, ADAPT, lambda: layer("BNMLoss"), LOGITS),
    Pair("align.bsp", align.bsp, ADAPT, lambda: layer("BatchSpectralLoss"), FEATURES[:1]),
    Pair("align.afn", align.afn, ADAPT, lambda: layer("AdaptiveFeatureNorm", step_size=1.0), FEATURES[:1]),
    Pair("align.diversity", align.diversity, ADAPT, lambda: layer("DiversityLoss"), LOGITS),
    Pair("align.mcd", align.mcd, ADAPT, lambda: layer("MCDLoss"), LOGITS * 2),
    Pair("align.symnets_entropy", align.symnets_entropy, ADAPT, lambda: layer("SymNetsEntropyLoss"), LOGITS * 2),
    Pair(
        "align.symnets_domain", lambda s, s2, t, t2: align.symnets_domain(s, t, s2, t2), ADAPT, symnets_peer, LOGITS * 4
    ),
    Pair("align.atdoc", atdoc_ours, ADAPT, atdoc_peer, (*LOGITS, (128, 256))),
    Pair("align.lmmd", lambda s, t: align.lmmd(s, t, OF_10, t[:, :10]), PLAIN, lambda: lmmd_by_hand, FEATURES),
)
