"""`optim.chain`: the parts in turn, and the names of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ttransfer.core._tree as tree
from ttransfer import TransferError, optim, schedules
from ttransfer.core._types import Optimizer


def test_applies_its_parts_in_order(problem: Any, same: Callable[..., None]) -> None:
    params = problem()
    grads = tree.map(torch.cos, params)
    parts = [optim.add_weight_decay(2.0), optim.clip_by_norm(0.1), optim.adam(0.1)]
    opt = optim.chain(*parts)
    got, state = opt.update(grads, opt.init(params), params, optim.hyper_at(opt))
    want, states = grads, {}
    for i, part in enumerate(parts):
        want, states[str(i)] = part.update(want, part.init(params), params, optim.hyper_at(part))
    same(got, want, 0.0)
    same(state, states, 0.0)
    clipped_first, _ = (o := optim.chain(*parts[::-1])).update(grads, o.init(params), params, optim.hyper_at(o))
    assert not torch.allclose(clipped_first["student"]["fc.weight"], got["student"]["fc.weight"])


def test_is_associative_and_has_a_unit(problem: Any, train: Any, same: Callable[..., None]) -> None:
    a, b, c = optim.clip_by_norm(0.7), optim.add_weight_decay(0.1), optim.adam(0.05)
    want = train(optim.chain(a, b, c), problem(), 10)
    for nested in (
        optim.chain(optim.chain(a, b), c),
        optim.chain(a, optim.chain(b, c)),
        optim.chain(optim.chain(), a, b, c),
    ):
        assert nested.hyper == optim.chain(a, b, c).hyper
        same(train(nested, problem(), 10), want, 0.0)


def test_named_parts_prefix_their_numbers(problem: Any) -> None:
    opt = optim.chain(
        optim.clip_by_norm(1.0), decay=optim.add_weight_decay(0.1), last=optim.sgd(schedules.cosine(0.1, 9))
    )
    assert list(opt.hyper) == ["max_norm", "decay.weight_decay", "last.lr", "last.weight_decay"]
    assert list(opt.init(problem())) == ["0", "decay", "last"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: optim.chain(optim.sgd(1.0), optim.sgd(0.1)), "parts '0' and '1' both have 'lr'; name a part"),
        (
            lambda: optim.chain(optim.partition({"b": optim.sgd(1.0)}, {"b": ".*"}), b=optim.sgd(1.0)),
            "both have 'b.lr'",
        ),
        (
            lambda: optim.chain(
                optim.chain(x=Optimizer(dict, tuple, {"lr": schedules.constant(1.0)})),
                x=Optimizer(dict, tuple, {"lr.value": 1.0}),
            ),
            "both have 'x.lr.value'",
        ),
    ],
)
def test_a_clash_of_numbers_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(TransferError, match=says):
        make()
