from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ttransfer as tt
from ttransfer.run import Loader, loader
from ttransfer.run._data import mix

SIZES = [(1, 1), (5, 2), (6, 2), (6, 3), (7, 3), (3, 7), (2, 7)]


def make(rows: int, batch_size: int, **options: Any) -> Loader:
    fields = {"x": torch.arange(rows * 2.0).reshape(rows, 2), "y": torch.arange(rows)}
    return loader(fields, batch_size=batch_size, **options)


def epoch(batches: Loader) -> list[list[int]]:
    return [batch["y"].tolist() for batch in batches]


@pytest.mark.parametrize(("rows", "size"), SIZES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_keep_yields_every_row_once(rows: int, size: int, shuffle: bool) -> None:
    found = epoch(batches := make(rows, size, shuffle=shuffle))
    assert [len(batch) for batch in found] == [min(size, rows - begin) for begin in range(0, rows, size)]
    assert sorted(itertools.chain(*found)) == list(range(rows))
    assert len(found) == len(batches)


@pytest.mark.parametrize(("rows", "size"), [(r, s) for r, s in SIZES if r >= s])
@pytest.mark.parametrize("shuffle", [True, False])
def test_drop_leaves_out_the_last_rows_of_keep(rows: int, size: int, shuffle: bool) -> None:
    kept, dropped = (epoch(make(rows, size, shuffle=shuffle, last=last)) for last in ("keep", "drop"))
    assert dropped == [batch for batch in kept if len(batch) == size]
    assert len(dropped) == len(make(rows, size, last="drop"))


@pytest.mark.parametrize(("rows", "size"), SIZES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_pad_fills_with_the_first_rows_of_the_epoch(rows: int, size: int, shuffle: bool) -> None:
    def order(last: str) -> list[int]:
        return list(itertools.chain(*epoch(make(rows, size, shuffle=shuffle, last=last))))

    kept, padded = order("keep"), order("pad")
    assert len(padded) == size * len(make(rows, size, last="pad"))
    assert padded == (kept * size)[: len(padded)]
    assert len(padded) - rows < size


def test_fields_stay_together_and_keep_their_dtypes() -> None:
    for batch in make(7, 3):
        assert torch.equal(batch["x"][:, 0], batch["y"] * 2.0)
        assert (batch["x"].dtype, batch["y"].dtype) == (torch.float32, torch.int64)


def test_arrays_are_taken_and_batches_are_copies() -> None:
    x = np.arange(8, dtype=np.float32)
    (batch,) = loader({"x": x}, batch_size=8, shuffle=False)
    batch["x"].zero_()
    np.testing.assert_array_equal(x, np.arange(8))


def test_epochs_differ_and_follow_the_seed_alone() -> None:
    first, second = make(20, 5, seed=3), make(20, 5, seed=3)
    torch.manual_seed(1)
    ours = [epoch(first) for _ in range(3)]
    torch.manual_seed(2)
    theirs = [epoch(second) for _ in range(3)]
    assert ours == theirs
    assert len({str(order) for order in [*ours, epoch(make(20, 5, seed=4))]}) == 4
    plain = make(20, 5, shuffle=False)
    assert epoch(plain) == epoch(plain)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    epoch(make(20, 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_cut_short_is_followed_by_the_next() -> None:
    whole, cut = make(6, 2), make(6, 2)
    epochs = [epoch(whole) for _ in range(2)]
    assert next(iter(cut))["y"].tolist() == epochs[0][0]
    assert epoch(cut) == epochs[1]


@pytest.mark.parametrize("last", ["keep", "drop", "pad"])
@pytest.mark.parametrize("taken", range(9))
def test_a_position_is_found_again(last: str, taken: int) -> None:
    def stream(batches: Loader) -> Any:
        while True:
            yield from epoch_of(batches)

    def epoch_of(batches: Loader) -> Any:
        return (batch["y"].tolist() for batch in batches)

    one, other = make(7, 3, seed=5, last=last), make(7, 3, seed=5, last=last)
    ours = stream(one)
    for _ in range(taken):
        next(ours)
    position = json.loads(json.dumps(one.state_dict()))
    other.load_state_dict(position)
    theirs = stream(other)
    assert [next(theirs) for _ in range(7)] == [next(ours) for _ in range(7)]


def test_a_position_may_be_loaded_into_a_loader_in_use() -> None:
    batches = make(6, 2)
    position = batches.state_dict()
    first = epoch(batches)
    batches.load_state_dict(position)
    assert epoch(batches) == first


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make(7, 3), r"saved with batch_size=2, here it is 3$"),
        (make(8, 2), r"saved with rows=7, here it is 8$"),
        (make(7, 2, seed=1), r"saved with seed=0, here it is 1$"),
        (make(7, 2, shuffle=False), r"saved with shuffle=True, here it is False$"),
        (make(7, 2, last="pad"), r"saved with last='keep', here it is 'pad'$"),
    ],
)
def test_a_position_of_another_order_is_refused(other: Loader, message: str) -> None:
    with pytest.raises(tt.TransferError, match=rf"^loader: the position was {message}"):
        other.load_state_dict(make(7, 2).state_dict())


X = torch.zeros(4, 2)
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no fields": ({}, {}, r"^loader: no fields; give a mapping"),
    "no rows": ({"x": torch.zeros(0, 2)}, {}, r"^loader: 0 rows make no batch of 2 with last='keep'"),
    "too few to drop": (
        {"x": X},
        {"batch_size": 5, "last": "drop"},
        r"^loader: 4 rows make no batch of 5 with last='",
    ),
    "unequal": ({"x": X, "y": X[:3]}, {}, r"^loader: the fields have different numbers of rows: \{'x': 4, 'y': 3\}$"),
    "a number": (
        {"x": torch.tensor(1.0)},
        {},
        r"^loader: field 'x' is a single torch\.float32 number, wanted ",
    ),
    "names": ({"x": ["a", "b"]}, {}, r"^loader: field 'x' is a list, wanted a tensor or an array: "),
    "batch size": ({"x": X}, {"batch_size": 0}, r"^loader: batch_size=0, wanted at least 1$"),
    "last": ({"x": X}, {"last": "padd"}, r"^loader: last='padd', wanted one of keep, drop, pad; did you mean 'pad'\?$"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    fields, options, message = BAD[name]
    with pytest.raises(tt.TransferError, match=message):
        loader(fields, **{"batch_size": 2, **options})


def test_mixed_seeds_are_far_apart_and_fit_a_generator() -> None:
    seeds: list[Any] = [mix(a, b) for a in range(20) for b in range(20)]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    firsts: list[Tensor] = [torch.randperm(1000, generator=torch.Generator().manual_seed(s))[0] for s in seeds]
    assert 400 < float(torch.stack(firsts).double().mean()) < 600
