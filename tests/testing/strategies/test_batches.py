"""Batches that a step takes: domains of unequal size, labels where they are wanted, fields of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.testing import strategies as tts

Draws = Callable[..., list[Any]]
Smallest = Callable[..., Any]


def sizes(batch: dict[str, dict[str, torch.Tensor]]) -> list[int]:
    return [len(fields["x"]) for fields in batch.values()]


def test_domains_and_fields(draws: Draws) -> None:
    for batch in draws(tts.batches()):
        assert {domain: list(fields) for domain, fields in batch.items()} == {"source": ["x", "y"], "target": ["x"]}
        (x, y), n = batch["source"].values(), sizes(batch)[0]
        assert (x.shape, x.dtype) == ((n, 2), torch.float64)
        assert (y.shape, y.dtype) == ((n,), torch.int64)
        assert set(y.tolist()) <= {0, 1, 2}


def test_domains_are_unequal_more_often_than_not_and_all_sizes_come(draws: Draws) -> None:
    seen = [sizes(batch) for batch in draws(tts.batches(rows=(2, 4)))]
    assert {n for pair in seen for n in pair} == {2, 3, 4}
    assert len({tuple(pair) for pair in seen}) >= 8
    assert sum(n != m for n, m in seen) > 50
    assert {tuple(sizes(batch)) for batch in draws(tts.batches(rows=(3, 3)), 10)} == {(3, 3)}


def test_families_of_inputs_and_labels(draws: Draws) -> None:
    def of(**options: Any) -> list[Any]:
        return draws(tts.batches(rows=(4, 6), **options), 40)

    assert all(batch["target"]["x"].unique(dim=0).shape[0] == 1 for batch in of(x="collapsed"))
    assert all(2 * (b["source"]["y"] == 0).sum() > len(b["source"]["y"]) for b in of(y="long-tailed"))
    assert all(b["source"]["y"].unique().numel() == 1 for b in of(y="one class"))
    ignored = [b["source"]["y"] == 255 for b in of(ignore_index=255)]
    assert not any(x.all() for x in ignored)
    assert sum(bool(x.any()) for x in ignored) > 20


def test_labeled_domains(draws: Draws) -> None:
    names = ["a", "b", "c"]
    (one,) = draws(tts.batches(names, labeled=["b", "c"], shape=(1, 3, 3)), 1)
    assert {name: list(fields) for name, fields in one.items()} == {"a": ["x"], "b": ["x", "y"], "c": ["x", "y"]}
    assert one["b"]["x"].shape[1:] == (1, 3, 3)
    (none,) = draws(tts.batches(labeled=()), 1)
    assert [list(fields) for fields in none.values()] == [["x"], ["x"]]
    alone = tts.batches(["only"], shape=())
    assert all(batch["only"]["x"].shape == batch["only"]["y"].shape for batch in draws(alone, 5))


def test_fields_of_ones_own(draws: Draws) -> None:
    fields = {
        "view": lambda n: tts.features((n, 2), family="zero"),
        "target.scores": lambda n: tts.logits((n, 3)),
        "source.y": lambda n: tts.labels((n, 2, 2), classes=3),
    }
    for batch in draws(tts.batches(fields=fields), 20):
        n, m = sizes(batch)
        found = {f"{domain}.{name}": x.shape for domain, part in batch.items() for name, x in part.items()}
        assert found == {
            "source.x": (n, 2),
            "source.y": (n, 2, 2),
            "source.view": (n, 2),
            "target.x": (m, 2),
            "target.view": (m, 2),
            "target.scores": (m, 3),
        }


def test_they_shrink_to_one_row_a_domain_and_zeros(smallest: Smallest) -> None:
    def plain(batch: dict[str, dict[str, torch.Tensor]]) -> Any:
        return {domain: {name: x.tolist() for name, x in fields.items()} for domain, fields in batch.items()}

    assert plain(smallest(tts.batches())) == {"source": {"x": [[0, 0]], "y": [0]}, "target": {"x": [[0, 0]]}}
    unequal = smallest(tts.batches(shape=(1,)), lambda b: len(set(sizes(b))) == 2)
    assert plain(unequal) == {"source": {"x": [[0]], "y": [0]}, "target": {"x": [[0], [0]]}}
    images = smallest(tts.batches(shape=(1, 3, 3), rows=(1, 20)), lambda b: b["target"]["x"].any())
    assert sizes(images) == [1, 1]
    assert images["target"]["x"].sum() == 0.25
    ignored = smallest(tts.batches(ignore_index=-100), lambda b: (b["source"]["y"] < 0).any())
    assert ignored["source"]["y"].tolist() == [0, -100]


@given(tts.batches(shape=(3,), ignore_index=-100, y="long-tailed"))
def test_a_step_takes_what_is_drawn(batch: Any) -> None:
    """The step's loss is what the module gives on the batch."""
    net = nn.Linear(3, 3, dtype=torch.float64)
    step = tt.step(
        {"net": tt.functional(net)},
        tt.optim.sgd(0.0),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
        entropy=tt.term(tt.losses.entropy, "net(target)", weight=0.5),
    )
    _, logs = step.update(step.init(batch, seed=0), batch)
    probabilities = net(batch["target"]["x"]).softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    expected = F.cross_entropy(net(batch["source"]["x"]), batch["source"]["y"]) + 0.5 * entropy
    torch.testing.assert_close(logs["loss"], expected.detach(), rtol=0, atol=1e-12)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no domain": (
        lambda: tts.batches(()),
        "batches: domains must be different names such as ('source', 'target'), got ()",
    ),
    "a word": (lambda: tts.batches("source"), "must be different names such as ('source', 'target'), got 'source'"),
    "a name twice": (lambda: tts.batches(("a", "a")), "must be different names such as"),
    "no name": (lambda: tts.batches(("a.b",)), "must be different names such as ('source', 'target'), got ('a.b',)"),
    "labels nowhere": (lambda: tts.batches(labeled=["sourec"]), "labeled: no domain 'sourec'; did you mean 'source'?"),
    "a word for names": (
        lambda: tts.batches(labeled="source"),
        "labeled must be names such as ('source',), got 'source'",
    ),
    "a nameless field": (
        lambda: tts.batches(fields={"source.": lambda n: tts.grid((n,))}),
        "batches: a field is named such as 'view' or 'source.view', got 'source.'",
    ),
    "no rows": (
        lambda: tts.batches(rows=(0, 4)),
        "batches: rows must be the fewest and the most, from 1 on, got (0, 4)",
    ),
    "fewer than the fewest": (lambda: tts.batches(rows=(4, 2)), "the fewest and the most, from 1 on, got (4, 2)"),
    "one number": (lambda: tts.batches(rows=4), "the fewest and the most, from 1 on, got 4"),
    "no shape": (lambda: tts.batches(shape=(-1,)), "batches: shape must be whole numbers from 0, got (-1,)"),
    "no such x": (lambda: tts.batches(x="hard"), "batches: x: no family 'hard'; there are: collapsed, constant"),
    "no such y": (lambda: tts.batches(y="long tailed"), "labels: no family 'long tailed'; did you mean 'long-tailed'"),
    "no classes": (lambda: tts.batches(classes=0), "labels: classes must be a whole number from 1 on, got 0"),
    "a field nowhere": (
        lambda: tts.batches(fields={"soruce.v": lambda n: tts.grid((n,))}),
        "batches: field 'soruce.v': no domain 'soruce'; did you mean 'source'?",
    ),
    "a strategy as field": (
        lambda: tts.batches(fields={"v": tts.grid((3,))}),
        "batches: field 'v' must be a function of the number of rows, got",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_are_refused_before_anything_is_drawn(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TransferError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("drawn", [torch.zeros(9, 2), torch.tensor(1.0), 3])
def test_a_field_of_another_number_of_rows_is_refused(drawn: Any, draws: Draws) -> None:
    with pytest.raises(
        TransferError, match=r"batches: field 'source.v' must be a tensor of \d rows, the strategy drew"
    ):
        draws(tts.batches(fields={"v": lambda n: st.just(drawn)}))
