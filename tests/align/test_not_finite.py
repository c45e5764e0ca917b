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
from tests.support.trials import all_trials
from ttransfer.testing import Trial
from ttransfer.testing._subject import drawn, for_all

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


BY_NAME = {trial.name: trial for trial in all_trials() if trial.subject.trained()}


@pytest.mark.parametrize("trial", BY_NAME.values(), ids=list(BY_NAME))
def test_one_entry_that_is_no_number_shows_in_the_value(trial: Trial) -> None:
    """On the inputs of each loss's own trial: in the first tensor that gets a gradient."""
    subject = trial.subject
    found: list[Any] = []
    for_all(drawn(subject, "generic"), found.append, examples=3)
    first = subject.trained()[0]
    inputs = [x.clone() if isinstance(x, Tensor) else x for x in found[-1]]
    assert subject.call(tuple(inputs)).isfinite()
    inputs[first].view(-1)[0] = math.nan
    assert subject.call(tuple(inputs)).isnan()


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "median_bandwidth": lambda x: A.median_bandwidth(x, Y),
    "normalize_features": A.normalize_features,
    "nearest_class_mean": lambda x: A.nearest_class_mean(x, Y, LABELS[:6], classes=4),
    "nearest_class_mean of a support": lambda x: A.nearest_class_mean(Y, x, LABELS, classes=4),
    "class_weights": A.class_weights,
    "importance_weights": lambda x: A.importance_weights(x[:, 1]),
    "entropy_weights": A.entropy_weights,
    "self_information": A.self_information,
    "multilinear": lambda x: A.multilinear(x, X),
    "mixup": lambda x: A.mixup(x, LABELS, ratio=0.5),
    "map_logits": lambda x: A.map_logits(x, torch.eye(4)),
    "map_probabilities": lambda x: A.map_probabilities(x, torch.eye(4)),
    "fourier_swap": lambda x: A.fourier_swap(x[None], X[None]),
    "group_weights": lambda x: A.group_weights(torch.ones(8) / 8, x[:, 1]),
    "domain_risks": lambda x: A.domain_risks(x, LABELS),
    "head_variances": lambda x: A.head_variances(x, X, LABELS),
    "gradient_penalty": lambda x: A.gradient_penalty(lambda h: h.square().sum(1), x, Y, torch.full((8,), 0.5)),
    "vat": lambda x: A.vat(torch.tanh, x, X),
    "standardize": L.standardize,
    "remember_centres": lambda x: A.remember_centres(Y[:4], x, X),
    "mmd, chunk": lambda x: A.mmd(x, Y, chunk=2),
    # Not here: neighbourhood and shot_labels take the largest of cosines, the teachers of `deit_hard` and `ab`, the
    # weak views of `fixmatch` and `flexmatch`, the classifier of `mdd` and the target's logits of `cst` that of logits:
    # whatever these are, the answer is one of the classes. Logits of -inf are classes left out.
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_number_shows_in_what_is_no_scalar(name: str) -> None:
    assert PLACES[name](X).isfinite().all()
    assert PLACES[name](broken(math.nan)).isnan().any()
