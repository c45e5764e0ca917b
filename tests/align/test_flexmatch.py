"""`flexmatch` and its thresholds against loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.games import normal
from tests.support.steps import refused
from ttransfer.align._flexmatch import flexible_thresholds, flexmatch, remember_labels
from ttransfer.align._pseudo_label import fixmatch
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(strong: Tensor, weak: Tensor, thresholds: Tensor) -> Tensor:
    total = strong.new_zeros(())
    for s, w in zip(strong, weak, strict=True):
        q = (w.exp() / w.exp().sum()).tolist()
        best = q.index(max(q))
        if q[best] >= float(thresholds[best]):
            total = total - (s[best] - s.exp().sum().log())
    return total / len(strong)


EXAMPLE = {"strong": torch.randn(5, 3), "weak": torch.randn(5, 3), "thresholds": torch.tensor([0.2, 0.5, 0.7])}
TRIALS = (loss_trial(flexmatch, EXAMPLE, reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_with_one_threshold_it_is_fixmatch() -> None:
    for shape in ((6, 4), (2, 4, 3, 2)):
        strong, weak = normal(0, *shape), 3 * normal(1, *shape)
        wanted = fixmatch(strong, weak, threshold=0.7)
        assert 0 < wanted < fixmatch(strong, weak, threshold=0.0)
        torch.testing.assert_close(flexmatch(strong, weak, torch.full((4,), 0.7).double()), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("warm_up", [True, False])
@pytest.mark.parametrize("given", [[-1] * 6, [0, 0, 2, -1, -1, -1], [2, 2, 2, 0, 0, 1], [1, -1, 1, 1, 1, 0]])
def test_thresholds_by_a_loop(given: list[int], warm_up: bool) -> None:
    counts = Counter(given)
    most = max([*(n for c, n in counts.items() if c >= 0 or warm_up), 1])
    wanted = [0.95 * (counts[c] / most) / (2 - counts[c] / most) for c in range(4)]
    tau = torch.tensor(0.95).double()
    found = flexible_thresholds(torch.tensor(given), classes=4, threshold=tau, warm_up=warm_up)
    torch.testing.assert_close(found, torch.tensor(wanted).double(), rtol=1e-7, atol=0)


def test_labels_by_a_loop() -> None:
    old, weak, index = torch.tensor([3, -1, 0, 1, -1, 2, 2]), 2 * normal(0, 4, 4), torch.tensor([5, 0, 4, 2])
    wanted = old.tolist()
    for w, i in zip(weak, index.tolist(), strict=True):
        q = w.softmax(0)
        if q.max() >= 0.6:
            wanted[i] = int(q.argmax())
    new = remember_labels(old, weak, index, threshold=0.6)
    assert new.tolist() == wanted != old.tolist()
    assert old.tolist() == [3, -1, 0, 1, -1, 2, 2]


def test_in_one_graph_and_many_at_once() -> None:
    def all_of_it(strong: Tensor, weak: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        limits = flexible_thresholds(labels, classes=3, threshold=0.5)
        return flexmatch(strong, weak, limits), remember_labels(labels, weak, index, threshold=0.5)

    inputs = normal(0, 4, 3), 2 * normal(1, 4, 3), torch.tensor([0, 0, 1, -1, 2]), torch.tensor([3, 0, 1, 4])
    wanted = all_of_it(*inputs)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(all_of_it, backend="aot_eager", fullgraph=True)(*inputs), wanted)
    many = torch.vmap(all_of_it)(*(torch.stack([x, x]) for x in inputs))
    torch.testing.assert_close([x[1] for x in many], list(wanted))


def test_what_is_refused() -> None:
    strong, index = torch.zeros(2, 3), torch.tensor([0, 9])
    labels = torch.zeros(5, dtype=torch.int64)
    refused(lambda: flexmatch(strong, strong, torch.zeros(2)), "flexmatch: wanted one threshold for each class")
    refused(lambda: flexible_thresholds(labels + 3, classes=3), "wanted labels from 0 to 2", "got 3")
    refused(lambda: flexible_thresholds(labels.float(), classes=3), "wanted labels (rows,) of whole numbers")
    refused(lambda: remember_labels(labels, strong, index), "wanted index from 0 to 4", "got 9")
    refused(lambda: remember_labels(labels, strong, index[:1]), "wanted logits (n, classes) and an index (n,)")
