"""Filling a target: by name, by order, by shape; strict, and the same in the dry run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from ttransfer._errors import TransferError
from ttransfer.core._maps import Made
from ttransfer.core._types import Params
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import match, match_by_name, match_by_order, match_by_shape, show


def net(classes: int) -> Params:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))
    return {name: tensor.detach() for name, tensor in layers.state_dict().items()}


def renamed(src: Mapping[str, Tensor], **names: str) -> Params:
    """Give modules other names, which in tests of order are not alphabetical."""
    return {".".join([names.get(f"n{name[0]}", name[0]), *name.split(".")[1:]]): x for name, x in src.items()}


OLD = renamed(net(10), n0="stem", n1="norm", n3="fc")
ORDER = {
    "names-decide": "it decides by the order of names",
    "plan-is-dry": "it decides by the order of names",
}
TRIALS = (
    weight_map_trial(match(), net(10), net(10), name="match", verbatim=True, examples=4),
    weight_map_trial(
        match(allow=r"fc.*|3.*"),
        OLD,
        net(2),
        name="match by order",
        verbatim=True,
        examples=4,
        expected_failed_checks=ORDER,
    ),
    weight_map_trial(match_by_name(), net(10), net(10), name="match_by_name", verbatim=True, examples=4),
    weight_map_trial(
        match_by_order(),
        OLD,
        net(10),
        name="match_by_order",
        verbatim=True,
        examples=4,
        expected_failed_checks=ORDER,
    ),
    weight_map_trial(
        match_by_shape(),
        {"a.weight": torch.zeros(4, 3), "a.bias": torch.zeros(4)},
        {"b.weight": torch.zeros(4, 3), "b.bias": torch.zeros(4)},
        name="match_by_shape",
        verbatim=True,
        examples=4,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_equal_nets() -> None:
    src, like = net(10), net(10)
    new = match().apply(src, like)
    assert list(new) == list(like)
    assert all(new[name] is src[name] for name in like)
    plan = match().plan(src, like)
    assert plan.made == {name: Made((name,)) for name in like}
    assert plan[1:] == ((), (), {}, {}, {})


@pytest.mark.parametrize("allow", [("3.*", "old"), ("3.weight", "3.bias", "old"), r"3\.(weight|bias)|old"])
def test_what_may_stay_stays(allow: str | tuple[str, ...]) -> None:
    src, like = {**net(1000), "old": torch.ones(1)}, {**net(10)}
    new, plan = match(allow=allow).apply(src, like), match(allow=allow).plan(src, like)
    assert list(new) == list(like)
    for name in like:
        assert new[name] is (src[name] if name in plan.made else like[name])
    assert plan.kept == ("3.weight", "3.bias")
    assert plan.unused == {
        "3.weight": "allowed, (1000, 4) for a target of (10, 4)",
        "3.bias": "allowed, (1000,) for a target of (10,)",
        "old": "allowed",
    }
    assert (plan.missing, plan.mismatched, plan.ambiguous) == ((), {}, {})


def test_plan_needs_shapes_alone() -> None:
    src, like = net(1000), {**net(10), "new": torch.ones(1)}
    meta = [{name: tensor.to("meta") for name, tensor in side.items()} for side in (src, like)]
    assert match(allow="3.*").plan(*meta) == match(allow="3.*").plan(src, like)
    assert match().plan(src, like).missing == ("new",)


def test_order_and_dtype_are_the_targets() -> None:
    src = {"a": torch.ones(2, dtype=torch.float16), "b": torch.tensor(3)}
    new = match().apply(src, {"b": torch.tensor(0), "a": torch.zeros(2)})
    assert list(new) == ["b", "a"]
    assert new["a"].dtype == torch.float32
    assert new["b"].dtype == torch.int64
    assert match().plan(src, {"b": torch.tensor(0), "a": torch.zeros(2)}).made["a"].how == "float16 -> float32"


def test_tied_weights_stay_one_tensor() -> None:
    table = torch.ones(5, 3, dtype=torch.float16)
    new = match().apply(
        {"embed.weight": table, "head.weight": table},
        {"embed.weight": torch.zeros(5, 3), "head.weight": torch.zeros(5, 3)},
    )
    assert new["embed.weight"] is new["head.weight"]
    assert new["embed.weight"].dtype == torch.float32


def test_gradient_goes_through() -> None:
    like = {"a": torch.zeros(2, dtype=torch.float64), "new": torch.zeros(1)}

    def loss(src: Params) -> Tensor:
        return match(allow="new|unused").apply(src, like)["a"].square().sum()

    src = {"a": torch.tensor([1.0, 2.0]), "unused": torch.ones(3)}
    slope = grad(loss)(src)
    assert slope["a"].tolist() == [2.0, 4.0]
    assert slope["a"].dtype == torch.float32
    assert slope["unused"].count_nonzero() == 0
    assert vmap(grad(loss))({k: torch.stack([v, 3 * v]) for k, v in src.items()})["a"].tolist() == [[2, 4], [6, 12]]


def test_what_is_left_is_taken_in_order() -> None:
    src = {**renamed(net(10), n0="_conv", n1="_bn0"), "3.weight": torch.ones(10, 4), "3.bias": torch.ones(10)}
    plan = match().plan(src, net(10))
    assert plan.made["0.weight"] == Made(("_conv.weight",), "", "by order: 1 of 7")
    assert plan.made["1.running_var"].sources == ("_bn0.running_var",)
    assert plan.made["3.weight"] == Made(("3.weight",))


def test_a_sorted_file_tells_no_order() -> None:
    layers = {f"{name}.weight": torch.zeros(4, 4) for name in ("stem", "body", "head")}
    old = {f"{name}.weight": torch.zeros(4, 4) for name in ("conv", "act", "fc")}
    assert match().plan(old, layers).made["stem.weight"].sources == ("conv.weight",)
    plan = match().plan(dict(sorted(old.items())), layers)
    assert plan.made == {}
    assert plan.ambiguous == dict.fromkeys(layers, ("act.weight", "conv.weight", "fc.weight"))
    # Asked for by name, the order is the caller's to answer for.
    assert match_by_order().plan(dict(sorted(old.items())), layers).made["stem.weight"].sources == ("act.weight",)


def test_what_may_be_either_is_refused() -> None:
    src = {"z.weight": torch.zeros(4, 4), "a.weight": torch.zeros(4, 4)}
    like = {"x.weight": torch.zeros(4, 4)}
    assert match().plan(src, like).ambiguous == {"x.weight": ("z.weight", "a.weight")}
    with pytest.raises(TransferError, match=r"ambiguous, it may be 'z.weight', 'a.weight'"):
        match().apply(src, like)


def test_query_key_and_value_are_not_exchanged() -> None:
    def attention(*names: str) -> Params:
        return {
            f"{name}.{part}": torch.zeros((4, 4) if part == "weight" else 4)
            for name in names
            for part in ("weight", "bias")
        }

    src = attention("self.query", "self.key", "self.value", "fc")
    like = attention("attn.k_proj", "attn.v_proj", "attn.q_proj", "linear")
    plan = match().plan(src, like)
    assert plan.ambiguous["attn.k_proj.weight"] == ("self.query.weight", "self.key.weight", "self.value.weight")
    with pytest.raises(TransferError, match=r"ambiguous, it may be 'self.query.weight', 'self.key.weight'"):
        match().apply(src, like)
    same = attention("attn.q_proj", "attn.k_proj", "attn.v_proj", "linear")
    assert match().plan(src, same).made["attn.k_proj.bias"].sources == ("self.key.bias",)
    # Asked for by name, the order is the caller's to answer for.
    assert match_by_order().plan(src, like).made["attn.k_proj.weight"].sources == ("self.query.weight",)


def test_kinds_are_not_mixed() -> None:
    src = {"bn.running_var": torch.ones(4), "bn.running_mean": torch.zeros(4)}
    like = {"norm.running_mean": torch.zeros(4), "norm.running_var": torch.ones(4)}
    made = match().plan(src, like).made
    assert made["norm.running_mean"].sources == ("bn.running_mean",)
    assert made["norm.running_var"].sources == ("bn.running_var",)


def test_compiles_into_one_graph() -> None:
    src, like = net(10), net(10)
    torch.compiler.reset()
    compiled = torch.compile(match_by_name().apply, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(src, like), src, rtol=0, atol=0)


def test_what_is_not_accounted_for_is_named() -> None:
    src = {"backbone.weight": torch.ones(3), "old": torch.ones(1), "fc.weight": torch.ones(1000, 4)}
    like = {"backbone.wieght": torch.ones(3), "fc.weight": torch.ones(10, 4)}
    with pytest.raises(TransferError) as error:
        match().apply(src, like)
    assert str(error.value).splitlines() == [
        "match: 2 of 2 target tensors get nothing",
        "  'backbone.wieght' (3,) float32: not in the source; did you mean 'backbone.weight'?",
        "  'fc.weight': source (1000, 4) for a target of (10, 4)",
        "3 of 3 source tensors go nowhere",
        "  'backbone.weight' (3,) float32",
        "  'old' (1,) float32",
        "  'fc.weight' (1000, 4) float32",
        "rename them, drop sources with tt.weights.drop, or let either be with allow=",
    ]
    with pytest.raises(TransferError, match="1 of 2 target tensors get nothing"):
        match(allow="fc.*").apply(src, like)
    with pytest.raises(TransferError, match="match: 1 of 2 source tensors go nowhere"):
        match().apply({"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1)})


def test_long_lists_are_cut() -> None:
    like = {f"layer{i}": torch.ones(1) for i in range(9)}
    with pytest.raises(TransferError, match=r"9 of 9 target(.*\n)+  \.\.\. and 4 more"):
        match().apply({}, like)


def test_allow_that_names_nothing_is_refused() -> None:
    for use in (match(allow="had.*").plan, match(allow=["fc", "had.*"]).apply):
        with pytest.raises(TransferError, match=r"match: allow='had\.\*' matches no target"):
            use({"fc": torch.ones(1)}, {"fc": torch.ones(1)})


def test_the_table_says_why() -> None:
    table = show(match(allow="fc.*|3.*").plan(OLD, net(2)))
    assert "0.weight               <- stem.weight               by order: 1 of 7" in table.splitlines()
    assert "3.bias                 -- stays as it is" in table.splitlines()
