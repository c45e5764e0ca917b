"""`fishr` against the gradients of single rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.steps import refused
from ttransfer.align._fishr import fishr, head_variances
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow_variance(features: Tensor, logits: Tensor, labels: Tensor, code: bool) -> Tensor:
    """Of the gradients of a head that gives these logits: zero weights, and the logits for an offset."""
    width, classes = features.shape[1], logits.shape[1]

    def risk(weight: Tensor, bias: Tensor, f: Tensor, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy((z + weight @ f + bias)[None], y[None])

    weight, bias = features.new_zeros(classes, width), features.new_zeros(classes)
    single = torch.func.vmap(torch.func.grad(risk, (0, 1)), (None, None, 0, 0, 0))(
        weight, bias, features, logits, labels
    )
    rows = torch.cat([g.flatten(1) for g in single], 1)
    mean = torch.stack(list(rows)).mean(0)
    return torch.stack([(g - mean) ** 2 for g in rows]).sum(0) / (len(rows) - (not code))


def slow(features: Sequence[Tensor], logits: Sequence[Tensor], labels: Sequence[Tensor], code: bool = False) -> Tensor:
    variances = [slow_variance(f, z, y, code) for f, z, y in zip(features, logits, labels, strict=True)]
    mean = sum(variances) / len(variances)
    gaps = [((v - mean) ** 2).mean() if code else ((v - mean) ** 2).sum() for v in variances]
    return torch.stack(gaps).mean()


def two(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of two domains, with arguments that the laws know."""

    def of_domains(
        source: Tensor,
        target: Tensor,
        source_scores: Tensor,
        target_scores: Tensor,
        source_labels: Tensor,
        target_labels: Tensor,
    ) -> Tensor:
        return loss([source, target], [source_scores, target_scores], [source_labels, target_labels])

    return of_domains


EXAMPLE = (
    *(torch.randn(4, 5), torch.randn(6, 5), torch.randn(4, 3), torch.randn(6, 3)),
    *(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0, 1, 1])),
)
TRIALS = (
    loss_trial(
        two(functools.partial(fishr, variant="code")),
        EXAMPLE,
        reference=two(functools.partial(slow, code=True)),
        tags=Tags(non_negative=True, double_backward=True),
        name="fishr",
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_three_domains(variant: str) -> None:
    sizes = (5, 2, 7)
    features, logits = ([torch.randn(n, d, dtype=torch.float64) for n in sizes] for d in (4, 3))
    labels = [torch.arange(n) % 3 for n in sizes]
    found = fishr(features, logits, labels, variant=variant)
    torch.testing.assert_close(found, slow(features, logits, labels, variant == "code"), rtol=1e-9, atol=1e-12)
    rows = head_variances(features, logits, labels, variant=variant)
    for one, f, z, y in zip(rows, features, logits, labels, strict=True):
        torch.testing.assert_close(one, slow_variance(f, z, y, variant == "code"), rtol=1e-9, atol=1e-12)


def test_equal_rows_do_not_vary() -> None:
    f, z, y = torch.full((4, 3), 0.1), torch.full((4, 2), 100.0), torch.zeros(4, dtype=torch.int64)
    slopes, value = torch.func.grad_and_value(lambda f, z: fishr([f, f[:2]], [z, z[:2]], [y, y[:2]]), (0, 1))(f, z)
    assert value < 1e-12
    assert all(s.isfinite().all() for s in slopes)


def test_what_is_refused() -> None:
    f, z, y = torch.zeros(3, 4), torch.zeros(3, 2), torch.tensor([0, 1, 1])
    refused(lambda: fishr([f], [z, z], [y, y]), "fishr: wanted features of the 2 domains, got 1")
    refused(lambda: fishr(f[:2], z, y), "fishr: wanted features (n, d) of the rows")
    refused(lambda: fishr(f[:1], z[:1], y[:1]), "fishr: wanted at least 2 rows in each domain")
    refused(lambda: fishr([f, f[:, :2]], [z, z], [y, y]), "fishr: wanted features and logits of one width")
    refused(lambda: fishr(f, z, y, variant="mine"), "got 'mine'")


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_rows_without_a_label_are_left_out(variant: str) -> None:
    f, z, y = torch.randn(5, 2).double(), torch.randn(5, 3).double(), torch.tensor([0, 2, -100, 1, -100])
    kept = y != -100
    wanted = head_variances(f[kept], z[kept], y[kept], variant=variant)
    torch.testing.assert_close(head_variances(f, z, y, variant=variant), wanted, rtol=1e-12, atol=0)
