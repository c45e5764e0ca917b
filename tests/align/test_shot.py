"""`shot_labels` against the paper and the authors' code by SciPy's distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.peers import theirs
from tests.support.steps import refused
from ttransfer.align._shot import shot_labels


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(theirs("scipy.spatial.distance", "cdist", one[None], other[None], "cosine")[0, 0])


def slow(features: Tensor, probabilities: Tensor, rounds: int, code: bool) -> list[int]:
    f, p = features.numpy(), probabilities.numpy()
    classes = range(p.shape[1])
    if code:
        f = np.concatenate([f, np.ones((len(f), 1))], 1)
        f = f / np.linalg.norm(f, axis=1, keepdims=True)
        classes = [k for k in classes if (p.argmax(1) == k).any()]
    shares = p
    labels: list[int] = []
    for _ in range(rounds + 1):
        there = [k for k in classes if shares[:, k].sum() > 0]
        centroids = {k: sum(shares[i, k] * f[i] for i in range(len(f))) / shares[:, k].sum() for k in there}
        labels = [min(there, key=lambda k: cosine(row, centroids[k])) for row in f]
        shares = np.eye(p.shape[1])[labels]
    return labels


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_against_loops(rounds: int, variant: str) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(30, 4, generator=generator, dtype=torch.float64) + 1
        probabilities = (2 * torch.randn(30, 6, generator=generator, dtype=torch.float64)).softmax(1)
        found = shot_labels(features, probabilities, rounds=rounds, variant=variant)
        assert found.tolist() == slow(features, probabilities, rounds, variant == "code")


def test_the_variants_differ() -> None:
    features = torch.tensor([[5.0, 0.0], [0.2, 0.1], [0.0, 3.0]])
    probabilities = torch.tensor([[0.5, 0.2, 0.3], [0.45, 0.1, 0.45], [0.3, 0.1, 0.6]])
    # Class 1 is nobody's likeliest; by the paper it may win all the same.
    assert 1 not in shot_labels(features, probabilities, variant="code")
    assert not torch.equal(
        shot_labels(features, probabilities, rounds=0), shot_labels(features, probabilities, rounds=0, variant="code")
    )


def test_a_class_that_loses_its_rows_is_left_out() -> None:
    features, probabilities = torch.eye(2), torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0]])
    assert shot_labels(features, probabilities).tolist() == [0, 1]
    assert np.isnan(cosine(np.ones(2), np.zeros(2)))


def test_in_one_graph_many_at_once_and_collapsed() -> None:
    features, probabilities = torch.randn(8, 3), torch.randn(8, 4).softmax(1)
    wanted = shot_labels(features, probabilities)
    torch.compiler.reset()
    fast = torch.compile(shot_labels, backend="aot_eager", fullgraph=True)
    assert torch.equal(fast(features, probabilities), wanted)
    many = torch.vmap(shot_labels)(torch.stack([features, -features]), torch.stack([probabilities] * 2))
    assert torch.equal(many[0], wanted)
    assert shot_labels(torch.zeros(3, 2), torch.full((3, 2), 0.5)).tolist() == [0, 0, 0]
    assert shot_labels(features[:1], probabilities[:1]).shape == (1,)


def test_what_is_refused() -> None:
    refused(lambda: shot_labels(torch.zeros(3, 2), torch.zeros(2, 2)), "shot_labels: wanted features (n, d)")
    refused(lambda: shot_labels(torch.zeros(3, 2), torch.zeros(3, 2), variant="mine"), "got 'mine'")
