"""The connector belongs to the term, the margins follow from the teacher's batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import ttransfer as tt
from tests.support.games import obeys
from tests.support.nets import conv, images
from tests.support.sharded import gap
from tests.support.steps import refused, small_step

READS = ("student(source).bn", "teacher(source).bn")
NETS = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}


def maps(n: int, c: int, seed: int) -> Tensor:
    return torch.randn(n, c, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights() -> dict[str, Tensor]:
    bias = torch.tensor([0.3, -0.5, 9.0, 0.0, 0.1], dtype=torch.float64)  # the third is hardly ever below 0
    return {"bn.weight": torch.tensor([1.0, -0.7, 1.5, 0.2, 0.9], dtype=torch.float64), "bn.bias": bias}


def authors(student: Tensor, teacher: Tensor, connector: Callable[[Tensor], Tensor]) -> Tensor:
    margins = []
    for s, m in zip(weights()["bn.weight"].abs().tolist(), weights()["bn.bias"].tolist(), strict=True):
        below = norm.cdf(-m / s)
        margins.append(-s * norm.pdf(m / s) / below + m if below > 1e-3 else -3 * s)
    target = torch.maximum(teacher, torch.tensor(margins, dtype=torch.float64)[:, None, None])
    source = connector(student)
    return ((source - target) ** 2 * ((source > target) | (target > 0))).sum() / len(student)


def test_it_is_the_authors_value() -> None:
    term = tt.terms.ofd(*READS)
    student, teacher = maps(6, 3, 0), maps(6, 5, 1)
    own, memory = term.init(torch.Generator().manual_seed(0), [student, teacher, weights()])
    connector = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)).double()
    assert set(own) == {name for name, _ in connector.named_parameters()}

    def ours(own: Any, student: Tensor) -> Tensor:
        return term.apply(own, memory, {}, torch.tensor(0), [student, teacher, weights()])[0]

    def wanted(own: Any, student: Tensor) -> Tensor:
        statistics = {name: torch.zeros_like(x) for name, x in connector.named_buffers()}
        return authors(student, teacher, lambda x: torch.func.functional_call(connector, {**own, **statistics}, x))

    mine, theirs = (torch.func.grad_and_value(f, argnums=(0, 1))(own, student) for f in (ours, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_the_connector_starts_as_the_authors_do() -> None:
    own, _ = tt.terms.ofd(*READS).init(
        torch.Generator().manual_seed(0),
        [maps(2, 64, 0), maps(2, 64, 0), {k: x.new_ones(64) for k, x in weights().items()}],
    )
    assert own["0.weight"].std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_in_a_step_and_sharded() -> None:
    step = small_step({"ofd": tt.terms.ofd(*READS, weight=1e-2)}, NETS, buffers={"student": "eval"})
    assert gap(step, [images(seed) for seed in range(2)]) < 1e-11
    block = small_step({"ofd": tt.terms.ofd("student(source).conv", "teacher(source).conv", norm="bn")}, NETS)
    assert block(block.init(images(0)), images(0))[1]["ofd"].isfinite()


def test_it_obeys_the_laws_of_terms() -> None:
    readings = (torch.randn(4, 3, 2, 2), torch.randn(4, 5, 2, 2), {k: x.float() for k, x in weights().items()})
    obeys(tt.terms.ofd(*READS), readings, {})


def test_what_is_refused() -> None:
    refused(lambda: tt.terms.ofd(READS[0], "teacher(source)"), "ofd: the margins come from a batch norm", "norm=")
    refused(lambda: tt.terms.ofd(READS[0], "teacher(source).fc:in"), "got 'teacher(source).fc:in'")
    step = small_step({"ofd": tt.terms.ofd("student(source).conv", "teacher(source).conv", norm="bm")}, NETS)
    refused(lambda: step.init(images(0)), "'bm' is no batch norm of 4 channels", "there are: bn, fc")
