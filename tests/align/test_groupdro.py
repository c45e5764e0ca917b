"""`group_weights` against the rule in a loop."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.steps import refused
from ttransfer.align._groupdro import group_weights

WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
RISKS = torch.tensor([0.1, 2.0, 0.7], dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.01, 3.0])
def test_the_rule(eta: float) -> None:
    raised = [q * math.exp(eta * r) for q, r in zip(WEIGHTS.tolist(), RISKS.tolist(), strict=True)]
    wanted = torch.tensor([q / sum(raised) for q in raised], dtype=torch.float64)
    torch.testing.assert_close(group_weights(WEIGHTS, RISKS, eta=eta), wanted, rtol=1e-12, atol=0)


def test_huge_risks_and_domains_without_weight() -> None:
    risks = torch.tensor([1e5, 2e5, 0.0])
    assert group_weights(torch.ones(3) / 3, risks, eta=1.0).tolist() == [0, 1, 0]
    assert group_weights(torch.tensor([1.0, 0.0, 0.0]), risks).tolist() == [1, 0, 0]


def test_modes() -> None:
    wanted = group_weights(WEIGHTS, RISKS)
    torch.compiler.reset()
    assert torch.equal(torch.compile(group_weights, backend="aot_eager", fullgraph=True)(WEIGHTS, RISKS), wanted)
    both = torch.vmap(group_weights)(torch.stack([WEIGHTS, WEIGHTS]), torch.stack([RISKS, -RISKS]))
    torch.testing.assert_close(both[0], wanted)
    assert torch.func.grad(lambda r: group_weights(WEIGHTS, r)[0])(RISKS).count_nonzero() == 0


def test_what_is_refused() -> None:
    refused(lambda: group_weights(WEIGHTS, RISKS[:2]), "group_weights: wanted weights and risks (domains,)")
