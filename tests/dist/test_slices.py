"""Each rank's rows of batches that all draw alike."""

from __future__ import annotations

import torch

import ttransfer as tt
from ttransfer.dist._ranks import Ranks
from ttransfer.run import Domains, domains, loader


def test_the_parts_are_the_batch_in_order_of_ranks() -> None:
    batches = [{"a": {"x": torch.arange(7), "y": torch.arange(7) * 2}, "b": {"x": torch.arange(3)}}]
    parts = [next(iter(tt.dist.sliced(batches, Ranks(rank, 3, "none")))) for rank in range(3)]
    for domain, fields in batches[0].items():
        for field, x in fields.items():
            assert torch.equal(torch.cat([part[domain][field] for part in parts]), x)
    assert [len(part["b"]["x"]) for part in parts] == [1, 1, 1]


def test_the_place_is_that_of_the_source() -> None:
    def source() -> Domains:
        return domains(a=loader({"x": torch.arange(6)}, batch_size=2))

    one = tt.dist.sliced(source(), Ranks(0, 1, "none"))
    rows = iter(one)
    next(rows)
    place = one.state_dict()
    wanted = [next(rows)["a"]["x"].tolist() for _ in range(3)]
    other = tt.dist.sliced(source(), Ranks(0, 1, "none"))
    other.load_state_dict(place)
    again = iter(other)
    assert [next(again)["a"]["x"].tolist() for _ in range(3)] == wanted
    assert not hasattr(tt.dist.sliced([], Ranks(0, 1, "none")), "state_dict")
