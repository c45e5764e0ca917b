"""How a group is found by its name."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import ttransfer as tt
from ttransfer.dist._channel import channel, register, unregister
from ttransfer.testing._threads import run_ranks


def test_a_process_group_is_found_by_its_name() -> None:
    group = tt.dist.init().get_group()
    to = channel(group.group_name)
    assert (to.rank, to.size) == (0, 1)
    x, out = torch.arange(3.0), torch.empty(3)
    to.all_gather(out, x)
    assert torch.equal(out, x)
    to.all_reduce([out])
    to.broadcast(out, 0)
    to.reduce_scatter(out, x)
    assert torch.equal(out, x)
    assert channel(group.group_name) is to


def test_a_group_that_is_no_more_is_not_mistaken_for_another_of_its_name() -> None:
    tt.dist.init()
    first = channel(dist.group.WORLD.group_name)
    dist.destroy_process_group()
    tt.dist.init()
    assert channel(dist.group.WORLD.group_name) is not first


def test_channels_under_other_names_are_found_first_and_forgotten() -> None:
    (own,) = run_ranks(1, lambda ranks: channel(ranks.group))
    register("mine", own)
    assert channel("mine") is own
    unregister("mine")
    with pytest.raises(Exception, match="mine"):
        channel("mine")
