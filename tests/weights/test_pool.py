"""Checkpoints side by side, and a map within one of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.pools import tied
from ttransfer._errors import TransferError
from ttransfer.core._maps import Made
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import chain, drop, pool, rename, within
from ttransfer.weights._pool import members

A = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
B = {"head.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2)}
BOTH = pool(a=A, b=B)
MOVE = within("b", rename({"head": "fc"}))
TRIALS = (weight_map_trial(MOVE, BOTH, pool(a=A, b=A), name="within", verbatim=True, examples=4),)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_a_pool_keeps_what_it_is_given() -> None:
    assert list(BOTH) == ["a/fc.weight", "a/fc.bias", "b/head.weight", "b/head.bias"]
    split = members("it", BOTH)
    assert list(split) == ["a", "b"]
    assert all(split["a"][name] is A[name] for name in A)
    assert list(pool({"b": B}, a=A)) == ["b/head.weight", "b/head.bias", "a/fc.weight", "a/fc.bias"]


def test_within_changes_one() -> None:
    assert list(MOVE.apply(BOTH, {})) == ["a/fc.weight", "a/fc.bias", "b/fc.weight", "b/fc.bias"]
    plan = chain(within("a", drop("fc.bias")), MOVE).plan(BOTH, {})
    assert plan.made["b/fc.weight"] == Made(("b/head.weight",))
    assert plan.made["a/fc.weight"] == Made(("a/fc.weight",))
    assert plan.unused == {"a/fc.bias": "dropped"}


def test_mistakes_are_named() -> None:
    with pytest.raises(TransferError, match=r"within: the pool has no 'bb'; did you mean|within: the pool has no 'bb'"):
        within("bb", rename({"head": "fc"})).apply(BOTH, {})
    with pytest.raises(TransferError, match=r"it: 'fc.weight' is of no checkpoint; put several side by side"):
        members("it", A)
    with pytest.raises(TransferError, match="pool: 'a' is given twice"):
        pool({"a": A}, a=A)
    with pytest.raises(TransferError, match="pool: 'a/b' cannot name a checkpoint"):
        pool({"a/b": A})
    with pytest.raises(TransferError, match="pool: 'b' has no tensors"):
        pool(a=A, b={})
    with pytest.raises(TransferError, match="pool: no checkpoints"):
        pool()


def test_tied_weights_are_one_tensor() -> None:
    """A state dict has a tensor of its own for each name, and in a graph none tells that they share their memory."""
    net = tied(0)
    both = pool(a=net.state_dict(), b=tied(1).state_dict())
    assert both["a/table.weight"] is both["a/head.weight"]
    assert both["a/table.weight"] is not both["b/table.weight"]
    alone = pool(a={"w": torch.ones(2), "v": torch.ones(2)}, b=dict(net.named_parameters()))
    assert alone["a/w"] is not alone["a/v"]
    assert alone["b/table.weight"] is net.get_parameter("table.weight")
