"""Which order names can stand in, and what two lists side by side tell: against slow searches, and over random nets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.core._types import Params
from ttransfer.weights import chain, drop, match, match_by_order
from ttransfer.weights._order import by_order, disorder, kinds

few = settings(max_examples=150)


def tensors(*names: str, shape: tuple[int, ...] = (2,)) -> Params:
    return {name: torch.zeros(shape) for name in names}


# What a state dict may look like.


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["weight"],
        ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean"],
        ["cls_token", "patch.weight", "blocks.9.a.weight", "blocks.9.b.weight", "blocks.10.a.weight", "norm.weight"],
        ["conv1.weight", "bn1.weight", "conv2.weight", "bn2.weight", "a.weight"],
        ["0.weight", "2.weight", "10.weight"],  # alphabetical or not, numbers have one order
        ["1.weight", "2.weight", "3.weight"],
        ["mixed.branch5x5_1.w", "mixed.branch5x5_2.w", "mixed.branch3x3_1.w", "mixed.branch3x3_2.w"],
    ],
)
def test_an_order_of_definition(names: list[str]) -> None:
    assert disorder(tensors(*names)) == ""


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["a.bias", "a.weight", "b.bias"], "the names are in alphabetical order, as in a sorted file"),
        (["a.weight", "b.weight"], "the names are in alphabetical order, as in a sorted file"),
        (["b.0.weight", "a.weight", "b.1.weight"], "'b' is in two places"),
        (["b.0.c.weight", "b.1.c.weight", "b.0.d.weight"], "'b.0' is in two places"),
        (["b.1.weight", "b.0.weight"], "'b.0' comes after 'b.1'"),
        (["layers.10.weight", "layers.11.weight", "layers.9.weight"], "'layers.9' comes after 'layers.11'"),
        (["up4.weight", "up3.weight"], "'up3' comes after 'up4'"),
        (["b.conv.weight", "b.scale"], "'b.scale' comes after 'b.conv'"),
        (["conv.weight", "token"], "'token' comes after 'conv'"),
    ],
)
def test_no_order_of_definition(names: list[str], why: str) -> None:
    assert disorder(tensors(*names)) == why


@pytest.mark.parametrize(
    "net",
    [
        nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        nn.Transformer(8, 2, 12, 1, 8, batch_first=True),
        nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(12))),
        nn.ModuleDict({"b": nn.MultiheadAttention(8, 2), "a": nn.PReLU(3)}),
    ],
    ids=lambda net: type(net).__name__,
)
def test_state_dicts_are_in_order_and_sorted_ones_are_not(net: nn.Module) -> None:
    state = net.state_dict()
    assert disorder(state) == ""
    if list(state) != sorted(state):
        assert disorder(dict(sorted(state.items()))) != ""


def test_a_file_is_sorted_whole_or_for_each_dtype() -> None:
    mixed = {"a.bias": torch.zeros(1), "a.steps": torch.zeros(1).long(), "a.weight": torch.zeros(1)}
    assert disorder(mixed) == "the names are in alphabetical order, as in a sorted file"
    counts, weights = tensors("steps"), tensors("a.weight", "b.weight")
    counts = {name: x.long() for name, x in counts.items()}
    assert disorder({**counts, **weights}) == "the names are in alphabetical order, as in a sorted file"
    assert disorder({**counts, **dict(reversed(weights.items()))}) == ""
    assert disorder({**tensors("steps"), **weights}) == ""


# What is certain: every longest common subsequence has it.


def slow_pairs(a: Sequence[str], b: Sequence[str]) -> set[tuple[int, int]]:
    """The pairs that all longest common subsequences have, by trying all."""
    for count in range(min(len(a), len(b)), 0, -1):
        found = [
            set(zip(i, j, strict=True))
            for i in itertools.combinations(range(len(a)), count)
            for j in itertools.combinations(range(len(b)), count)
            if all(a[x] == b[y] for x, y in zip(i, j, strict=True))
        ]
        if found:
            return set.intersection(*found)
    return set()


@few
@given(st.text("xyz", max_size=6), st.text("xyz", max_size=6))
def test_only_what_every_longest_alignment_has_is_certain(a: str, b: str) -> None:
    src, like = tensors(*(f"s{i}.{x}" for i, x in enumerate(a))), tensors(*(f"t{j}.{x}" for j, x in enumerate(b)))
    pairs, doubtful = by_order(src, like, {}, src, like)
    sources, targets = list(src), list(like)
    wanted = {(targets[j], sources[i]) for i, j in slow_pairs(a, b)}
    assert {(target, source) for target, (source, _) in pairs.items()} == wanted
    for target, some in doubtful.items():
        assert all(source.rpartition(".")[2] == target.rpartition(".")[2] for source in some)
        assert target not in pairs


def test_a_tie_of_three_is_no_certainty() -> None:
    # p s, y s: what begins earliest and what begins latest both end with the last s; the first does as well.
    src, like = tensors("a.p", "b.s", "c.y", "d.s"), tensors("m.y", "n.p", "o.s")
    pairs, doubtful = by_order(src, like, {}, src, like)
    assert pairs == {}
    assert set(doubtful["o.s"]) == {"b.s", "d.s"}


def test_long_lists_are_no_trouble() -> None:
    src = tensors(*(f"old.{i}.{leaf}" for i in range(5000) for leaf in ("weight", "bias", "steps")))
    like = tensors(*(f"new.{i}.{leaf}" for i in range(5000) for leaf in ("weight", "bias")))
    pairs, doubtful = by_order(src, like, {}, src, like)
    assert len(pairs) == 10000
    assert doubtful == {}
    assert by_order(src, {"first.weight": torch.zeros(2), **like}, {}, src, like)[0] == pairs


def test_what_is_made_already_is_not_crossed() -> None:
    src, like = tensors("0.weight", "2.weight", "4.weight"), tensors("0.weight", "1.weight", "2.weight")
    made = {"0.weight": "0.weight", "2.weight": "2.weight"}
    assert by_order(src, like, made, tensors("4.weight"), tensors("1.weight")) == ({}, {})
    there = tensors("0.weight", "2.weight", "9.weight")
    pairs, _ = by_order(src, there, made, tensors("4.weight"), tensors("9.weight"))
    assert pairs == {"9.weight": ("4.weight", "by order: 1 of 1")}
    # Names that contradict the order say that there is none.
    assert by_order(src, dict(reversed(there.items())), made, tensors("4.weight"), tensors("9.weight")) == ({}, {})


def test_kinds() -> None:
    assert kinds({**tensors("a.w", "b.w"), **tensors("c.w", shape=(3,))}) == {
        ("w", (2,)): ["a.w", "b.w"],
        ("w", (3,)): ["c.w"],
    }


# Random nets, named twice.


class Net(NamedTuple):
    """A checkpoint, a target, and which is which."""

    src: Params
    like: Params
    truth: dict[str, str]


PARTS = {
    "linear": {"weight": (4, 4), "bias": (4,)},
    "bare": {"weight": (4, 4)},
    "norm": {"weight": (4,), "bias": (4,)},
    "batchnorm": {"weight": (4,), "bias": (4,), "running_mean": (4,), "running_var": (4,), "num_batches_tracked": ()},
    "conv": {"weight": (4, 4, 1, 1)},
    "wide": {"weight": (8, 4), "bias": (8,)},
    "narrow": {"weight": (4, 8), "bias": (4,)},
}
# Words of either side alone: a module has the same name on both sides, or one that the other side does not have.
OLD = [f"{a}{b}" for a in ("stem", "body", "attn", "out") for b in ("", "_old", "_pre", "_x")]
NEW = [f"{a}{b}" for a in ("conv", "norm", "mlp", "head") for b in ("", "_new", "_post", "_y")]
parts = st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=7)


def numbers(draw: st.DrawFn, count: int) -> list[str]:
    """Positions, with gaps for layers without parameters."""
    gaps = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    return [str(i - 1) for i in itertools.accumulate(gaps)]


def titles(draw: st.DrawFn, count: int) -> tuple[list[str], list[str]]:
    """Name modules on both sides: by numbers, which may coincide by accident, or by words, which do not."""
    style = draw(st.sampled_from(["numbers", "words", "some kept", "blocks", "numbers and words"]))
    old = draw(st.permutations(OLD).map(lambda words: words[:count]))
    new = draw(st.permutations(NEW).map(lambda words: words[:count]))
    if style == "numbers":
        return numbers(draw, count), numbers(draw, count)
    if style == "words":
        return old, new
    if style == "numbers and words":
        return [f"net.{name}" for name in numbers(draw, count)], new
    if style == "blocks":
        start = draw(st.integers(8, 11))
        return [f"body.{start + i}.layer" for i in range(count)], [f"blocks.{i}.fc" for i in range(count)]
    kept = draw(st.sets(st.integers(0, count - 1)))
    return old, [old[i] if i in kept else name for i, name in enumerate(new)]


@st.composite
def nets(draw: st.DrawFn) -> Net:
    found = draw(parts)
    src, like, truth = dict[str, Tensor](), dict[str, Tensor](), dict[str, str]()
    for part, old, new in zip(found, *titles(draw, len(found)), strict=True):
        for leaf, shape in PARTS[part].items():
            dtype = torch.int64 if leaf.startswith("num_") else torch.float32
            src[f"{old}.{leaf}"] = torch.empty(shape, dtype=dtype)
            like[f"{new}.{leaf}"] = torch.empty(shape, dtype=dtype)
            truth[f"{new}.{leaf}"] = f"{old}.{leaf}"
    return Net(src, like, truth)


def wrong(net: Net, load: WeightMap | None = None) -> list[str] | None:
    """Targets that get another's tensor, without a word; None if the map refuses."""
    try:
        new = (load or match()).apply(net.src, net.like)
    except TransferError:
        return None
    return [name for name, source in net.truth.items() if new[name] is not net.src[source]]


@settings(max_examples=400)
@given(nets())
def test_the_same_net_in_the_same_order_is_never_filled_wrongly(net: Net) -> None:
    assert not wrong(net)


@few
@given(nets())
def test_order_is_all_it_takes(net: Net) -> None:
    assert wrong(net, match_by_order()) == []
    if not (set(net.src) & set(net.like) or disorder(net.src) or disorder(net.like)):
        assert wrong(net) == []


@few
@given(nets())
def test_sorted_files_are_never_taken_for_ordered_ones(net: Net) -> None:
    assert not wrong(net._replace(src=dict(sorted(net.src.items()))))
    # As safetensors has them.
    assert not wrong(net._replace(src=dict(sorted(net.src.items(), key=lambda one: (-one[1].itemsize, one[0])))))


@few
@given(nets(), st.randoms(use_true_random=False))
def test_shuffled_files_are_right_or_refused(net: Net, chance: Random) -> None:
    names = list(net.src)
    chance.shuffle(names)
    shuffled = net._replace(src={name: net.src[name] for name in names})
    # One that still may be in order is believed.
    if disorder(shuffled.src):
        assert not wrong(shuffled)


def cases_with_one_more(net: Net, draw: Callable[..., Any]) -> Iterator[Net]:
    """One module more on either side, anywhere."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in net.like))
    place, part = draw(st.integers(0, len(modules))), draw(st.sampled_from(sorted(PARTS)))
    for side in ("src", "like"):
        own = net.src if side == "src" else net.like
        order = list(dict.fromkeys(name.rpartition(".")[0] for name in own))
        found: Params = {}
        for i, module in enumerate([*order, ""]):
            if i == place:
                found |= {f"extra.{leaf}": torch.empty(shape) for leaf, shape in PARTS[part].items()}
            found |= {name: x for name, x in own.items() if name.rpartition(".")[0] == module}
        yield net._replace(**{side: found})


@few
@given(nets(), st.data())
def test_one_module_more_is_said(net: Net, data: st.DataObject) -> None:
    more, fuller = cases_with_one_more(net, data.draw)
    assert wrong(more) is None
    assert wrong(fuller) is None
    assert not wrong(more, chain(drop(r"extra\..*"), match()))
    assert not wrong(fuller, match(allow=r"extra\..*"))


@few
@given(st.permutations(["query", "key", "value", "out"]), st.integers(1, 3))
def test_siblings_in_another_order_are_not_mixed_up(order: list[str], blocks: int) -> None:
    """Such as BART's k, v, q: all of one shape, so that nothing but their names tells them apart."""
    src = tensors(*(f"model.{i}.attn.{part}.weight" for i in range(blocks) for part in order), shape=(4, 4))
    here = sorted(order, reverse=True)
    like = tensors(*(f"net.{i}.attention.{part}.weight" for i in range(blocks) for part in here), shape=(4, 4))
    truth = {name: name.replace("net.", "model.").replace("attention", "attn") for name in like}
    assert not wrong(Net(src, like, truth))
    assert not wrong(Net(src, like, truth), match_by_order())
