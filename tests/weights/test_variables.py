"""A union-find over labels."""

from __future__ import annotations

import networkx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttransfer.weights._variables import CONSTANT, POSITION, Variables, compact, varying


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_classes_are_those_of_a_graph(pairs: list[tuple[int, int]], parts: int) -> None:
    variables = Variables()
    variables.fresh(30)
    for part in range(parts):
        some = torch.tensor(pairs[part::parts], dtype=torch.int64).reshape(-1, 2)
        variables.same(some[:, 0], some[:, 1])
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(31))
    wanted = {label: min(part) for part in networkx.connected_components(graph) for label in part}
    assert variables.of(torch.arange(31)).tolist() == [wanted[label] for label in range(31)]


def test_constants_are_nobodys() -> None:
    variables = Variables()
    a = variables.fresh(2, 3)
    assert a.tolist() == [[1, 2, 3], [4, 5, 6]]
    variables.same(a[0], torch.tensor([CONSTANT, CONSTANT, 6]))
    assert variables.of(torch.tensor([CONSTANT, 1, 3, 6])).tolist() == [CONSTANT, 1, 3, 3]
    variables.pin(a[:, 2])
    assert variables.of(a).tolist() == [[1, 2, POSITION], [4, 5, POSITION]]


def test_labels_that_do_not_differ_are_there_once() -> None:
    channels = torch.arange(4)[:, None].expand(2, 4, 3)
    assert compact(channels).shape == (1, 4, 1)
    assert compact(channels.contiguous()).shape == (1, 4, 1)
    assert varying(compact(channels)) == (1,)
