"""`ofd` and its margin against the paper's cases, and against the authors' formula."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import same
from ttransfer._errors import TransferError
from ttransfer.losses._ofd import ofd, ofd_margin
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks

MARGIN = torch.tensor([-0.5, -1.0, -2.0])


def slow(student: Tensor, teacher: Tensor, margin: Tensor = MARGIN) -> Tensor:
    total = student.new_zeros(())
    for one, other in zip(student, teacher, strict=True):
        for k, m in enumerate(margin.to(student.dtype)):
            for s, t in zip(one[k].flatten(), other[k].flatten(), strict=True):
                wanted = max(t, m)
                if not s <= wanted <= 0:
                    total = total + (s - wanted) ** 2
    return total / len(student)


TRIALS = (
    loss_trial(
        functools.partial(ofd, margin=MARGIN),
        (torch.randn(4, 3), torch.randn(4, 3)),
        reference=slow,
        limits={"far below": lambda fn: (fn(torch.zeros(2, 3), torch.full((2, 3), -9.0)), 0.25 + 1 + 4)},
        examples=8,
    ),
    loss_trial(
        ofd,
        (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), MARGIN),
        tags=Tags(zero_at_equality=False, not_stationary="a margin above 0 is drawn too, and that is none"),
        reference=slow,
        name="ofd of maps",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_beside_the_authors_formula() -> None:
    student, teacher = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64) * 2

    def partial_square(s: Tensor, t: Tensor) -> Tensor:
        t = torch.max(t, MARGIN.double()[:, None, None])
        return ((s - t) ** 2 * ((s > t) | (t > 0))).sum() / len(s)

    same(functools.partial(ofd, margin=MARGIN.double()), partial_square, student, teacher)


def test_below_both_costs_nothing() -> None:
    student = torch.tensor([[-3.0, -1.0, 0.0]], requires_grad=True)
    loss = ofd(student, torch.tensor([[-0.1, -0.5, 0.0]]), MARGIN)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.count_nonzero() == 0


def authors_margin(weight: Tensor, bias: Tensor) -> list[float]:
    stats = pytest.importorskip("scipy.stats")
    margins = []
    for s, m in zip(weight.abs().tolist(), bias.tolist(), strict=True):
        below = stats.norm.cdf(-m / s)
        mean = -s * math.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi) / below + m if below > 0.001 else -3 * s
        margins.append(mean)
    return margins


def test_margin_beside_the_authors_loop() -> None:
    weight = torch.randn(40, dtype=torch.float64)
    bias = torch.linspace(-6, 6, 40, dtype=torch.float64)
    found = ofd_margin(weight, bias)
    assert found.tolist() == pytest.approx(authors_margin(weight, bias), rel=1e-9)
    assert (found < 0).all()


def test_margin_is_the_mean_below_zero() -> None:
    x = torch.randn(10**6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 1.5
    found = ofd_margin(torch.tensor([-2.0]), torch.tensor([1.5]))
    assert found.item() == pytest.approx(x[x < 0].mean().item(), rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_margin_of_a_channel_without_spread(dtype: torch.dtype) -> None:
    found = ofd_margin(torch.zeros(3, dtype=dtype), torch.tensor([-0.5, 0.0, 0.5], dtype=dtype))
    assert found.dtype == dtype
    assert found.tolist() == [-0.5, 0.0, 0.0]


def test_margin_compiles_and_maps() -> None:
    weight, bias = torch.randn(2, 3, 5, dtype=torch.float64)
    rows = torch.stack([ofd_margin(w, b) for w, b in zip(weight, bias, strict=True)])
    assert torch.equal(torch.func.vmap(ofd_margin)(weight, bias), rows)
    compiled = torch.compile(ofd_margin, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(weight[0], bias[0]), rows[0], rtol=1e-12)


def test_what_is_refused() -> None:
    maps = torch.zeros(4, 3, 2, 2)
    with pytest.raises(TransferError, match=r"ofd: wanted one margin for each channel.*margin \(1, 3, 1, 1\)"):
        ofd(maps, maps, MARGIN[None, :, None, None])
    with pytest.raises(TransferError, match=r"ofd: .*one shape"):
        ofd(maps, maps[:, :2], MARGIN)
    with pytest.raises(TransferError, match=r"ofd_margin: .*one shape, got weight \(3,\) float32 and bias \(2,\)"):
        ofd_margin(MARGIN, MARGIN[:2])
