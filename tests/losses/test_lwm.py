"""`lwm` against the formula in slow loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.peers import theirs
from ttransfer._errors import TransferError
from ttransfer.losses._lwm import lwm
from ttransfer.testing import loss_trial, parametrize_with_checks


def attention(image: Tensor, slopes: Tensor) -> Tensor:
    channels, height, width = image.shape
    cells = [
        sum((slopes[c].mean() * image[c, i, j] for c in range(channels)), torch.zeros(())).clamp_min(0)
        for i in range(height)
        for j in range(width)
    ]
    length = torch.stack(cells).norm()
    return torch.stack(cells) / length if length > 0 else torch.stack(cells)


def slow(student: Tensor, teacher: Tensor, student_slopes: Tensor, teacher_slopes: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t, ds, dt in zip(student, teacher.detach(), student_slopes, teacher_slopes.detach(), strict=True):
        total = total + sum((a - b).abs() for a, b in zip(attention(s, ds), attention(t, dt), strict=True))
    return total / len(student)


MAPS = tuple(torch.randn(4, 3, 2, 3) for _ in range(4))
TRIALS = (loss_trial(lwm, MAPS, reference=slow, examples=8),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def heads() -> tuple[Tensor, ...]:
    """Maps of two nets, logits of them that are not linear, and labels."""
    torch.manual_seed(0)
    s, t = (torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.randn(4 * 9, 6, dtype=torch.float64)
    return s, t, s.flatten(1).tanh() @ weights, t.flatten(1).tanh() @ weights, torch.tensor([0, 1, 2, 3, 4])


def test_zhijians_attention_is_of_the_slopes_alone() -> None:
    student, teacher, out_s, out_t, labels = heads()
    theirs_value = theirs("zhijian.models.kd.loss.lwm", "LwM")(out_s, student, out_t, teacher, labels)
    ds, dt = (
        torch.autograd.grad(out.gather(1, labels[:, None]).sum(), x, retain_graph=True)[0]
        for out, x in ((out_s, student), (out_t, teacher))
    )
    # A mean over 9 positions, and the slopes in the place of the maps.
    torch.testing.assert_close(lwm(ds, dt, ds, dt) / 9, theirs_value, rtol=1e-9, atol=1e-9)
    ours = lwm(student, teacher, ds, dt) / 9
    assert abs(ours / theirs_value - 1) > 0.05


def test_a_class_seen_nowhere_attends_nowhere() -> None:
    student, slopes = torch.ones(2, 3, 2, 2), -torch.ones(2, 3, 2, 2)
    assert lwm(student, student, slopes, slopes).item() == 0
    assert lwm(student, student, slopes, -slopes).item() == pytest.approx(2)  # 4 positions of 1/2


def test_what_is_refused() -> None:
    maps = torch.zeros(4, 3, 8, 8)
    with pytest.raises(TransferError, match=r"lwm: wanted feature maps of the same channels.*student_slopes"):
        lwm(maps, maps, maps[:, :2], maps)
    with pytest.raises(TransferError, match="lwm: wanted feature maps of the same height and width"):
        lwm(maps, maps[..., :4], maps, maps[..., :4])
