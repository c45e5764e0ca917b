"""`atdoc` and its memory against loops, and beside pytorch-adapt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.peers import theirs
from tests.support.steps import refused
from ttransfer.align._atdoc import Memory, atdoc, atdoc_normalized, neighbourhood, remember
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(logits: Tensor, neighbours: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for z, q in zip(logits, neighbours.detach(), strict=True):
        best = int(q.argmax())
        total = total - q[best] * (z[best] - z.logsumexp(0))
    return total / len(logits)


def slow_normalized(logits: Tensor, neighbours: Tensor) -> Tensor:
    weights = sum(float(q.max()) for q in neighbours)
    return slow(logits, neighbours) * len(logits) / weights


EXAMPLE = {"logits": torch.randn(4, 3), "neighbours": torch.randn(4, 3).softmax(1)}
TRIALS = (
    loss_trial(atdoc, EXAMPLE, reference=slow, examples=4),
    loss_trial(atdoc_normalized, EXAMPLE, reference=slow_normalized, examples=4),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def memory(rows: int = 20, width: int = 6, classes: int = 4) -> Memory:
    features = torch.nn.functional.normalize(torch.randn(rows, width, dtype=torch.float64))
    return Memory(features, torch.randn(rows, classes, dtype=torch.float64).softmax(1))


def batch(n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.randperm(20)[:n]
    return torch.randn(n, 6, dtype=torch.float64), torch.randn(n, 4, dtype=torch.float64), index


def test_votes_by_a_loop() -> None:
    stored, (features, _, index) = memory(), batch()
    found = neighbourhood(features, index, stored, neighbours=3)
    for i, f in enumerate(features):
        others = [j for j in range(20) if j != int(index[i])]
        others.sort(key=lambda j: -float(f @ stored.features[j] / f.norm()))
        wanted = sum(stored.probabilities[j] for j in others[:3]) / 3
        torch.testing.assert_close(found[i], wanted, rtol=1e-12, atol=0)


def test_beside_pytorch_adapt() -> None:
    stored, (features, logits, index) = memory(), batch()
    peer = theirs("pytorch_adapt.layers", "NeighborhoodAggregation", 20, 6, 4, k=5, T=0.5)
    peer.feat_memory, peer.pred_memory = stored.features.clone(), stored.probabilities.clone()
    labels, votes = peer(features, logits, update=True, idx=index)
    found = neighbourhood(features, index, stored)
    torch.testing.assert_close(found, votes, rtol=1e-12, atol=0)
    weighted = theirs("pytorch_adapt.layers", "ConfidenceWeights")(votes)
    rows = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(atdoc(logits, found), (weighted * rows).mean(), rtol=1e-9, atol=0)
    new = remember(stored, features, logits, index)
    torch.testing.assert_close(new.features, peer.feat_memory, rtol=1e-12, atol=0)
    torch.testing.assert_close(new.probabilities, peer.pred_memory, rtol=1e-12, atol=0)


def test_in_one_graph_and_many_at_once() -> None:
    def both(features: Tensor, logits: Tensor, index: Tensor, *stored: Tensor) -> tuple[Tensor, Memory]:
        old = Memory(*stored)
        votes = neighbourhood(features, index, old, neighbours=2)
        return votes, remember(old, features, logits, index)

    inputs = (*batch(), *memory())
    wanted = both(*inputs)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(both, backend="aot_eager", fullgraph=True)(*inputs), wanted)
    many = torch.vmap(both)(*(torch.stack([x, x]) for x in inputs))
    torch.testing.assert_close(many[0][1], wanted[0])
    torch.testing.assert_close(many[1].features[1], wanted[1].features)


def test_confident_and_collapsed_rows_are_finite() -> None:
    stored = Memory(torch.zeros(4, 2), torch.zeros(4, 3))
    for dtype in (torch.float32, torch.bfloat16):
        features, logits = torch.zeros(2, 2, dtype=dtype), torch.tensor([[1e3, 0.0, -1e3]] * 2, dtype=dtype)
        new = remember(stored, features, logits, torch.tensor([0, 2]))
        assert new.features.isfinite().all()
        # No row of the batch has the last class, and each has an equal share of it.
        assert torch.equal(new.probabilities[0], torch.full((3,), 0.5))
        assert neighbourhood(features, torch.tensor([0, 2]), new, neighbours=2).isfinite().all()
    assert atdoc_normalized(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0


def test_what_is_refused() -> None:
    stored, (features, _, index) = memory(), batch()
    refused(lambda: neighbourhood(features, index, stored, neighbours=20), "wanted 1 to 19 neighbours", "got 20")
    refused(lambda: neighbourhood(features[:, :3], index, stored), "neighbourhood: wanted features (n, 6)")
    refused(lambda: remember(stored, features, torch.zeros(2, 4), index), "remember: wanted the same rows")
    refused(lambda: atdoc(torch.zeros(2, 3), torch.zeros(2, 4)), "atdoc: wanted logits and votes (n, classes)")
