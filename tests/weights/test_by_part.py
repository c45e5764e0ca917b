"""A map for each part: it is what that map alone makes of that part."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import average, by_part, cast, chain, dare, drop, match, pool, rename, slerp, wise_ft


def net(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Linear(3, 2)).double()
    new = {name: x.detach() for name, x in made.state_dict().items()}
    return {**new, "1.running_var": torch.rand_like(new["1.running_var"]) + 0.1}


POOL = pool(base=net(0), tuned=net(1))
MIXED = by_part({r"0\..*": slerp(0.3), r".*bias|2.*": wise_ft(0.8), ".*": average({"base": 0.25, "tuned": 0.75})})


def slow(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    new = {}
    for name in (key.removeprefix("base/") for key in src if key.startswith("base/")):
        a, b = src[f"base/{name}"], src[f"tuned/{name}"]
        if name.startswith("0."):
            angle = torch.acos((a * b).sum() / a.norm() / b.norm())
            new[name] = (torch.sin(0.7 * angle) * a + torch.sin(0.3 * angle) * b) / torch.sin(angle)
        elif not a.is_floating_point():
            new[name] = a
        else:
            t = 0.8 if name == "1.bias" or name.startswith("2.") else 0.75
            new[name] = a + t * (b - a)
    return new


PLAIN = by_part({"fc.*|head.*": chain(rename({"fc": "head"}), match()), ".*": chain(cast(torch.float64), match())})
SRC = {"conv.weight": torch.rand(2, 3), "conv.bias": torch.rand(2), "fc.weight": torch.rand(4, 2)}
LIKE = {
    "conv.weight": torch.rand(2, 3).double(),
    "conv.bias": torch.rand(2).double(),
    "head.weight": torch.rand(4, 2).double(),
}
TRIALS = (
    weight_map_trial(MIXED, POOL, net(2), reference=slow, name="a pool", examples=4),
    weight_map_trial(PLAIN, SRC, LIKE, verbatim=True, name="a checkpoint", examples=4),
    weight_map_trial(
        by_part({"2.*": dare(0.2, seed=3), ".*": chain()}), POOL, {}, verbatim=False, name="to a pool", examples=4
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("map", [average(), wise_ft(0.3), chain(dare(0.5), wise_ft(0.3)), dare(0.5)])
def test_one_map_for_all_parts_is_that_map(map: tt.WeightMap) -> None:
    """For maps that treat each tensor by itself."""
    whole, parts = map.apply(POOL, {}), by_part({"0.*": map, ".*weight": map, ".*": map}).apply(POOL, {})
    assert list(parts) == list(whole)
    assert all(torch.equal(parts[name], x) for name, x in whole.items())


def test_the_plan_says_which_part() -> None:
    plan = MIXED.plan(POOL, net(2))
    assert list(plan.made) == list(net(0))
    assert plan.made["0.weight"] == tt.Made(("base/0.weight", "tuned/0.weight"), r"0\..*: interpolated along the arc")
    assert plan.made["1.num_batches_tracked"] == tt.Made(("base/1.num_batches_tracked",))
    assert plan.unused == {"tuned/1.num_batches_tracked": "integers are those of 'base'"}
    assert plan.missing == ()
    part = by_part({"0.*": drop("0.bias"), ".*": match(allow="2.*")})
    src = {name: x for name, x in net(0).items() if not name.startswith("2")}
    plan = part.plan(src, net(2))
    assert plan.missing == ("0.bias",)
    assert plan.kept == ("2.weight", "2.bias")
    assert plan.unused == {"0.bias": "dropped"}
    assert list(part.apply(src, net(2))) == [name for name in net(2) if name != "0.bias"]


def test_the_first_pattern_that_fits_counts_and_a_rest_may_be_nothing() -> None:
    src = {"a": torch.zeros(1), "b": torch.zeros(1)}
    one, two = (cast(dtype) for dtype in (torch.float64, torch.float16))
    new = by_part({"a": one, "a|b": two, ".*": one}).apply(src, {})
    assert [x.dtype for x in new.values()] == [torch.float64, torch.float16]


def test_order() -> None:
    src = {name: torch.zeros(1) for name in ("a.0", "b.0", "a.1", "b.1")}
    mine = by_part({"a.*": rename({"a.0": "a.new"}), ".*": chain()})
    assert list(mine.apply(src, {})) == ["a.new", "b.0", "a.1", "b.1"]
    assert list(mine.apply(src, {})) == list(mine.plan(src, {}).made)
    like = dict(reversed(src.items()))
    assert list(by_part({"a.*": chain(), "b.*": chain()}).apply(src, like)) == list(like)


def test_tied_weights_stay_tied_in_one_part_and_are_refused_in_two() -> None:
    def tied(seed: int) -> dict[str, Tensor]:
        x = torch.randn(3, generator=torch.Generator().manual_seed(seed))
        return {"embed": x, "body": torch.ones(3), "head": x.view(3)}

    both = pool(base=tied(0), tuned=tied(1))
    together = by_part({"body": wise_ft(0.1), ".*": wise_ft(0.9)}).apply(both, {})
    assert together["embed"].data_ptr() == together["head"].data_ptr()
    # What no pattern fits goes with its twin.
    beside = by_part({"embed": wise_ft(0.9), "body": wise_ft(0.1)})
    assert torch.equal(beside.apply(both, {})["head"], together["head"])
    apart = by_part({"embed": wise_ft(0.9), ".*": wise_ft(0.1)})
    told = "by_part: 'embed' and 'head' are one tensor, of which 'embed' and '.*' make two; let one part have both"
    for use in (apart.apply, apart.plan):
        with pytest.raises(TransferError, match=re.escape(told)):
            use(both, {})
    # Nothing is torn by maps that take it as it is, nor where one of the two is left out.
    as_it_is = by_part({"embed": chain(), ".*": match()})
    new = as_it_is.apply(tied(0), tied(1))
    assert new["embed"].data_ptr() == new["head"].data_ptr()
    assert as_it_is.plan(tied(0), tied(1)).missing == ()
    assert list(by_part({"embed": cast(torch.float64), ".*": drop("head")}).apply(tied(0), {})) == ["embed", "body"]
    # Two checkpoints, of which one is tied by chance of being the same file.
    same = pool(base=tied(0), tuned={**tied(1), "head": torch.ones(3)})
    assert set(apart.apply(same, {})) == {"embed", "body", "head"}


def test_it_compiles_and_is_differentiated() -> None:
    def value(t: Tensor) -> Tensor:
        new = by_part({r"0\..*": slerp(t[0]), ".*": wise_ft(t[1])}).apply(POOL, {})
        return sum((x.sin().sum() for x in new.values() if x.is_floating_point()), t.sum())

    at = torch.tensor([0.3, 0.6], dtype=torch.float64)
    slope = torch.func.grad(value)(at)
    for i, step in enumerate(1e-6 * torch.eye(2, dtype=torch.float64)):
        assert abs((value(at + step) - value(at - step)).item() / 2e-6 - slope[i].item()) < 1e-7
    graph: Any = torch.compile(value, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(graph(at), value(at))


def test_inside_a_step() -> None:
    both = pool(base=nn.Linear(2, 2).state_dict(), tuned=nn.Linear(2, 2).state_dict())
    merge = tt.as_reparam(lambda t: by_part({"weight": slerp(t[0]), ".*": slerp(t[1])}), both, t=[0.2, 0.7])
    made = merge.apply(dict(nn.Linear(2, 2).state_dict()), merge.init(torch.Generator(), {}))
    assert torch.equal(made["weight"], slerp(0.2).apply(both, {})["weight"])
    torch.testing.assert_close(made["bias"], slerp(0.7).apply(both, {})["bias"])


ONE = {"a.weight": torch.zeros(1), "a.bias": torch.zeros(1), "b.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("parts", "src", "like", "message"),
    [
        ({"a.*": chain()}, ONE, {}, "by_part: 'b.weight', one of 1 source tensors, is in no part; a last part '.*' ta"),
        ({"c.*": chain(), ".*": chain()}, ONE, {}, "by_part: 'c.*' fits no tensor; there are: a.bias, a.weight, b.wei"),
        (
            {".*": chain(), "b.*": chain()},
            ONE,
            {},
            "'b.*' gets nothing: what it fits, such as 'b.weight', goes to '.*'",
        ),
        ({"a.*": rename({"a": "b"}), ".*": chain()}, ONE, {}, "by_part: '.*' makes 'b.weight', and so does a part bef"),
        (
            {"a.*": rename({"a": "c"}), ".*": chain()},
            ONE,
            {"c.weight": torch.zeros(1)},
            "by_part: 'a.*' makes 'c.weight', a target that is not in this part; let it fit both",
        ),
        ({"a.*": drop("c"), ".*": chain()}, ONE, {}, "by_part: 'a.*': drop: pattern 'c' matches no source; there are:"),
        ({".*": wise_ft()}, ONE, {}, "by_part: '.*': wise_ft: 'a.weight' is of no checkpoint; put several"),
        (
            {"b.*": wise_ft(), ".*": average()},
            pool(base=ONE, tuned={k: x for k, x in ONE.items() if k != "b.weight"}),
            {},
            "by_part: 'b.*': wise_ft: the pool has no 'tuned'",
        ),
    ],
)
def test_refusals(parts: Any, src: Mapping[str, Tensor], like: Mapping[str, Tensor], message: str) -> None:
    for use in (by_part(parts).apply, by_part(parts).plan):
        with pytest.raises(TransferError, match=re.escape(message)):
            use(src, like)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "by_part: no parts"),
        ([chain()], "by_part: wanted a mapping, pattern -> map, got list"),
        ({"a": cast}, "by_part: 'a': wanted a WeightMap, got the function cast; call it: cast(...)"),
        ({"(": chain()}, "'(' is no regular expression"),
    ],
)
def test_what_is_no_part(parts: Any, message: str) -> None:
    with pytest.raises(TransferError, match=re.escape(message)):
        by_part(parts)
