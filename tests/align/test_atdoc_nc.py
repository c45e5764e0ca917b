"""`atdoc_nc` and its centres against loops, the second after the authors' code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.games import normal
from tests.support.steps import refused
from ttransfer.align._atdoc_nc import atdoc_nc, remember_centres
from ttransfer.testing import loss_trial, parametrize_with_checks


def cosine(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum()) / math.sqrt(float((x * x).sum()) * float((y * y).sum()) or 1.0)


def slow(logits: Tensor, features: Tensor, centres: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for z, f in zip(logits, features, strict=True):
        near = [cosine(f, c) for c in centres]
        total = total - (z[near.index(max(near))] - z.exp().sum().log())
    return total / len(logits)


EXAMPLE = {"logits": torch.randn(5, 3), "features": torch.randn(5, 4), "centres": torch.randn(3, 4)}
TRIALS = (loss_trial(atdoc_nc, EXAMPLE, reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_centres_by_a_loop() -> None:
    centres, features, logits = normal(0, 5, 3), normal(1, 4, 3), normal(2, 4, 5)
    new = remember_centres(centres, features, logits, momentum=0.3)
    likeliest = [max(range(5), key=lambda c, z=z: z[c]) for z in logits.tolist()]
    assert len(set(likeliest)) < 5, "no class is without rows"
    for c in range(5):
        mean = sum((f for f, y in zip(features, likeliest, strict=True) if y == c), torch.zeros(3).double())
        # The authors add 1e-8 to the count.
        wanted = 0.7 * centres[c] + 0.3 * mean / (likeliest.count(c) + 1e-8)
        torch.testing.assert_close(new[c], wanted, rtol=1e-7, atol=1e-9)
        if c in likeliest:
            wanted = 0.7 * centres[c] + 0.3 * mean / likeliest.count(c)
        torch.testing.assert_close(new[c], wanted, rtol=1e-12, atol=0)


def test_a_class_that_never_comes_keeps_its_direction_and_is_forgotten_in_the_end() -> None:
    features, logits = torch.tensor([[1.0, 0.0]]), torch.tensor([[9.0, 0.0]])
    centres = torch.tensor([[0.0, 5.0], [3.0, -4.0]])
    for _ in range(500):
        centres = remember_centres(centres, features, logits)
    left = centres[1].double()
    torch.testing.assert_close(left / left.norm(), torch.tensor([0.6, -0.8]).double(), rtol=1e-5, atol=0)
    near = atdoc_nc(logits, torch.tensor([[3.0, -4.0]]), centres)
    torch.testing.assert_close(near, atdoc_nc(logits, torch.tensor([[3.0, -4.0]]), torch.tensor([[1.0, 0], [3, -4]])))
    for _ in range(500):
        centres = remember_centres(centres, features, logits)
    # The only centre left is the nearest, though it is on the other side.
    assert atdoc_nc(logits, -features, centres) < 1e-3


def test_in_one_graph_and_many_at_once() -> None:
    def both(logits: Tensor, features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        return atdoc_nc(logits, features, centres), remember_centres(centres, features, logits)

    inputs = normal(0, 4, 3), normal(1, 4, 5), normal(2, 3, 5)
    wanted = both(*inputs)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(both, backend="aot_eager", fullgraph=True)(*inputs), wanted)
    many = torch.vmap(both)(*(torch.stack([x, x]) for x in inputs))
    torch.testing.assert_close([x[1] for x in many], list(wanted))


def test_collapsed_and_broken_rows() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        zeros = torch.zeros(2, 3, dtype=dtype)
        assert atdoc_nc(1000 * torch.eye(2, dtype=dtype), zeros, zeros).isfinite()
        assert remember_centres(zeros, zeros, torch.eye(2, dtype=dtype)).isfinite().all()
    logits, features, centres = torch.zeros(2, 2), torch.eye(2), torch.eye(2)
    for value in (math.nan, math.inf):
        broken = torch.where(torch.eye(2) == 1, value, features)
        assert not atdoc_nc(logits, broken, centres).isfinite()
        assert not atdoc_nc(logits, features, broken).isfinite()
        assert not remember_centres(centres, broken, logits).isfinite().all()


def test_what_is_refused() -> None:
    logits, features, centres = torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3, 4)
    refused(lambda: atdoc_nc(logits, features[:1], centres), "atdoc_nc: wanted the same rows")
    refused(lambda: atdoc_nc(logits, features, centres.mT), "centres (classes, d)", "centres (4, 3)")
    refused(lambda: remember_centres(centres, features, logits, momentum=1.5), "from 0 to 1 for momentum", "1.5")
