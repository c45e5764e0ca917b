"""`rsd` by whole decompositions as the paper has it, and SciPy's angles between subspaces."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from ttransfer.align._rsd import rsd
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow(source: Tensor, target: Tensor) -> Tensor:
    """The formula as it stands, where it is determined; NaN where rows depend on each other or spans meet."""
    ranks = [int(np.linalg.matrix_rank(x.detach().numpy())) for x in (source, target)]
    n, m = len(source), len(target)
    bases = [torch.linalg.svd(x, full_matrices=False)[2].T for x in (source, target)]
    p, cosines, q = torch.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    if ranks != [n, m] or (1 - cosines.detach() ** 2).min() < 1e-6:
        return source.sum() * math.nan
    rows = max(n, m)
    p, q = (F.pad(x.abs(), (0, 0, 0, rows - len(x))) for x in (p, q.T))
    return (1 - cosines**2).sqrt().sum() + 0.1 * ((p - q) ** 2).sum().sqrt()


EXAMPLE = (torch.randn(3, 16), torch.randn(4, 16))
TRIALS = (loss_trial(rsd, EXAMPLE, reference=slow, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("rows", [(4, 4), (3, 5), (5, 2)])
def test_scipys_angles(rows: tuple[int, int]) -> None:
    s, t = torch.randn(rows[0], 9).double(), torch.randn(rows[1], 9).double()
    angles = scipy.linalg.subspace_angles(s.T.numpy(), t.T.numpy())
    assert rsd(s, t, penalty=0.0).item() == pytest.approx(np.sin(angles).sum(), rel=1e-10)


def test_small_angles() -> None:
    """Spans 1e-9 apart: the root of 1 - cos² is 0 or rounding."""
    s = torch.eye(2, 8).double()
    t = s + 1e-9 * torch.eye(8).double()[[5, 6]]
    assert rsd(s, t, penalty=0.0).item() == pytest.approx(2e-9, rel=1e-6)
    cosines = torch.linalg.svdvals(F.normalize(s) @ F.normalize(t).T)
    assert abs((1 - cosines**2).clamp_min(0).sqrt().sum().item() - 2e-9) > 1e-9


def test_where_nothing_is_determined() -> None:
    loss = functools.partial(rsd, penalty=1.0)
    equal, zeros = torch.ones(3, 8), torch.zeros(3, 8)
    for s, t in ((equal, equal), (equal, zeros), (zeros, equal), (torch.eye(3, 8), torch.eye(8)[5:])):
        assert loss(s, t).isfinite()
        assert grad(loss)(s, t).isfinite().all()
        assert loss(s.bfloat16(), t.bfloat16()).dtype == torch.bfloat16
    full = torch.randn(5, 3)
    assert rsd(full, full + 1, penalty=0.0).item() == pytest.approx(0, abs=1e-5)
