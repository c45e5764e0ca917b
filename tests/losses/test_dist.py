"""`dist` and `dist_plus` against slow loops and torchdistill."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from tests.support import peers
from ttransfer._errors import TransferError
from ttransfer.losses._dist import dist, dist_plus
from ttransfer.testing import loss_trial, parametrize_with_checks


def correlation(x: list[Tensor], y: list[Tensor]) -> Tensor:
    mean_x, mean_y = sum(x, 0 * x[0]) / len(x), sum(y, 0 * y[0]) / len(y)
    inner = sum(((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)), 0 * x[0])
    squares_x = sum(((a - mean_x) ** 2 for a in x), 0 * x[0])
    squares_y = sum(((b - mean_y) ** 2 for b in y), 0 * x[0])
    if squares_x.item() < 1e-16 or squares_y.item() < 1e-16:
        return 0 * inner
    return inner / (squares_x.sqrt() * squares_y.sqrt())


def slow(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> Tensor:
    p = [list(s.softmax(0)) for s in student / temperature]
    q = [list(t.softmax(0)) for t in teacher.detach() / temperature]
    rows = [correlation(a, b) for a, b in zip(p, q, strict=True)]
    classes = [correlation([row[j] for row in p], [row[j] for row in q]) for j in range(len(p[0]))]
    return temperature**2 * (beta * (1 - torch.stack(rows).mean()) + gamma * (1 - torch.stack(classes).mean()))


def slow_plus(student: Tensor, teacher: Tensor, student_map: Tensor, teacher_map: Tensor) -> Tensor:
    f, g = student_map.flatten(2), teacher_map.detach().flatten(2)
    channels, positions = [], []
    for u in range(f.shape[2]):
        channels += [correlation(list(f[i, :, u]), list(g[i, :, u])) for i in range(len(f))]
        sums = [[x[i, :, u].sum() for i in range(len(f))] for x in (f, g)]
        positions.append(correlation(*sums))
    return slow(student, teacher) + (1 - torch.stack(channels).mean()) + (1 - torch.stack(positions).mean())


MAPS = (torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2))
TRIALS = (
    loss_trial(dist, reference=slow, limits={"scaled": lambda fn: (fn(torch.eye(3), 2 * torch.eye(3)), 0)}),
    loss_trial(
        functools.partial(dist, beta=2.0, gamma=0.5, temperature=4.0),
        reference=functools.partial(slow, beta=2.0, gamma=0.5, temperature=4.0),
        name="dist at 4",
        examples=8,
    ),
    loss_trial(dist, (torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)), name="dist of maps", examples=8),
    loss_trial(dist_plus, MAPS, reference=slow_plus, examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator) * 2
    f, g = torch.randn(2, 6, 4, 3, 2, dtype=torch.float64, generator=generator) * 1e4
    return student, teacher, f, g


def torchdistill(name: str, *tensors: Tensor, **given: Any) -> Tensor:
    ends = ("logit", "feature")[: len(tensors) // 2]
    names = {"dist": ("",), "plus": ("logit_", "feature_")}["plus" if len(ends) == 2 else "dist"]
    paths = {}
    for end in names:
        for side in ("student", "teacher"):
            paths |= {f"{side}_{end}module_path": end or "x", f"{side}_{end}module_io": "output"}
    student = {end or "x": {"output": x} for end, x in zip(names, tensors[::2], strict=True)}
    teacher = {end or "x": {"output": x} for end, x in zip(names, tensors[1::2], strict=True)}
    return peers.theirs("torchdistill.losses.mid_level", name, **paths, **given)(student, teacher)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_torchdistill_agrees(tau: float) -> None:
    student, teacher, *_ = case()
    got = grad_and_value(lambda s: dist(s, teacher, beta=2.0, gamma=0.5, temperature=tau))(student)
    theirs = grad_and_value(lambda s: torchdistill("DISTLoss", s, teacher, beta=2.0, gamma=0.5, tau=tau))(student)
    torch.testing.assert_close(got, theirs, rtol=1e-9, atol=1e-12)
    assert grad(lambda t: torchdistill("DISTLoss", student, t))(teacher).abs().max() > 1e-3


def test_torchdistills_plus_has_the_channels_sign_reversed() -> None:
    tensors = case()
    student, teacher, f, g = tensors
    plain = dist_plus(*tensors, iota=0.0)
    channels = dist_plus(*tensors) - plain  # 1 - the correlation
    theirs = torchdistill("DISTPlusLoss", *tensors)
    torch.testing.assert_close(theirs, plain + (1 - channels), rtol=1e-9, atol=1e-12)
    slope = grad(lambda x: dist_plus(student, teacher, x, g, beta=0.0, gamma=0.0, kappa=0.0))(f)
    reversed_slope = grad(
        lambda x: torchdistill("DISTPlusLoss", student, teacher, x, g, beta=0.0, gamma=0.0, kappa=0.0)
    )(f)
    torch.testing.assert_close(slope, -reversed_slope, rtol=1e-9, atol=1e-16)
    assert torchdistill("DISTPlusLoss", student, student, f, f).item() == pytest.approx(1)
    assert torchdistill("DISTPlusLoss", student, student, f, -f).item() == pytest.approx(1)  # -1, and 2
    assert dist_plus(student, student, f, f).item() == pytest.approx(0, abs=1e-12)


def test_positions_are_rows() -> None:
    student, teacher = torch.randn(2, 3, 4, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in (student, teacher)]
    torch.testing.assert_close(dist(student, teacher), dist(*rows), rtol=1e-12, atol=0)


def test_a_single_row_has_no_relation_over_rows() -> None:
    student, teacher, *_ = (x[:1] for x in case())
    torch.testing.assert_close(dist(student, teacher), dist(student, teacher, gamma=0.0) + 1)
    torch.testing.assert_close(grad(dist)(student, teacher), grad(lambda s: dist(s, teacher, gamma=0.0))(student))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_relation(dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.3, -0.2, 0.1]], dtype=dtype).expand(7, -1)
    teacher = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert grad(dist)(rows, teacher).abs().max() < 1
    assert grad(lambda s: torchdistill("DISTLoss", s, teacher.float()))(rows.float()).abs().max() > 1e3


def test_errors() -> None:
    x, f = torch.zeros(4, 3), torch.zeros(4, 2, 3, 3)
    with pytest.raises(TransferError, match=r"dist: wanted tensors of one shape"):
        dist(x, x[:3])
    with pytest.raises(TransferError, match=r"dist_plus: wanted feature maps of the same channels"):
        dist_plus(x, x, f, f[:, :1])
