from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ttransfer as tt
from ttransfer.run import Domains, _codec, domains, loader
from ttransfer.run._domains import Cursor


def rows(count: int, **options: Any) -> Any:
    return loader({"x": torch.arange(count)}, batch_size=2, **options)


def plain(count: int) -> Any:
    """A DataLoader whose order is the same in every process."""
    return DataLoader(TensorDataset(torch.arange(count)), batch_size=2)


def listed(count: int) -> Any:
    return [{"x": torch.arange(begin, min(begin + 2, count))} for begin in range(0, count, 2)]


class Counting:
    """A source with a state of its own, as torchdata's StatefulDataLoader has: tuples, bytes, keys that are ints."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.at = self.replayed = 0
        self.resumed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.resumed:
            self.at = 0
        self.resumed = False
        while self.at < self.count:
            self.at += 1
            self.replayed += 1
            yield {"x": torch.tensor([self.at])}

    def state_dict(self) -> dict[Any, Any]:
        return {0: (self.at, b"rng")}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        assert state[0][1] == b"rng"
        self.at = state[0][0]
        self.resumed = True


SOURCES = {"loader": rows, "stateful": Counting, "DataLoader": plain, "list": listed}


def read(batches: Domains, count: int) -> list[dict[str, list[int]]]:
    found = [next(batches) for _ in range(count)]
    return [{name: fields["x"].tolist() for name, fields in batch.items()} for batch in found]


@pytest.mark.parametrize("name", SOURCES)
def test_unequal_lengths_cycle_each_in_epochs_of_its_own(name: str) -> None:
    make = SOURCES[name]
    long, short = ([list(b["x"] if isinstance(b, dict) else b[0]) for b in make(n)] for n in (7, 3))
    batches = domains(source=make(7), target=make(3))
    found = read(batches, 3 * len(long))
    for domain, own, count in (("source", long, 7), ("target", short, 3)):
        stream = [batch[domain] for batch in found]
        assert [len(batch) for batch in stream] == [len(own[i % len(own)]) for i in range(len(stream))]
        for begin in range(0, len(stream) - len(own) + 1, len(own)):
            drawn = itertools.chain(*stream[begin : begin + len(own)])
            first = 1 if name == "stateful" else 0
            assert sorted(drawn) == list(range(first, count + first))


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4, 6, 8, 11])
@pytest.mark.parametrize("name", SOURCES)
def test_a_position_is_found_again(name: str, taken: int) -> None:
    def make() -> Domains:
        return domains(seed=2, source=SOURCES[name](7), target=SOURCES[name](4))

    one, other = make(), make()
    read(one, taken)
    position = _codec.decode(_codec.encode(one.state_dict()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.load_state_dict(position)
    assert read(other, 9) == read(one, 9)
    replayed = [str(warning.message) for warning in caught]
    if name == "DataLoader" and taken:
        assert len(replayed) == 1
        assert replayed[0].startswith("'source', 'target': no state_dict, so the batches already used were drawn again")
    else:
        assert not replayed


def test_a_source_with_a_state_is_not_replayed() -> None:
    one, source = domains(source=Counting(100)), Counting(100)
    read(one, 50)
    other = domains(source=source)
    other.load_state_dict(one.state_dict())
    assert read(other, 1) == [{"source": [51]}]
    assert source.replayed == 1


def test_a_position_may_be_loaded_into_a_stream_in_use() -> None:
    batches = domains(a=rows(6), b=listed(4), c=Counting(3))
    read(batches, 2)
    position = batches.state_dict()
    first = read(batches, 5)
    batches.load_state_dict(position)
    assert read(batches, 5) == first


def test_the_seed_reaches_every_loader_and_domains_are_not_shuffled_alike() -> None:
    def order(seed: int, own: int = 0) -> list[dict[str, list[int]]]:
        return read(domains(seed=seed, source=rows(12, seed=own), target=rows(12, seed=own)), 6)

    assert order(0) == order(0)
    assert len({str(found) for found in (order(0), order(1), order(0, own=1))}) == 3
    assert [batch["source"] for batch in order(0)] != [batch["target"] for batch in order(0)]


def test_the_loader_given_is_not_moved() -> None:
    source = rows(4)
    before = source.state_dict()
    read(domains(source=source), 3)
    assert source.state_dict() == before


def test_a_failing_domain_moves_no_other() -> None:
    class Failing:
        fail = False

        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            if self.fail:
                raise RuntimeError("worker exited")
            return torch.zeros(1)

    failing = Failing()
    batches = domains(a=rows(8, shuffle=False), b=listed(8), c=failing)
    read(batches, 1)
    before = batches.state_dict()
    failing.fail = True
    with pytest.raises(RuntimeError, match="worker exited"):
        next(batches)
    assert batches.state_dict() == before
    failing.fail = False
    assert read(batches, 2) == [{"a": [2, 3], "b": [2, 3], "c": [0]}, {"a": [4, 5], "b": [4, 5], "c": [0]}]


def test_a_place_that_cannot_be_saved_says_so() -> None:
    broken = domains(a=Counting(5), b=[torch.zeros(1), "no tensor"])
    read(broken, 1)
    with pytest.raises(tt.TransferError, match="field 'x' is a str"):
        next(broken)
    with pytest.raises(tt.TransferError, match=r"^domain 'a' has yielded a batch that was not used: its place cannot"):
        broken.state_dict()


# What a source may yield.

X, Y = torch.zeros(2, 3), torch.ones(2)
ITEMS: dict[str, tuple[Any, tuple[str | None, ...], set[str]]] = {
    "mapping": ({"image": X, "label": Y}, ("x", "y"), {"image", "label"}),
    "tuple": ((X, Y), ("x", "y"), {"x", "y"}),
    "list": ([X, Y], ("x", "y"), {"x", "y"}),
    "shorter": ((X,), ("x", "y"), {"x"}),
    "tensor": (X, ("x", "y"), {"x"}),
    "array": (np.zeros((2, 3)), ("x",), {"x"}),
    "left out": ((X, Y), ("x", None), {"x"}),
    "renamed": ((Y, X), ("y", "x"), {"x", "y"}),
}


@pytest.mark.parametrize("name", ITEMS)
def test_items_become_fields(name: str) -> None:
    item, fields, wanted = ITEMS[name]
    found = next(domains(source=[item], fields=fields))["source"]
    assert set(found) == wanted
    if "x" in found:
        assert found["x"].shape == X.shape


def test_a_data_loader_and_a_mapping_of_sources() -> None:
    data = DataLoader(TensorDataset(torch.zeros(5, 3), torch.arange(5)), batch_size=2)
    batches = domains({"seed": data, "target": [X]})
    found = [next(batches) for _ in range(4)]
    assert [batch["seed"]["y"].tolist() for batch in found] == [[0, 1], [2, 3], [4], [0, 1]]
    assert all(torch.equal(batch["target"]["x"], X) for batch in found)


BAD: dict[str, tuple[Any, str]] = {
    "no domains": ({}, r"^domains: none given; wanted, for example"),
    "tensor": ({"a": X}, r"^domain 'a' is a Tensor, wanted a loader: a DataLoader, a list of batches, or tt\.l"),
    "mapping": ({"a": {"x": X}}, r"^domain 'a' is a dict, wanted a loader"),
    "dataset": ({"a": 3}, r"^domain 'a' is a int, wanted a loader"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sources(name: str) -> None:
    sources, message = BAD[name]
    with pytest.raises(tt.TransferError, match=message):
        domains(sources)


BAD_BATCHES: dict[str, tuple[Any, str]] = {
    "empty list": ([], r"^domain 'a' is empty: it yields no batch$"),
    "empty DataLoader": (DataLoader(TensorDataset(X[:0])), r"^domain 'a' is empty: it yields no batch$"),
    "empty iterator": (iter(()), r"^domain 'a' is empty: it yields no batch$"),
    "three items": (
        [(X, Y, Y)],
        r"^domain 'a' yields 3 items, fields=\('x', 'y'\) names 2; name them all",
    ),
    "strings": ([{"x": X, "path": ["a", "b"]}], r"^domain 'a', field 'path' is a list, wanted a tensor or an array: "),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches(name: str) -> None:
    source, message = BAD_BATCHES[name]
    batches = domains(a=source)
    with pytest.raises(tt.TransferError, match=message):
        next(batches)


def test_an_iterator_that_ends_says_so() -> None:
    batches = domains(a=(X for _ in range(2)))
    next(batches), next(batches)
    with pytest.raises(tt.TransferError, match=r"^domain 'a' ended after 2 batches and cannot start again"):
        next(batches)


def test_an_iterator_that_has_begun_cannot_go_back() -> None:
    batches = domains(a=(X for _ in range(5)))
    next(batches)
    with pytest.raises(tt.TransferError, match=r"^domain 'a' is an iterator that has begun, and cannot go back"):
        batches.load_state_dict(batches.state_dict())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"source": {"count": 0}}, r"^domains: 'target' is here only; there are: source$"),
        (
            {"source": {"count": 0}, "target": {"count": 0}, "targets": {"count": 0}},
            r"^domains: 'targets' is saved only; did you mean 'target'\?$",
        ),
    ],
)
def test_a_position_of_other_domains_is_refused(saved: Any, message: str) -> None:
    batches = domains(source=[X], target=[X])
    with pytest.raises(tt.TransferError, match=message):
        batches.load_state_dict(saved)


def test_a_cursor_draws_the_same_item_until_it_is_taken() -> None:
    cursor = Cursor("source", [1, 2])
    assert [cursor.draw(), cursor.draw(), cursor.take(), cursor.draw(), cursor.take(), cursor.take()] == [
        1,
        1,
        1,
        2,
        2,
        1,
    ]
    assert cursor.state_dict() == {"count": 3}
