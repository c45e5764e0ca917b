"""Roots, norms, distances and entropies where the plain formulas break."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad

from ttransfer._numeric import distances, divergence, entropies, gram, log_other, picked, root, unit, wide, without


def test_one_dtype_of_float32_at_least() -> None:
    low, double = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float64)
    assert [x.dtype for x in wide(low, low)] == [torch.float32] * 2
    assert [x.dtype for x in wide(low, double)] == [torch.float64] * 2


def test_a_root_is_flat_at_0() -> None:
    x = torch.tensor([0.0, 4.0, 1e-30])
    assert root(x).tolist() == pytest.approx([0, 2, 1e-15])
    assert grad(lambda x: root(x).sum())(x)[:2].tolist() == [0, 0.25]
    assert grad(lambda x: grad(lambda y: root(y).sum())(x).sum())(x)[:2].tolist() == [0, -1 / 32]


def test_vectors_of_any_size_become_units() -> None:
    x = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0]])
    assert unit(x).tolist() == [pytest.approx([0.6, 0.8])] * 3 + [[0, 0]]
    assert grad(lambda x: unit(x).sum())(x).isfinite().all()
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.allclose(unit(maps, (1, 2, 3)), torch.nn.functional.normalize(maps.flatten(1)).view_as(maps))


def test_the_slope_of_a_unit() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, x)
    assert torch.autograd.gradgradcheck(unit, x)


def test_distances_between_rows() -> None:
    x = torch.randn(5, 2, 3, dtype=torch.float64) + 100
    x[3] = x[1]
    wanted = torch.stack([torch.stack([(a - b).norm() for b in x]) for a in x])
    assert torch.allclose(distances(x), wanted, rtol=1e-9, atol=0)
    assert distances(x)[1, 3] == 0
    assert grad(lambda x: distances(x).sum())(x).isfinite().all()
    apart = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(distances, apart)
    assert torch.equal(gram(x), x.flatten(1) @ x.flatten(1).T)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 5)])
def test_a_label_apart_from_the_other_classes(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, dtype=torch.float64)
    labels = torch.randint(0, 3, (shape[0], *shape[2:]))
    there, rest = without(x, labels)
    assert torch.equal(there.sum(1), torch.ones_like(labels))
    assert torch.equal(picked(x, labels), x.movedim(1, -1)[there.movedim(1, -1)].reshape(labels.shape))
    assert torch.equal(rest.isinf(), there)
    torch.testing.assert_close(torch.logaddexp(picked(x, labels), rest.logsumexp(1)), x.logsumexp(1))
    assert grad(lambda x: without(x, labels)[1].logsumexp(1).sum())(x).isfinite().all()


@pytest.mark.parametrize("dim", [1, -1])
def test_divergence_along_an_axis(dim: int) -> None:
    student, teacher = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    p, q = teacher.softmax(dim), student.softmax(dim)
    assert torch.allclose(divergence(student, teacher, dim), (p * (p / q).log()).sum(dim), rtol=1e-12, atol=0)
    sure = torch.tensor([[1e4, 0.0]])
    assert divergence(sure, sure.flip(1)).tolist() == [1e4]


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3, 2)])
def test_entropies_and_what_is_left_of_1(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = z.exp() / z.exp().sum(1, keepdim=True)
    labels = p.argmax(1)
    assert torch.allclose(entropies(z), -(p * p.log()).sum(1), rtol=1e-12)
    assert torch.allclose(log_other(z, labels), (1 - p.gather(1, labels[:, None])[:, 0]).log(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropies_of_confident_rows(dtype: torch.dtype) -> None:
    z = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], dtype=dtype)
    assert entropies(z)[0] == 0
    assert log_other(z, z.argmax(1))[0] == -1000
    assert grad(lambda z: entropies(z).sum())(z).isfinite().all()
    assert grad(lambda z: log_other(z, z.argmax(1)).sum())(z).isfinite().all()
