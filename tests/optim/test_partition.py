"""`optim.partition` against torch's parameter groups, and `optim.masked`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import ttransfer.core._tree as tree
from ttransfer import TransferError, optim, schedules


def test_equals_torchs_groups(problem: Any, train: Any, oracle: Any, same: Callable[..., None]) -> None:
    def make(params: dict[str, Tensor]) -> torch.optim.Optimizer:
        weight = [p for name, p in params.items() if name.endswith("weight")]
        rest = [p for name, p in params.items() if not name.endswith("weight")]
        groups = [
            {"params": weight, "lr": 0.05, "weight_decay": 0.2},
            {"params": rest, "lr": 0.01, "betas": (0.8, 0.9)},
        ]
        return torch.optim.AdamW(groups, weight_decay=0.0)

    opt = optim.partition(
        {
            "rest": optim.adamw(schedules.cosine(0.01, 25), beta1=0.8, beta2=0.9, weight_decay=0.0),
            "weight": optim.adamw(schedules.cosine(0.05, 25), weight_decay=0.2),
        },
        {"weight": ".*weight", "rest": ".*"},
    )
    want = oracle(make, problem(), 25, schedule=lambda o: CosineAnnealingLR(o, T_max=25))
    same(train(opt, problem(), 25), want)


def test_of_different_rules(problem: Any, train: Any, same: Callable[..., None]) -> None:
    parts = {"student": optim.sgd(0.1, momentum=0.9), "critic": optim.adam(0.02)}
    opt = optim.partition(parts, {"student": "student.*", "critic": r"terms\.dann.*"})
    params = problem()
    grads = tree.map(torch.cos, params)
    got, _ = opt.update(grads, opt.init(params), params, optim.hyper_at(opt))
    for label, net in (("student", "student"), ("critic", "terms")):
        part = parts[label]
        want, _ = part.update(grads[net], part.init(params[net]), params[net], optim.hyper_at(part))
        same(got[net], want, 0.0)


def test_nests_and_names_numbers_and_states(problem: Any, train: Any, same: Callable[..., None]) -> None:
    inner = optim.partition({"b": optim.adam(0.01), "w": optim.sgd(0.1)}, {"b": ".*bias", "w": ".*"})
    opt = optim.partition({"net": inner, "critic": optim.sgd(0.3)}, {"net": "student.*", "critic": ".*"})
    assert "net.b.lr" in opt.hyper
    assert "critic.weight_decay" in opt.hyper
    state = opt.init(problem())
    assert list(tree.paths(state["net"]["b"]["mu"])) == ["student.fc.bias"]
    flat = {"b": optim.adam(0.01), "w": optim.sgd(0.1), "c": optim.sgd(0.3)}
    want = optim.partition(flat, {"b": ".*bias", "w": "student.*", "c": ".*"})
    same(train(opt, problem(), 10), train(want, problem(), 10), 0.0)


def test_the_first_pattern_that_matches_decides(problem: Any) -> None:
    parts = {"a": optim.sgd(1.0), "b": optim.sgd(2.0)}
    params = problem()
    first = optim.partition(parts, {"a": ".*fc.*", "b": "student.*|terms.*"})
    second = optim.partition(parts, {"b": "student.*|terms.*scale", "a": ".*"})
    for opt, scale in ((first, 1.0), (second, 2.0)):
        updates, _ = opt.update(params, opt.init(params), params, optim.hyper_at(opt))
        torch.testing.assert_close(updates["student"]["fc.weight"], -scale * params["student"]["fc.weight"])


def test_keeps_the_tree_whatever_it_is_made_of() -> None:
    params = {"list": [torch.ones(1), torch.ones(2)], "pair": (torch.ones(3), {"x.y": torch.ones(4)})}
    opt = optim.partition({"a": optim.sgd(1.0), "b": optim.sgd(2.0)}, {"b": r"list\.1|pair\.1.*", "a": ".*"})
    updates, _ = opt.update(params, opt.init(params), params, optim.hyper_at(opt))
    assert [leaf.tolist() for leaf in tree.leaves(updates)] == [[-1.0], [-2.0] * 2, [-1.0] * 3, [-2.0] * 4]
    assert [type(updates[key]) for key in updates] == [list, tuple]


@pytest.mark.parametrize(
    ("labels", "patterns", "says"),
    [
        ("a", {"a": "student.*"}, "parameter 'terms.dann.w' matches none of the patterns"),
        ("ab", {"a": ".*", "b": "student.*"}, "pattern 'student.*' of 'b' gets no parameter"),
        ("ab", {"a": ".*", "b": "studnt.*"}, "pattern 'studnt.*' of 'b' gets no parameter"),
        ("ab", {"a": ".*"}, "no pattern has the label 'b'"),
        ("a", {"a": ".*", "b": ".*"}, "no optimizer has the label 'b'"),
        ("a", {"a": "("}, "no regular expression"),
    ],
)
def test_refuses(labels: str, patterns: dict[str, str], says: str, problem: Any) -> None:
    with pytest.raises(TransferError, match=says):
        optim.partition({label: optim.sgd(0.1) for label in labels}, patterns).init(problem())


def test_two_parameters_of_one_name_are_refused() -> None:
    params = {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}
    with pytest.raises(TransferError, match="two parameters have one dotted name"):
        optim.partition({"a": optim.sgd(0.1)}, {"a": ".*"}).init(params)


def test_masked_decay_equals_torchs_groups(problem: Any, train: Any, oracle: Any, same: Callable[..., None]) -> None:
    def make(params: dict[str, Tensor]) -> torch.optim.Optimizer:
        weight = [p for name, p in params.items() if name.endswith("weight")]
        rest = [p for name, p in params.items() if not name.endswith("weight")]
        return torch.optim.Adam([{"params": weight, "weight_decay": 0.3}, {"params": rest}], lr=0.05)

    opt = optim.chain(optim.masked(optim.add_weight_decay(0.3), ".*weight"), optim.adam(0.05))
    same(train(opt, problem(), 25), oracle(make, problem(), 25))


def test_masked_passes_the_others_unchanged(problem: Any) -> None:
    params = problem()
    opt = optim.masked(optim.sgd(0.5, momentum=0.9), r".*bias|.*scale")
    updates, state = opt.update(params, opt.init(params), params, optim.hyper_at(opt))
    assert updates["terms"]["dann"]["w"] is params["terms"]["dann"]["w"]
    assert updates["student"]["fc.weight"] is params["student"]["fc.weight"]
    assert updates["student"]["scale"].item() == -0.5 * params["student"]["scale"].item()
    assert updates["student"]["fc.bias"].shape == (3,)
    assert list(state["momentum"]) == ["student.fc.bias", "student.scale"]


def test_masked_refuses_a_pattern_without_parameters(problem: Any) -> None:
    with pytest.raises(TransferError, match=r"pattern 'fc' matches none of 4 names; there are: student"):
        optim.masked(optim.adam(0.1), "fc").init(problem())
