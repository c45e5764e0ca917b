"""`nearest_class_mean` and its transforms against a loop and scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.peers import theirs
from tests.support.steps import refused
from ttransfer.align._ncm import nearest_class_mean, normalize_features

LABELS = torch.tensor([0, 2, 0, 1, 2, 2])


def rows(seed: int, n: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_a_loop() -> None:
    x, support = rows(0, 5), rows(1, 6)
    found = nearest_class_mean(x, support, LABELS, classes=4)
    for i in range(5):
        for k in range(3):
            few = [s for s, y in zip(support, LABELS, strict=True) if y == k]
            wanted = -sum((x[i, j] - sum(s[j] for s in few) / len(few)) ** 2 for j in range(4))
            torch.testing.assert_close(found[i, k], wanted, rtol=1e-12, atol=0)
    assert (found[:, 3] == -torch.inf).all()


def test_beside_scikit_learn() -> None:
    base, x, support = rows(2, 50) + 3, rows(0, 40) + 3, rows(1, 6) + 3
    for centre in (None, base.mean(0)):
        f, s = (normalize_features(one, centre) for one in (x, support))
        peer = theirs("sklearn.neighbors", "NearestCentroid").fit(s.numpy(), LABELS.numpy())
        found = nearest_class_mean(f, s, LABELS, classes=3).argmax(1)
        np.testing.assert_array_equal(found.numpy(), peer.predict(f.numpy()))


def test_transforms() -> None:
    x, centre = rows(0, 5), rows(1, 1)[0]
    torch.testing.assert_close(normalize_features(x), F.normalize(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(normalize_features(x, centre), F.normalize(x - centre), rtol=1e-12, atol=0)
    slope = torch.func.grad(lambda c: normalize_features(c[None], centre).sum())(centre)
    assert slope.isfinite().all()


def test_modes_and_few_bits() -> None:
    x, support = rows(0, 5), rows(1, 6)

    def loss(x: Tensor, support: Tensor) -> Tensor:
        return F.cross_entropy(nearest_class_mean(x, support, LABELS, classes=4), LABELS[:5])

    slopes = torch.func.grad(loss, (0, 1))
    wanted = slopes(x, support)
    assert all(s.isfinite().all() for s in wanted)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(slopes, backend="aot_eager", fullgraph=True)(x, support), wanted)
    many = torch.vmap(slopes)(torch.stack([x, x + 1]), torch.stack([support, support]))
    torch.testing.assert_close([s[0] for s in many], list(wanted))
    few = nearest_class_mean(x.bfloat16(), support.bfloat16(), LABELS, classes=3)
    assert few.dtype == torch.bfloat16
    torch.testing.assert_close(few.double(), nearest_class_mean(x, support, LABELS, classes=3), rtol=0.05, atol=0.05)


def test_what_is_refused() -> None:
    x, support = rows(0, 5), rows(1, 6)
    refused(lambda: nearest_class_mean(x, support[:, :2], LABELS, classes=3), "wanted features of one width d")
    refused(
        lambda: nearest_class_mean(x, support, LABELS[:2], classes=3), "labels (n,) of whole numbers, one for each row"
    )
    refused(lambda: normalize_features(x, x[0, :2]), "normalize_features: wanted features (n, d) and a centre (d,)")
