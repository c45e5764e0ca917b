"""Chaining: identity, associativity, and a plan that goes from end to end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad

from ttransfer._errors import TransferError
from ttransfer.core._maps import Made, WeightMap
from ttransfer.core._types import Params
from ttransfer.weights import chain, drop, match, rename

SOURCE = {
    "module.conv.weight": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
    "module.head.weight": torch.ones(1000, 4),
    "extra": torch.ones(1),
}
LIKE = {"stem.weight": torch.zeros(4, 3), "fc.weight": torch.zeros(10, 4), "scale": torch.full((2,), 7.0)}
STRIP = rename(r"module\.(.*)", r"\1")
MOVE = rename({"conv": "stem", "head": "fc"})
LEAVE = match(allow="fc.*|scale")
MOVE_ON = rename({"conv": "stem"})
TAKE = match(allow="fc.*|scale|extra")


def test_identity() -> None:
    assert chain().apply(SOURCE, LIKE) == SOURCE
    assert chain().plan(SOURCE, LIKE).made == {name: Made((name,)) for name in SOURCE}
    assert chain(STRIP).plan(SOURCE, LIKE) == STRIP.plan(SOURCE, LIKE)
    assert chain(STRIP).apply(SOURCE, LIKE) == STRIP.apply(SOURCE, LIKE)


def test_apply_is_one_after_another() -> None:
    new = chain(STRIP, MOVE, TAKE).apply(SOURCE, LIKE)
    by_hand = TAKE.apply(MOVE.apply(STRIP.apply(SOURCE, LIKE), LIKE), LIKE)
    assert list(new) == list(LIKE)
    assert all(new[name] is by_hand[name] for name in LIKE)
    assert new["stem.weight"] is SOURCE["module.conv.weight"]
    assert new["scale"] is LIKE["scale"]


def test_plan_goes_from_end_to_end() -> None:
    plan = chain(STRIP, MOVE, TAKE).plan(SOURCE, LIKE)
    assert plan.made == {"stem.weight": Made(("module.conv.weight",))}
    assert plan.unused == {
        "module.head.weight": "allowed, (1000, 4) for a target of (10, 4)",
        "extra": "allowed",
    }
    assert plan.kept == ("fc.weight", "scale")
    assert (plan.missing, plan.mismatched) == ((), {})


def test_plan_says_which_map_lost_a_tensor_and_all_that_was_done_to_one() -> None:
    half = {name: x.half() for name, x in SOURCE.items()}
    plan = chain(STRIP, drop("head.*"), MOVE_ON, match(allow="fc.*|scale|extra")).plan(half, LIKE)
    assert plan.made == {"stem.weight": Made(("module.conv.weight",), "float16 -> float32")}
    assert plan.unused == {"module.head.weight": "dropped", "extra": "allowed"}


@pytest.mark.parametrize("maps", [(STRIP,), (STRIP, MOVE), (STRIP, MOVE, TAKE), (STRIP, MOVE, TAKE, TAKE)])
def test_plan_agrees_with_apply(maps: tuple[WeightMap, ...]) -> None:
    whole = chain(*maps)
    plan, new = whole.plan(SOURCE, LIKE), whole.apply(SOURCE, LIKE)
    for target, one in plan.made.items():
        assert new[target] is SOURCE[one.sources[0]]
    assert {name for name in new if any(new[name] is s for s in SOURCE.values())} == set(plan.made)
    assert set(plan.unused) == set(SOURCE) - {one.sources[0] for one in plan.made.values()}


def test_association_is_free() -> None:
    left, right = chain(chain(STRIP, MOVE), TAKE), chain(STRIP, chain(MOVE, TAKE))
    assert left.plan(SOURCE, LIKE) == right.plan(SOURCE, LIKE) == chain(STRIP, MOVE, TAKE).plan(SOURCE, LIKE)
    first, second = left.apply(SOURCE, LIKE), right.apply(SOURCE, LIKE)
    assert all(first[name] is second[name] for name in LIKE)


def test_renaming_there_and_back() -> None:
    there, back = rename({"module": "net"}), rename({"net": "module"})
    assert list(chain(there, back).apply(SOURCE, LIKE)) == list(SOURCE)
    assert chain(there, back).plan(SOURCE, LIKE) == chain().plan(SOURCE, LIKE)


def test_target_tensors_that_stay_have_no_origin() -> None:
    # After TAKE, "scale" is the target's own: a source of that name must not be taken for its origin.
    plan = chain(rename({"extra": "scale"}), rename(r"module\.(.*)", r"\1"), MOVE, LEAVE, LEAVE).plan(SOURCE, LIKE)
    assert plan.made == {"stem.weight": Made(("module.conv.weight",))}
    assert plan.kept == ("fc.weight", "scale")


def test_gradient_goes_through() -> None:
    def loss(src: Params) -> Tensor:
        return chain(STRIP, MOVE, TAKE).apply(src, LIKE)["stem.weight"].square().sum()

    slope = grad(loss)(SOURCE)
    torch.testing.assert_close(slope["module.conv.weight"], 2 * SOURCE["module.conv.weight"])


def test_mistakes_inside_are_named() -> None:
    for use in (chain(STRIP, rename({"con": "stem"}), TAKE).apply, chain(STRIP, rename({"con": "stem"}), TAKE).plan):
        with pytest.raises(TransferError, match="rename: the source has no 'con'"):
            use(SOURCE, LIKE)
    with pytest.raises(TransferError, match="match: 1 of 3 target tensors get nothing"):
        chain(STRIP, MOVE, match(allow="fc.*|extra")).apply(SOURCE, LIKE)
