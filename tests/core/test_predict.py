"""Taking networks out of a state: predictions, state dicts, modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import copied, worst
from tests.support.nets import Conv, conv, images, mlp, vectors
from tests.support.steps import TASK, refused, run, small_step
from ttransfer.core import _tree as tree

BATCH = vectors(0)
IMAGES = [images(seed) for seed in range(2)]
X = IMAGES[0]["target"]["x"]
MMD = tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in")


def trained(**options: Any) -> tuple[tt.Step, tt.State]:
    nets = {"student": tt.functional(conv(1, p=0.5)), "teacher": tt.functional(conv(2))}
    step = small_step({"task": TASK, "m": MMD}, nets, **options)
    return step, run(step, step.init(IMAGES[0]), *IMAGES)[0]


def module_of(state: tt.State, net: str = "student", slot: str | None = None) -> nn.Module:
    """A plain module in eval mode with the weights of a state."""
    module = conv(9).eval()
    params = state.ema.get(net) or {**state.frozen.get(net, {}), **state.trainable.get(net, {})}
    module.load_state_dict({**params, **state.buffers[slot or net]})
    return module


def test_a_prediction_is_that_of_the_module_in_eval_mode() -> None:
    step, state = trained()
    before = copied(state)
    for net in ("student", "teacher"):
        assert worst(tt.predict(step, state, net)(X), module_of(state, net)(X).detach()) == 0.0
    module = module_of(state)
    assert worst(tt.predict(step, state, "student(target).conv")(X), module.conv(X).detach()) == 0.0
    pooled = F.relu(module.bn(module.conv(X))).mean((2, 3))
    assert worst(tt.predict(step, state, "student(target).fc:in")(X), pooled.detach()) < 1e-15
    out = tt.predict(step, state, "student")(X)
    assert not out.requires_grad
    assert torch.equal(out, tt.predict(step, state, "student")(X))
    assert worst(state, before) == 0.0


def test_a_net_forced_to_train_mode_still_predicts_in_eval_mode() -> None:
    nets = {"student": tt.functional(conv(1, p=0.5), mode="train")}
    step = small_step(nets=nets)
    state = step.init(IMAGES[0])
    assert worst(tt.predict(step, state, "student")(X), module_of(state)(X).detach()) == 0.0


def test_buffers_per_domain_ask_for_the_domain() -> None:
    step, state = trained(buffers={"student": "per_domain"})
    for domain in ("source", "target"):
        expected = module_of(state, slot=f"student({domain})")(X).detach()
        assert worst(tt.predict(step, state, f"student({domain})")(X), expected) == 0.0
        taken = tt.state_dict(step, state, f"student({domain})")
        assert worst(taken["bn.running_mean"], state.buffers[f"student({domain})"]["bn.running_mean"]) == 0.0
        module = conv(9)
        tt.write_back(state, module, net=f"student({domain})")
        assert worst(module.eval()(X).detach(), expected) == 0.0
    for ask in (
        lambda: tt.predict(step, state, "student"),
        lambda: tt.predict(step, state, "student(sorce)"),
        lambda: tt.state_dict(step, state, "student"),
        lambda: tt.write_back(state, conv(9), net="student"),
    ):
        refused(ask, "'student' are per domain", "'student(source)', 'student(target)'")


def test_an_average_predicts_with_its_own_weights() -> None:
    step, state = trained(ema={"mean": tt.ema("student", 0.5)})
    expected = module_of(state, "mean")(X).detach()
    assert worst(tt.predict(step, state, "mean")(X), expected) == 0.0
    assert worst(tt.predict(step, state, "student")(X), expected) > 1e-4
    module = conv(9)
    tt.write_back(state, module, net="mean")
    assert worst(module.eval()(X).detach(), expected) == 0.0


def test_nets_of_any_phase_predict() -> None:
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    one = small_step({"task": TASK}, {"student": nets["student"]})
    two = small_step({"kd": tt.term(tt.losses.kd, "student(source)", "teacher(source)")}, nets)
    game = tt.alternate(one=one, two=two)
    state, _ = run(game, game.init(IMAGES[0]), *IMAGES)
    for net in nets:
        assert worst(tt.predict(game, state, net)(X), module_of(state, net)(X).detach()) == 0.0
    refused(lambda: tt.predict(game, state, "techer"), "no net 'techer'", "did you mean 'teacher'?")


def test_members_predict_at_once() -> None:
    nets = {"student": tt.functional(conv_of_any_start), "teacher": tt.functional(conv(2))}
    base = small_step({"task": TASK, "m": MMD}, nets)
    many = tt.sweep(tt.ensemble(base, 2), {"optim.lr": [0.1, 0.2, 0.3]})
    state, _ = run(many, many.init(IMAGES[0]), *IMAGES)
    found = tt.predict(many, state, "student(target).fc:in")(X)
    assert found.shape == (3, 2, 4, 4)
    for i in range(3):
        for j in range(2):
            alone = tt.predict(base, tt.member(state, i, j), "student(target).fc:in")(X)
            assert worst(found[i, j], alone) < 1e-12


def conv_of_any_start() -> nn.Module:
    return Conv().double()


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        out = self.body(x)
        return {"logits": (out, 2 * out)}


def test_picks_and_several_inputs() -> None:
    step = small_step(
        {"task": tt.term(F.cross_entropy, "student(source)[logits][0]", "source.y")},
        {"student": tt.functional(Tuple())},
    )
    state = step.init(BATCH)
    x = BATCH["source"]["x"]
    assert worst(tt.predict(step, state, "student(any)[logits][1]")(x), 2 * mlp(1)(x).detach()) == 0.0
    refused(lambda: tt.predict(step, state, "student(any)[logit]")(x), "[logit]", "did you mean 'logits'?")


# -- state dicts and modules


def test_a_state_dict_loads_into_the_module_and_shares_nothing() -> None:
    step, state = trained()
    taken = tt.state_dict(step, state, "student")
    module = conv(9)
    module.load_state_dict(taken)
    assert worst(module.eval()(X).detach(), tt.predict(step, state, "student")(X)) == 0.0
    mine = {x.untyped_storage().data_ptr() for x in tree.leaves(state)}
    assert not mine & {x.untyped_storage().data_ptr() for x in taken.values()}


def lora() -> tuple[tt.Step, tt.State]:
    net = tt.reparam(tt.functional(mlp(1)), tt.adapters.lora("hidden.weight", rank=2))
    step = small_step(nets={"student": net}, optimizer=tt.optim.sgd(1.0))
    return step, run(step, step.init(BATCH), BATCH, BATCH)[0]


def test_a_reparametrised_net_is_computed_on_the_way_out() -> None:
    step, state = lora()
    x = BATCH["source"]["x"]
    predicted = tt.predict(step, state, "student")(x)
    own = {**state.frozen["student"], **state.trainable["student"]}
    merged = own["hidden.weight"] + own["hidden.weight.lora_b"] @ own["hidden.weight.lora_a"]
    taken = tt.state_dict(step, state, "student")
    assert set(taken) == {"hidden.weight", "hidden.bias", "fc.weight", "fc.bias"}
    assert worst(taken["hidden.weight"], merged) < 1e-15
    assert worst(merged, own["hidden.weight"]) > 1e-3
    for named in ({"net": "student"}, {}):
        module = mlp(9)
        tt.write_back(state, module, step=step, **named)
        assert worst(module(x).detach(), predicted) < 1e-12
    refused(lambda: tt.write_back(state, mlp(9), net="student"), "'hidden.weight.lora_a'", "needs step=")


def test_write_back_finds_the_net_that_fits() -> None:
    nets = {
        "student": tt.functional(mlp(1)),
        "teacher": tt.functional(mlp(2)),
        "wide": tt.functional(mlp(3, classes=7)),
    }
    step = small_step(nets=nets)
    state, _ = step(step.init(BATCH), BATCH)
    trained_one, wide = mlp(9), mlp(9, classes=7)
    tt.write_back(state, trained_one)
    tt.write_back(state, wide)
    assert worst(dict(trained_one.named_parameters()), state.trainable["student"]) == 0.0
    assert worst(dict(wide.named_parameters()), state.frozen["wide"]) == 0.0
    both = small_step(nets=nets, trainable=("student", "teacher")).init(BATCH)
    refused(lambda: tt.write_back(both, mlp(9)), "'student', 'teacher' all fit", "net=")
    tt.write_back(both, trained_one, net="teacher")
    assert worst(dict(trained_one.named_parameters()), both.trainable["teacher"]) == 0.0


def test_a_module_that_does_not_fit_is_left_as_it_is() -> None:
    step = small_step()
    state, _ = step(step.init(BATCH), BATCH)
    cases: list[tuple[nn.Module, tuple[str, ...]]] = [
        (mlp(9, classes=4), ("'fc.weight' is (3, 6) in the net and (4, 6) in the module",)),
        (nn.Sequential(mlp(9)), ("the module has '0.hidden.weight'", "the net does not")),
        (conv(9), ("the module has 'conv.weight'", "the net does not")),
    ]
    for module, parts in cases:
        before = copy.deepcopy(module.state_dict())
        for named in ({}, {"net": "student"}):
            refused(lambda module=module, named=named: tt.write_back(state, module, **named), "write_back", *parts)
        assert worst(dict(module.state_dict()), dict(before)) == 0.0


def test_a_stacked_state_is_taken_apart_first() -> None:
    many = tt.ensemble(small_step(), 2)
    state = many.init(BATCH)
    refused(lambda: tt.write_back(state, mlp(9), net="student"), "(2, 6, 5)", "take one member")
    refused(lambda: tt.state_dict(many, state, "student"), "stacked 1 deep", "tt.member(state, i)")
    refused(lambda: tt.predict(small_step(), state, "student"), "stacked 1 deep", "tt.member(state, i)")
    refused(lambda: tt.predict(many, tt.member(state, 0), "student"), "stacked 0 deep", "1 is wanted")
    tt.write_back(tt.member(state, 1), mlp(9))


def other() -> tt.State:
    return small_step(nets={"student": tt.functional(nn.Linear(5, 3).double())}).init(BATCH)


BAD: dict[str, tuple[Callable[[tt.Step, tt.State], Any], tuple[str, ...]]] = {
    "unknown net": (lambda p, s: tt.predict(p, s, "studnt"), ("no net 'studnt'", "did you mean 'student'?")),
    "unknown tap": (lambda p, s: tt.predict(p, s, "student(a).hiden"), ("no submodule 'hiden'", "'hidden'")),
    "no forward": (lambda p, s: tt.predict(p, s, "student:params"), ("'student:params' is no forward",)),
    "no path": (lambda p, s: tt.predict(p, s, "student("), ("cannot read 'student('",)),
    "unknown net to take": (lambda p, s: tt.state_dict(p, s, "studnt"), ("no net 'studnt'", "'student'")),
    "unknown net to write": (lambda p, s: tt.write_back(s, mlp(1), net="studnt"), ("no net 'studnt'", "'student'")),
    "terms are no net": (lambda p, s: tt.predict(p, s, "terms"), ("no net 'terms'",)),
    "a state of another step": (
        lambda p, s: tt.predict(p, other(), "student"),
        ("of another step", "'student'"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    ask, parts = BAD[name]
    step = small_step()
    state = step.init(BATCH)
    refused(lambda: ask(step, state), *parts)


def test_state_dict_loads_strictly_with_ties_and_unsaved_buffers() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(3, 3)
            self.b = torch.nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.register_buffer("unsaved", torch.ones(3), persistent=False)
            self.register_buffer("saved", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)) * self.unsaved + self.saved

    module = Tied()
    step = tt.step(
        {"net": tt.functional(module)},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(torch.nn.functional.mse_loss, "net(s)", "s.y"),
    )
    batch = {"s": {"x": torch.ones(2, 3), "y": torch.zeros(2, 3)}}
    state, _ = step(step.init(batch), batch)
    found = tt.state_dict(step, state, "net")
    assert set(found) == set(module.state_dict())
    module.load_state_dict(found, strict=True)
    assert torch.equal(module.b.weight, state.trainable["net"]["a.weight"])
