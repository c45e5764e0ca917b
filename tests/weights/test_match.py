"""Matching by name and shape: strict, and the same in the dry run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights import match


def net(classes: int) -> Params:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))
    return {name: tensor.detach() for name, tensor in layers.state_dict().items()}


def test_equal_nets() -> None:
    src, like = net(10), net(10)
    new = match().apply(src, like)
    assert list(new) == list(like)
    assert all(new[name] is src[name] for name in like)
    plan = match().plan(src, like)
    assert plan.copied == {name: name for name in like}
    assert (plan.unused, plan.missing, plan.mismatched) == ((), (), {})


@pytest.mark.parametrize("allow", ["3.*", ("3.weight", "3.bias"), r"\d\.(weight|bias)"])
def test_what_may_stay_stays(allow: str | tuple[str, ...]) -> None:
    src, like = {**net(1000), "old": torch.ones(1)}, {**net(10)}
    new, plan = match(allow=allow).apply(src, like), match(allow=allow).plan(src, like)
    assert list(new) == list(like)
    for name in like:
        assert new[name] is (src[plan.copied[name]] if name in plan.copied else like[name])
    assert plan.mismatched == {
        "3.weight": "source (1000, 4), target (10, 4)",
        "3.bias": "source (1000,), target (10,)",
    }
    assert plan.unused == ("3.weight", "3.bias", "old")
    assert plan.missing == ()


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


def test_gradient_goes_through() -> None:
    like = {"a": torch.zeros(2, dtype=torch.float64), "new": torch.zeros(1)}

    def loss(src: Params) -> Tensor:
        return match(allow="new").apply(src, like)["a"].square().sum()

    src = {"a": torch.tensor([1.0, 2.0]), "unused": torch.ones(3)}
    slope = grad(loss)(src)
    assert slope["a"].tolist() == [2.0, 4.0]
    assert slope["a"].dtype == torch.float32
    assert slope["unused"].count_nonzero() == 0
    assert vmap(grad(loss))({k: torch.stack([v, 3 * v]) for k, v in src.items()})["a"].tolist() == [[2, 4], [6, 12]]


def test_compiles_into_one_graph() -> None:
    src, like = net(10), net(10)
    torch.compiler.reset()
    compiled = torch.compile(match().apply, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(src, like), src, rtol=0, atol=0)


def test_missing_targets_are_named() -> None:
    src = {"backbone.weight": torch.ones(3), "old": torch.ones(1), "fc.weight": torch.ones(1000, 4)}
    like = {"backbone.wieght": torch.ones(3), "fc.weight": torch.ones(10, 4)}
    with pytest.raises(TransferError) as error:
        match().apply(src, like)
    assert str(error.value).splitlines() == [
        "match: 2 of 2 target tensors get nothing",
        "  'backbone.wieght' (3,) float32: not in the source; did you mean 'backbone.weight'?",
        "  'fc.weight': source (1000, 4), target (10, 4)",
        "rename the source's, or let them stay at initialisation with allow=",
    ]
    with pytest.raises(TransferError, match="1 of 2 target tensors get nothing"):
        match(allow="fc.*").apply(src, like)


def test_long_lists_are_cut() -> None:
    like = {f"layer{i}": torch.ones(1) for i in range(9)}
    with pytest.raises(TransferError, match=r"9 of 9 target(.*\n)+  \.\.\. and 4 more"):
        match().apply({}, like)


def test_allow_that_names_nothing_is_refused() -> None:
    for use in (match(allow="had.*").plan, match(allow=["fc", "had.*"]).apply):
        with pytest.raises(TransferError, match=r"match: allow='had\.\*' matches no target"):
            use({"fc": torch.ones(1)}, {"fc": torch.ones(1)})
