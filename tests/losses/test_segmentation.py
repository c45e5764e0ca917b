"""`pixel_kd` and `boundary_kd` against slow loops."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._segmentation import boundary_kd, pixel_kd
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow_divergence(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    log_p, log_q = (t.detach() / temperature).log_softmax(0), (s / temperature).log_softmax(0)
    return temperature**2 * sum((a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True)), torch.zeros(()))


def slow_pixel_kd(student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    total, kept = torch.zeros((), dtype=student.dtype), 0.0
    n, _, h, w = student.shape
    for i, y, x in itertools.product(range(n), range(h), range(w)):
        m = 1.0 if mask is None else float(mask[i, y, x])
        total = total + m * slow_divergence(student[i, :, y, x], teacher[i, :, y, x], temperature)
        kept += m
    return total / kept if kept else total


def slow_boundary_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    width: int = 1,
    edge: float = 1.0,
    body: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    n, _, h, w = student.shape
    for i in range(n):
        classes = teacher[i].argmax(0) if labels is None else labels[i]
        parts: dict[bool, list[Tensor]] = {True: [], False: []}
        for y, x in itertools.product(range(h), range(w)):
            if classes[y, x] == ignore_index:
                continue
            near = {
                int(classes[b, a])
                for b in range(max(0, y - width), min(h, y + width + 1))
                for a in range(max(0, x - width), min(w, x + width + 1))
                if classes[b, a] != ignore_index
            }
            parts[len(near) > 1].append(slow_divergence(student[i, :, y, x], teacher[i, :, y, x], 1.0))
        for by, found in ((edge, parts[True]), (body, parts[False])):
            if found:
                total = total + by * torch.stack(found).mean()
    return total / n


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


MAPS = (drawn(4, 3, 3, 4), drawn(4, 3, 3, 4, seed=1))
MASK = drawn(4, 3, 4, seed=2) > 0
LABELS = (drawn(4, 3, 4, seed=3) > 0.8).long() + (drawn(4, 3, 4, seed=4) > 1.2).long()
TRIALS = (
    loss_trial(pixel_kd, MAPS, reference=slow_pixel_kd, name="pixel_kd of all", examples=8),
    loss_trial(
        functools.partial(pixel_kd, temperature=3.0),
        (*MAPS, MASK),
        reference=functools.partial(slow_pixel_kd, temperature=3.0),
        name="pixel_kd",
        examples=8,
    ),
    loss_trial(
        functools.partial(boundary_kd, edge=2.0, body=0.5),
        (*MAPS, LABELS),
        reference=functools.partial(slow_boundary_kd, edge=2.0, body=0.5),
        tags=Tags(min_batch=1),
        name="boundary_kd",
        examples=8,
    ),
    loss_trial(boundary_kd, MAPS, reference=slow_boundary_kd, name="boundary_kd by the teacher", examples=8),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_it_is_kd_of_the_positions_that_are_kept() -> None:
    s, t = (x.double() for x in MAPS)
    rows = [x.movedim(1, -1)[MASK] for x in (s, t)]
    torch.testing.assert_close(pixel_kd(s, t, MASK), kd(rows[0], rows[1], temperature=1.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(pixel_kd(s, t, temperature=4.0), kd(s, t), rtol=1e-12, atol=0)


def test_nothing_kept_is_0_with_no_slope() -> None:
    none = torch.zeros_like(MASK)
    assert pixel_kd(*MAPS, none).item() == 0
    assert grad(pixel_kd)(*MAPS, none).count_nonzero() == 0


@pytest.mark.parametrize("width", [1, 2, 3])
def test_boundaries_of_any_width_with_ignored_labels(width: int) -> None:
    s, t = drawn(2, 3, 6, 7).double(), drawn(2, 3, 6, 7, seed=1).double()
    labels = torch.zeros(2, 6, 7, dtype=torch.int64)
    labels[0, :, 4:] = 2
    labels[0, 2, 3:5] = 255
    labels[1, 5, 6] = 1
    more = {"width": width, "edge": 3.0, "body": 0.5, "ignore_index": 255}
    torch.testing.assert_close(
        boundary_kd(s, t, labels, **more), slow_boundary_kd(s, t, labels, **more), rtol=1e-10, atol=0
    )


def test_boundaries_of_lines_and_volumes() -> None:
    s, t = drawn(2, 3, 6).double(), drawn(2, 3, 6, seed=1).double()
    labels = torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, 2]])
    flat = boundary_kd(s, t, labels)
    torch.testing.assert_close(flat, slow_boundary_kd(s[:, :, None], t[:, :, None], labels[:, None]))
    deep = [x[:, :, None, None] for x in (s, t)]
    torch.testing.assert_close(boundary_kd(*deep, labels[:, None, None]), flat)


def test_where_all_is_boundary_it_is_kd() -> None:
    s, t = (x.double() for x in MAPS)
    chess = (torch.arange(3)[:, None] + torch.arange(4)).remainder(2).expand(4, 3, 4)
    torch.testing.assert_close(boundary_kd(s, t, chess), kd(s, t, temperature=1.0), rtol=1e-12, atol=0)


def test_errors() -> None:
    with pytest.raises(
        TransferError, match=r"pixel_kd: wanted a mask \(4, 3, 4\), one for each position, got \(4, 3\)"
    ):
        pixel_kd(*MAPS, MASK[:, :, 0])
    with pytest.raises(TransferError, match=r"boundary_kd: wanted a width of at least 1, got 0"):
        boundary_kd(*MAPS, width=0)
    with pytest.raises(TransferError, match=r"boundary_kd: wanted one to three axes of space, got \(4, 3\)"):
        boundary_kd(MAPS[0][:, :, 0, 0], MAPS[1][:, :, 0, 0])
