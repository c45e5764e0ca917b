"""`mixup` row by row, and its labels in a cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.support.steps import refused
from ttransfer.align._mixup import mixup

X = torch.randn(5, 3, 2, dtype=torch.float64)
PARTNERS = torch.tensor([3, 0, 0, 4, 2])
RATIOS = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.7], dtype=torch.float64)


def test_row_by_row() -> None:
    found, same = mixup(X, PARTNERS, ratio=RATIOS), mixup(X, PARTNERS, ratio=0.3)
    for i, (j, r) in enumerate(zip(PARTNERS.tolist(), RATIOS.tolist(), strict=True)):
        torch.testing.assert_close(found[i], r * X[i] + (1 - r) * X[j], rtol=1e-12, atol=0)
        torch.testing.assert_close(same[i], 0.3 * X[i] + 0.7 * X[j], rtol=1e-12, atol=0)


def test_mixed_labels_are_the_mixed_cross_entropy() -> None:
    labels, logits = torch.tensor([0, 1, 2, 1, 0]), torch.randn(5, 3, dtype=torch.float64)
    mixed = mixup((labels[:, None] == torch.arange(3)).double(), PARTNERS, ratio=0.3)
    wanted = 0.3 * F.cross_entropy(logits, labels) + 0.7 * F.cross_entropy(logits, labels[PARTNERS])
    torch.testing.assert_close(F.cross_entropy(logits, mixed), wanted, rtol=1e-12, atol=0)


def test_modes() -> None:
    wanted = mixup(X, PARTNERS, ratio=RATIOS)
    torch.compiler.reset()
    fast = torch.compile(lambda x, p, r: mixup(x, p, ratio=r), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(X, PARTNERS, RATIOS), wanted)
    many = torch.vmap(lambda x, p, r: mixup(x, p, ratio=r))(*(torch.stack([a, a]) for a in (X, PARTNERS, RATIOS)))
    torch.testing.assert_close(many[1], wanted)
    number = torch.func.grad(lambda r: mixup(X, PARTNERS, ratio=r).sum())(torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(number, (X - X[PARTNERS]).sum())
    assert mixup(X.bfloat16(), PARTNERS, ratio=RATIOS).dtype == torch.bfloat16


def test_what_is_refused() -> None:
    refused(lambda: mixup(torch.tensor([1, 2]), torch.tensor([1, 0]), ratio=0.5), "mixup: wanted floating rows")
    refused(lambda: mixup(X, PARTNERS[:2], ratio=0.5), "mixup: wanted a partner for each row")
    refused(lambda: mixup(X, PARTNERS, ratio=RATIOS[:2]), "mixup: wanted one ratio, or one for each row")
