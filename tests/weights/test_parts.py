"""Which tensor is in which part: patterns, names, modules, ties."""

from __future__ import annotations

import pytest
import torch

from ttransfer._errors import TransferError
from ttransfer.weights import chain
from ttransfer.weights._parts import Part, bare_names, shared_out, tied

NAMES = (
    "token",
    "stem.weight",
    "stem.bn.running_mean",
    "body.0.w",
    "body.0.n.count",
    "body.mask",
    "body.1.w",
    "head.w",
)


def divide(*fits: str | tuple[str, ...], names: tuple[str, ...] = NAMES) -> list[list[str]]:
    src = {name: torch.zeros(1) for name in names}
    bare = bare_names(src)
    parts = [Part(str(i), one, chain()) for i, one in enumerate(fits)]
    return [list(share.src) for share in shared_out("test", parts, src, {}, bare, tied(src, bare))]


def test_a_name_goes_with_those_of_its_module_or_of_the_nearest_around_it() -> None:
    found = divide(("token", "stem.weight"), ("body.0.w", "body.1.w"), ("head.w",))
    assert found == [
        ["token", "stem.weight", "stem.bn.running_mean"],
        ["body.0.w", "body.0.n.count", "body.mask", "body.1.w"],
        ["head.w"],
    ]


def test_where_the_module_is_of_two_layers_nothing_is_guessed() -> None:
    with pytest.raises(TransferError, match=r"test: 'body\.mask', one of 1 source tensors, is in no part$"):
        divide(("token", "stem.weight"), ("body.0.w",), ("body.1.w",), ("head.w",))
    assert divide(("token", "stem.weight"), ("body.0.w",), ("body.1.w",), "body.mask", ("head.w",))[3] == ["body.mask"]


def test_patterns_have_no_modules() -> None:
    assert divide("stem.*|token", "body.*", ".*")[2] == ["head.w"]
    with pytest.raises(
        TransferError, match=r"'head\.w', one of 1 source tensors, is in no part; a last part '\.\*' take"
    ):
        divide("stem.*|token", "body.*")


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(TransferError, match=r"test: '0': there is no 'stem\.wait'; did you mean 'stem\.weight'\?"):
        divide(("stem.wait",), ".*")


def test_only_of_a_pool_are_names_cut() -> None:
    a = torch.zeros(1)
    assert bare_names({"x/a.b": a, "y/c/d": a}) == {"x/a.b": "a.b", "y/c/d": "c/d"}
    assert bare_names({"x/a.b": a, "c": a}) == {"x/a.b": "x/a.b", "c": "c"}


def test_ties_are_those_of_every_checkpoint() -> None:
    a, b, c = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    src = {"x/e": a, "x/h": a.view(1), "x/o": a, "y/e": b, "y/h": b, "y/o": c}
    assert tied(src, bare_names(src)) == [["e", "h"]]
    src = {"e": a.to("meta"), "h": a.to("meta"), "n": torch.zeros(0), "m": torch.zeros(0)}
    assert tied(src, bare_names(src)) == []
