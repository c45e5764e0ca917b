"""Groups that are tried out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.support.channel_nets import IMAGE, cnn
from ttransfer._errors import TransferError
from ttransfer.weights import Axis, Group, channel_groups
from ttransfer.weights._groups_check import check_groups, distance


def test_true_groups_pass() -> None:
    net = cnn()
    check_groups(copy.deepcopy(net), (IMAGE,), channel_groups(net, IMAGE))


@pytest.mark.parametrize("left_out", range(3))
def test_a_group_that_lacks_an_axis_is_found(left_out: int) -> None:
    net = cnn()
    groups = list(channel_groups(net, IMAGE))
    number = next(i for i, group in enumerate(groups) if group.axes[0].name == "hidden.weight")
    axes = groups[number].axes
    groups[number] = groups[number]._replace(axes=axes[:left_out] + axes[left_out + 1 :])
    with pytest.raises(TransferError, match=rf"channel_groups: group {number} \(7 channels of 'h.*not interchangeable"):
        check_groups(copy.deepcopy(net), (IMAGE,), groups)


def test_zeros_hide_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for x in net.parameters():
        nn.init.zeros_(x)
    wrong = [Group((Axis("0.weight", 0, torch.arange(4)[:, None]),))]
    assert distance(copy.deepcopy(net), (torch.zeros(2, 3),), wrong, [0]) == [True]
    assert distance(copy.deepcopy(net), (torch.zeros(2, 3),), wrong, []) == [False]


def test_what_noise_breaks_is_run_as_it_was_given() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.log()).tanh())

    groups = channel_groups(Log(), torch.rand(2, 3) + 0.1)
    assert [g.size for g in groups if not g.fixed] == [4]
