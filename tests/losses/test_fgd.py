"""`fgd_focal`, `fgd_global` and `box_mask` against slow loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from ttransfer._errors import TransferError
from ttransfer.losses._fgd import box_mask, fgd_focal, fgd_global
from ttransfer.testing import loss_trial, parametrize_with_checks


def slow_attention(x: Tensor, temperature: float) -> tuple[dict[tuple[int, int], Tensor], list[Tensor]]:
    c, h, w = x.shape
    places = list(itertools.product(range(h), range(w)))
    by_place = [sum((x[j, a, b].abs() for j in range(c)), torch.zeros(())) / c / temperature for a, b in places]
    by_channel = [
        sum((x[j, a, b].abs() for a, b in places), torch.zeros(())) / len(places) / temperature for j in range(c)
    ]
    space = torch.stack(by_place).softmax(0) * len(places)
    return dict(zip(places, space, strict=True)), list(torch.stack(by_channel).softmax(0) * c)


def slow_focal(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    alpha: float = 1e-3,
    beta: float = 5e-4,
    gamma: float = 1e-3,
    temperature: float = 0.5,
) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t, m in zip(student, teacher.detach(), mask, strict=True):
        (s_space, s_channel), (t_space, t_channel) = (slow_attention(x, temperature) for x in (s, t))
        empty = int((m == 0).sum())
        for (a, b), j in itertools.product(t_space, range(len(s))):
            by = alpha * m[a, b] if m[a, b] != 0 else beta / empty
            total = total + by * t_space[a, b] * t_channel[j] * (s[j, a, b] - t[j, a, b]) ** 2
        total = total + gamma * sum(((s_space[p] - t_space[p]).abs() for p in t_space), torch.zeros(()))
        total = total + gamma * sum(((p - q).abs() for p, q in zip(s_channel, t_channel, strict=True)), torch.zeros(()))
    return total / len(student)


def slow_global(student: Tensor, teacher: Tensor, context: Tensor, reference_context: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    n, c, h, w = student.shape
    for i, j, a, b in itertools.product(range(n), range(c), range(h), range(w)):
        here, there = student[i, j, a, b] + context[i, j], teacher[i, j, a, b].detach() + reference_context[i, j]
        total = total + (here - there) ** 2
    return total / n


MAPS = (torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
MASK = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]] * 4)
STRONG = {"alpha": 1.0, "beta": 0.5, "gamma": 0.3}
TRIALS = (
    loss_trial(
        functools.partial(fgd_focal, **STRONG),
        (*MAPS, MASK > 0),
        reference=functools.partial(slow_focal, **STRONG),
        name="fgd_focal",
        examples=8,
    ),
    loss_trial(
        fgd_global,
        (*MAPS, torch.randn(4, 3), torch.randn(4, 3)),
        reference=slow_global,
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_default_weights() -> None:
    s, t = (x.double() for x in MAPS)
    torch.testing.assert_close(fgd_focal(s, t, MASK.double()), slow_focal(s, t, MASK.double()), rtol=1e-10, atol=0)
    contexts = [torch.randn(4, 3, dtype=torch.float64) for _ in range(2)]
    torch.testing.assert_close(fgd_global(s, t, *contexts), slow_global(s, t, *contexts), rtol=1e-10, atol=0)


def test_maps_all_of_objects_have_no_background() -> None:
    s, t = (x.double() for x in MAPS)
    full = torch.full((4, 2, 2), 0.25)
    assert fgd_focal(s, t, full).item() == pytest.approx(fgd_focal(s, t, full, beta=7.0).item(), rel=1e-12)


def test_both_contexts_learn_and_the_teacher_does_not() -> None:
    slopes = grad(fgd_global, (0, 1, 2, 3))(*MAPS, torch.randn(4, 3), torch.randn(4, 3))
    assert [bool(s.any()) for s in slopes] == [True, False, True, True]


def slow_box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    out = torch.zeros(len(boxes), height, width, dtype=boxes.dtype)
    for i, of_image in enumerate(boxes.tolist()):
        for x0, y0, x1, y1 in of_image:
            if x1 <= x0 or y1 <= y0:
                continue
            columns = range(math.floor(x0 * width), math.ceil(x1 * width))
            rows = range(math.floor(y0 * height), math.ceil(y1 * height))
            for a, b in itertools.product(rows, columns):
                out[i, a, b] = max(out[i, a, b], 1 / (len(rows) * len(columns)))
    return out


def test_box_mask() -> None:
    g = torch.Generator().manual_seed(0)
    low = torch.rand(3, 5, 2, dtype=torch.float64, generator=g) * 0.9
    boxes = torch.cat([low, low + torch.rand(3, 5, 2, dtype=torch.float64, generator=g) * (1 - low)], 2)
    boxes[1, 3:] = 0
    expected = slow_box_mask(boxes, 6, 9)
    torch.testing.assert_close(box_mask(boxes, height=6, width=9), expected, rtol=1e-12, atol=0)
    by_one = vmap(lambda b: box_mask(b[None], height=6, width=9)[0])(boxes)
    torch.testing.assert_close(by_one, expected, rtol=1e-12, atol=0)
    assert box_mask(torch.zeros(2, 0, 4), height=3, width=2).count_nonzero() == 0


def test_the_authors_fill_a_mirrored_mask() -> None:
    # The left half of a map of 4 x 4 positions; their slices as in their code, first by x, and one position further.
    ours = box_mask(torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]), height=4, width=4)[0]
    theirs = torch.zeros(4, 4)
    theirs[0 : 2 + 1, 0 : 4 + 1] = 1 / ((4 + 1 - 0) * (2 + 1 - 0))
    assert ours.count_nonzero() == 8
    assert theirs.count_nonzero() == 12
    assert ((ours > 0) & (theirs > 0)).count_nonzero() == 6


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"fgd_focal: wanted a mask \(4, 2, 2\), .* got \(4, 2\)"):
        fgd_focal(*MAPS, MASK[:, 0])
    with pytest.raises(TransferError, match=r"fgd_global: wanted contexts \(4, 3\), .* got \(4, 2\)"):
        fgd_global(*MAPS, torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(TransferError, match=r"box_mask: wanted boxes \(n, k, 4\) and a size, got \(2, 4\)"):
        box_mask(torch.zeros(2, 4), height=2, width=2)
