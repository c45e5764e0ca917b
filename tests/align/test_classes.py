"""Maps of classes against loops, and with one another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.games import normal
from tests.support.peers import same
from ttransfer._errors import TransferError
from ttransfer.align import class_matrix, map_labels, map_logits, map_probabilities

# Sixteen organs of which two are kidneys, as from AMOS to KiTS.
KIDNEYS = torch.tensor([0, 0, 1, 1, *[0] * 12])
TABLE = torch.tensor([2, 0, 2, -100, 1])


def slow(p: Tensor, table: Tensor, classes: int) -> Tensor:
    rows = p.movedim(1, -1).flatten(0, -2)
    out = p.new_zeros(len(rows), classes)
    for i, row in enumerate(rows):
        for x, new in zip(row, table.tolist(), strict=True):
            if new >= 0:
                out[i, new] = out[i, new] + x
    return out.reshape(*p.movedim(1, -1).shape[:-1], classes).movedim(-1, 1)


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 2)])
def test_labels_and_probabilities(shape: tuple[int, ...]) -> None:
    p = normal(0, *shape).softmax(1)
    matrix = class_matrix(TABLE, classes=3).double()
    assert torch.allclose(map_probabilities(p, matrix), slow(p, TABLE, 3), rtol=1e-12)
    labels = p.argmax(1)
    labels[0] = -100
    wanted = [-100 if y == -100 else int(TABLE[y]) for y in labels.flatten().tolist()]
    assert map_labels(labels, TABLE).flatten().tolist() == wanted
    assert map_labels(labels, TABLE).shape == labels.shape


def test_kidneys() -> None:
    p = normal(0, 2, 16, 2, 2, 2).softmax(1)
    q = map_probabilities(p, class_matrix(KIDNEYS, classes=2))
    assert torch.allclose(q[:, 1], p[:, 2] + p[:, 3], rtol=1e-6)
    assert torch.allclose(q.sum(1), torch.ones((), dtype=torch.float64), rtol=1e-6)
    halves = torch.tensor([[0.0, -9.0, 0.0, 0.0, *[-9.0] * 12]])  # as sure of either kidney as of none
    mapped = map_logits(halves, class_matrix(KIDNEYS, classes=2))
    assert mapped.softmax(1)[0, 1].item() == pytest.approx(2 / 3, abs=1e-3)
    largest = torch.stack([halves[:, [0, 1, *range(4, 16)]].amax(1), halves[:, 2:4].amax(1)], 1)
    assert largest.softmax(1)[0, 1].item() == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 2)])
def test_logits_go_with_probabilities(shape: tuple[int, ...]) -> None:
    z, table = normal(0, *shape) * 3, torch.tensor([2, 0, 2, 1, 1])
    matrix = class_matrix(table, classes=3).double()
    weight = normal(1, 3)

    def by_logits(z: Tensor) -> Tensor:
        return (map_logits(z, matrix).softmax(1).movedim(1, -1) * weight).sum()

    same(by_logits, lambda z: (slow(z.softmax(1), table, 3).movedim(1, -1) * weight).sum(), z)
    soft = normal(2, 5, 3).softmax(1)
    assert torch.allclose(map_logits(z, soft).softmax(1), map_probabilities(z.softmax(1), soft), rtol=1e-10)


def test_dropped_classes_and_new_ones() -> None:
    z = normal(0, 4, 5)
    dropped = map_logits(z, class_matrix(TABLE, classes=3).double()).softmax(1)
    kept = slow(z.softmax(1), TABLE, 3)
    assert torch.allclose(dropped, kept / kept.sum(1, keepdim=True), rtol=1e-12)
    more = class_matrix(TABLE, classes=4).double()
    assert (map_logits(z, more)[:, 3] == -torch.inf).all()
    slope = torch.func.grad(lambda z: F.cross_entropy(map_logits(z, more), torch.tensor([0, 1, 2, 0])))(z)
    assert slope.isfinite().all()
    assert slope[:, 3].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_far_below_the_others(dtype: torch.dtype) -> None:
    z = torch.tensor([[1000.0, -1000.0, -1000.0]], dtype=dtype)
    matrix = class_matrix(torch.tensor([0, 1, 1]), classes=2)
    assert map_logits(z, matrix).tolist() == [[1000.0, pytest.approx(-1000 + 0.6931, rel=1e-2)]]
    slope = torch.func.grad(lambda z: F.cross_entropy(map_logits(z, matrix), torch.tensor([1])))(z)
    assert slope.tolist() == [[1.0, -0.5, -0.5]]


def test_modes_agree() -> None:
    z, matrix = normal(0, 4, 5), class_matrix(TABLE, classes=3).double()
    torch.compiler.reset()
    both: tuple[Callable[..., Tensor], ...] = (map_logits, map_probabilities)
    for fn in both:
        compiled = torch.compile(fn, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(z, matrix), fn(z, matrix), rtol=1e-12)
        mapped: Callable[..., Tensor] = torch.func.vmap(fn, (0, None))  # pyright: ignore[reportArgumentType]
        assert torch.allclose(mapped(torch.stack([z, 2 * z]), matrix)[1], fn(2 * z, matrix))
    labels = torch.tensor([[0, 4], [-100, 2]])
    compiled = torch.compile(map_labels, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(labels, TABLE), map_labels(labels, TABLE))
    assert torch.equal(torch.func.vmap(map_labels, (0, None))(labels, TABLE), map_labels(labels, TABLE))


def test_what_they_refuse() -> None:
    with pytest.raises(TransferError, match=r"map_labels: wanted labels of whole numbers, got labels \(3,\) float32"):
        map_labels(torch.zeros(3), TABLE)
    with pytest.raises(TransferError, match=r"class_matrix: wanted a table \(old classes,\)"):
        class_matrix(TABLE[:, None], classes=2)
    with pytest.raises(TransferError, match="class_matrix: wanted at least 1 class, got 0"):
        class_matrix(TABLE, classes=0)
    with pytest.raises(TransferError, match=r"map_logits: wanted .*matrix \(5, 3\) float32"):
        map_logits(torch.zeros(2, 4), class_matrix(TABLE, classes=3))
