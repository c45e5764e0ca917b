"""`irm`, `irm_unbiased` and `vrex` against autograd and loops over domains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.steps import refused, small_step
from ttransfer.align._invariance import domain_risks, irm, irm_unbiased, vrex
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slope(logits: Tensor, labels: Tensor) -> Tensor:
    scale = torch.ones((), dtype=logits.dtype, requires_grad=True)
    return torch.autograd.grad(F.cross_entropy(scale * logits, labels), scale, create_graph=True)[0]


def slow_irm(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    return torch.stack([slope(z, y) ** 2 for z, y in zip(logits, labels, strict=True)]).mean()


def slow_unbiased(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    halves = [slope(z[::2], y[::2]) * slope(z[1::2], y[1::2]) for z, y in zip(logits, labels, strict=True)]
    return torch.stack(halves).mean()


def slow_vrex(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    risks = [F.cross_entropy(z, y) for z, y in zip(logits, labels, strict=True)]
    total = torch.zeros((), dtype=risks[0].dtype)
    for risk in risks:
        total = total + (risk - sum(risks) / len(risks)) ** 2
    return total / len(risks)


def two(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of two domains, with arguments that the laws know."""

    def of_domains(source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor) -> Tensor:
        return loss([source, target], [source_labels, target_labels])

    return of_domains


EXAMPLE = {
    "source": torch.randn(4, 3),
    "target": torch.randn(5, 3),
    "source_labels": torch.tensor([0, 1, 2, 0]),
    "target_labels": torch.tensor([0, 1, 2, 0, 1]),
}
TRIALS = (
    loss_trial(irm, reference=lambda logits, labels: slow_irm([logits], [labels]), examples=4),
    loss_trial(irm_unbiased, reference=lambda logits, labels: slow_unbiased([logits], [labels]), examples=4),
    loss_trial(
        two(vrex),
        EXAMPLE,
        reference=two(slow_vrex),
        tags=Tags(non_negative=True, double_backward=True),
        name="vrex",
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_the_unbiased_one_is() -> None:
    """Over many batches its mean is the square of the mean slope, and that of `irm` is more."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 2, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (20_000, 2), generator=generator)
    true = slope(logits.flatten(0, 1), labels.flatten()).detach() ** 2
    unbiased, biased = (torch.vmap(f)(logits, labels) for f in (irm_unbiased, irm))
    assert abs(unbiased.mean() - true) < 3 * unbiased.std() / 20_000**0.5
    assert biased.mean() > 2 * true


def test_in_a_step() -> None:
    batch = vectors(0)
    batch["target"]["y"] = torch.tensor([0, 1, 2, 0])
    reads = ["student(source)", "student(target)"], ["source.y", "target.y"]
    terms = {name: tt.term(fn, *reads) for name, fn in (("irm", irm), ("vrex", vrex))}
    step = small_step(terms, {"student": tt.functional(mlp(1))})
    _, logs = step(step.init(batch), batch)
    z, y = ([one(batch[d]) for d in ("source", "target")] for one in (lambda d: mlp(1)(d["x"]), lambda d: d["y"]))
    torch.testing.assert_close(logs["irm"], slow_irm(z, y).detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(logs["vrex"], slow_vrex(z, y).detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(domain_risks(z, y).mean(), sum(map(F.cross_entropy, z, y)) / 2)


def test_confident_logits_with_an_offset() -> None:
    z, y = torch.tensor([[1000.0, 1001.0], [1001.0, 1000.0]]), torch.tensor([0, 0])
    torch.testing.assert_close(irm(z, y), irm((z - 1000).double(), y).float(), rtol=1e-5, atol=0)


def test_rows_without_a_label_are_left_out() -> None:
    z, y = torch.randn(5, 3).double(), torch.tensor([0, 2, -100, 1, -100])
    kept = y != -100
    torch.testing.assert_close(irm(z, y), irm(z[kept], y[kept]), rtol=1e-12, atol=0)
    torch.testing.assert_close(vrex([z, z], [y, y % 3]), slow_vrex([z[kept], z], [y[kept], y % 3]), rtol=1e-9, atol=0)
    # Halves are by the rows' numbers: of 0, 2, 4 the first is left, of 1, 3 both.
    halves = slope(z[:1], y[:1]) * slope(z[1::2], y[1::2])
    torch.testing.assert_close(irm_unbiased(z, y), halves.detach(), rtol=1e-9, atol=0)
    gradient = torch.func.grad(irm)(z, y)
    assert gradient.isfinite().all()
    assert gradient[~kept].count_nonzero() == 0


def test_what_is_refused() -> None:
    z, y = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    refused(lambda: irm([z, z], [y]), "irm: wanted logits and labels of the same domains", "2 of logits and 1")
    refused(lambda: vrex([z], [y[:2]]), "vrex: wanted logits (n, classes) and whole labels")
    refused(lambda: irm_unbiased(z[:1], y[:1]), "irm_unbiased: wanted at least 2 rows in each domain")
