"""The step: how a state starts, averaged nets, buffers by policy, and what trains under a reparametrisation."""

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
from tests.support.nets import conv, images, mlp, vectors
from tests.support.steps import TASK, refused, run, small_step
from ttransfer.core import _tree as tree

BATCH = vectors(0)
BATCHES = [vectors(seed) for seed in range(3)]
IMAGES = [images(seed) for seed in range(3)]
CONVS = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
MMD = tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in")


def storages(state: Any) -> list[int]:
    return [x.untyped_storage().data_ptr() for x in tree.leaves(state) if x.numel()]


# -- the first state


def test_the_first_state_has_a_storage_for_each_leaf_and_shares_none_with_the_users_modules() -> None:
    tied = mlp(1)
    tied.hidden = nn.Linear(6, 6, dtype=torch.float64)
    tied.fc = nn.Linear(6, 6, dtype=torch.float64)
    tied.fc.weight = tied.hidden.weight
    module = conv(1)
    nets = {"student": tt.functional(module), "same": tt.functional(module), "tied": tt.functional(tied)}
    terms = {"task": TASK, "dann": tt.terms.dann("student(source)", "student(target)", critic=tt.adapters.mlp(4))}
    state = small_step(
        terms,
        nets,
        tt.optim.adamw(1e-3),
        trainable=("student", "tied"),
        ema={"a": tt.ema("student"), "b": tt.ema("tied")},
    ).init(IMAGES[0])
    mine = storages(state)
    assert len(mine) == len(set(mine))
    theirs = {x.untyped_storage().data_ptr() for net in (module, tied) for x in net.state_dict().values()}
    assert not theirs & set(mine)
    assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in tree.leaves(state))


def test_what_terms_and_optimizers_start_with_is_copied_apart() -> None:
    """A donated update of two leaves in one storage would be silently wrong."""
    anchored = tt.Optimizer(
        lambda params: {"anchor": params, "ones": torch.ones(()).expand(3)},
        lambda grads, state, params, hyper: (tree.map(lambda g: -0.1 * g, grads), state),
        {},
    )
    one = torch.ones(2, 2)

    def start(generator: torch.Generator, x: Tensor) -> dict[str, Tensor]:
        return {"a": one[0], "b": one[1], "c": one.T}

    def kept(x: Tensor, *, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return x.square().mean(), state

    step = small_step({"task": TASK, "t": tt.term(kept, "student(source)", state=start)}, optimizer=anchored)
    state = step.init(BATCH)
    mine = storages(state)
    assert len(mine) == len(set(mine))
    assert one.untyped_storage().data_ptr() not in mine
    fast = tt.compile(step, backend="aot_eager", donate=True)
    eager, _ = run(step, copied(state), *BATCHES)
    assert worst(run(fast, fast.init(BATCH), *BATCHES)[0], eager) < 1e-12


def test_training_leaves_the_users_modules_alone() -> None:
    student, teacher = conv(1), conv(2).eval()
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    step = small_step({"task": TASK, "m": MMD}, {"student": tt.functional(student), "teacher": tt.functional(teacher)})
    run(step, step.init(IMAGES[0]), *IMAGES)
    assert worst((dict(student.state_dict()), dict(teacher.state_dict())), (dict(before[0]), dict(before[1]))) == 0.0
    assert student.training
    assert not teacher.training
    assert all(p.grad is None for p in student.parameters())


def test_the_seed_starts_factories_critics_and_masks_and_nothing_else() -> None:
    nets = {"student": tt.functional(mlp_of_any_start), "teacher": tt.functional(mlp(2))}
    step = small_step(
        {"task": TASK, "d": tt.terms.dann("student(source)", "student(target)", critic=tt.adapters.mlp(4))}, nets
    )
    torch.manual_seed(5)
    one = step.init(BATCH, seed=3)
    torch.manual_seed(6)
    assert worst(one, step.init(BATCH, seed=3)) == 0.0
    other = step.init(BATCH, seed=4)
    for part in (lambda s: s.trainable["student"], lambda s: s.trainable["terms"]):
        assert worst(part(one), part(other)) > 1e-3
    assert worst(one.frozen, other.frozen) == 0.0
    assert worst(one.hyper, other.hyper) == 0.0
    assert (int(one.seed), int(other.seed), int(one.step)) == (3, 4, 0)


def mlp_of_any_start() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def test_masks_follow_the_seed_and_the_step() -> None:
    nets = {"student": tt.functional(mlp(1, p=0.5))}
    step = small_step(nets=nets, optimizer=tt.optim.sgd(0.0))
    values = []
    for seed in (0, 1):
        state = step.init(BATCH, seed=seed)
        for _ in range(2):
            state, logs = step(state, BATCH)
            values.append(logs["task"].item())
    assert len(set(values)) == 4


def test_a_domain_named_as_a_net_is_refused() -> None:
    step = small_step({"t": tt.term(F.cross_entropy, "student(source)", "source.y")})
    refused(lambda: step.init({**BATCH, "teacher": BATCH["target"]}), "'teacher'", "rename one")


def test_an_optimizers_state_must_be_tensors() -> None:
    counting = tt.Optimizer(lambda params: {"count": 0}, lambda g, state, p, h: (g, state), {})
    refused(lambda: small_step(optimizer=counting).init(BATCH), "tensors only", "int 0", "optim")


def test_terms_by_mapping_and_by_keyword_are_the_same() -> None:
    nets = {"student": tt.functional(mlp(1))}
    ent = tt.term(tt.losses.entropy, "student(target)")
    one = tt.step(nets, tt.optim.sgd(0.1), {"task": TASK}, trainable=("student",), ent=ent)
    two = tt.step(nets, tt.optim.sgd(0.1), trainable=("student",), task=TASK, ent=ent)
    state = one.init(BATCH)
    assert worst(one(state, BATCH), two.update(two.init(BATCH), BATCH)) == 0.0


# -- buffers


@pytest.mark.parametrize("policy", ["shared", "per_domain", "eval"])
def test_buffers_by_policy_equal_a_plain_loop(policy: str) -> None:
    step = small_step({"task": TASK, "m": MMD}, CONVS, buffers={"student": policy})
    state, _ = run(step, step.init(IMAGES[0]), *IMAGES)
    # The parameters' way depends on the statistics only through evaluation; two plain nets keep them apart.
    nets = {"student": conv(1)} if policy != "per_domain" else {f"student({d})": conv(1) for d in ("source", "target")}
    trained = small_step({"task": TASK, "m": MMD}, CONVS, buffers={"student": policy})
    now = trained.init(IMAGES[0])
    for batch in IMAGES:
        for domain in ("source", "target"):
            net = nets.get("student") or nets[f"student({domain})"]
            net.load_state_dict({**dict(net.named_buffers()), **now.trainable["student"]})
            if policy != "eval":
                net(batch[domain]["x"])
        now, _ = trained(now, batch)
    assert set(state.buffers) == {*nets, "teacher"}
    for slot, net in nets.items():
        assert worst(state.buffers[slot], dict(net.named_buffers())) < 1e-12
    assert worst(state.buffers["teacher"], dict(conv(2).named_buffers())) == 0.0


def test_the_eval_policy_uses_running_statistics_in_training() -> None:
    student = conv(1)
    student.bn.running_mean.fill_(0.3)
    student.bn.running_var.fill_(2.0)
    step = small_step(nets={"student": tt.functional(student)}, buffers={"student": "eval"})
    _, logs = step(step.init(IMAGES[0]), IMAGES[0])
    out = copy.deepcopy(student).eval()(IMAGES[0]["source"]["x"])
    assert abs(logs["task"].item() - F.cross_entropy(out, IMAGES[0]["source"]["y"]).item()) < 1e-12


class Centred(nn.Module):
    """A net that assigns its buffer instead of writing it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.fc(x) - self.centre
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * out.detach().mean(0)
        return out


@pytest.mark.parametrize("mode", ["eager", "compiled", "members"])
def test_a_buffer_that_is_assigned_is_kept(mode: str) -> None:
    torch.manual_seed(0)
    module = Centred().double()
    step = small_step(
        {"task": TASK, "ent": tt.term(tt.losses.entropy, "student(target)")}, {"student": tt.functional(module)}
    )
    made = {"eager": step, "compiled": tt.compile(step, backend="aot_eager"), "members": tt.ensemble(step, 2)}[mode]
    state, _ = run(made, made.init(BATCH), *BATCHES)
    state = tt.member(state, 1) if mode == "members" else state
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for batch in BATCHES:
        optimizer.zero_grad()
        task = F.cross_entropy(module(batch["source"]["x"]), batch["source"]["y"])
        (task + tt.losses.entropy(module(batch["target"]["x"]))).backward()
        optimizer.step()
    assert worst(state.buffers["student"], dict(module.named_buffers())) < 1e-12
    assert worst(state.trainable["student"], dict(module.named_parameters())) < 1e-12


def test_a_frozen_net_forced_to_train_mode_moves_its_statistics_only() -> None:
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2), mode="train")}
    step = small_step({"kd": tt.term(tt.losses.kd, "student(source)", "teacher(source)")}, nets)
    state, _ = step(step.init(IMAGES[0]), IMAGES[0])
    teacher = conv(2)
    teacher(IMAGES[0]["source"]["x"])
    assert worst(state.buffers["teacher"], dict(teacher.named_buffers())) < 1e-12
    assert worst(state.frozen["teacher"], dict(teacher.named_parameters())) == 0.0


def test_a_net_forced_to_eval_mode_trains_in_it() -> None:
    student = conv(1, p=0.5)
    step = small_step(nets={"student": tt.functional(student, mode="eval")})
    state, _ = run(step, step.init(IMAGES[0]), *IMAGES)
    student.eval()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for batch in IMAGES:
        optimizer.zero_grad()
        F.cross_entropy(student(batch["source"]["x"]), batch["source"]["y"]).backward()
        optimizer.step()
    assert worst(state.trainable["student"], dict(student.named_parameters())) < 1e-12
    assert worst(state.buffers["student"], dict(student.named_buffers())) == 0.0


# -- averages


MODES = [("copy", None), ("copy", "train"), ("lerp", None), ("lerp", "train"), ("own", None), ("own", "eval")]


@pytest.mark.parametrize(("policy", "mode"), MODES)
@pytest.mark.parametrize("trainable", [("student",), {"student": "conv.*"}])
def test_an_average_equals_a_plain_loop(policy: str, mode: str | None, trainable: Any) -> None:
    """In train mode what its own forwards write is dropped, unless the policy is to keep it."""
    decay = tt.schedules.linear(0.5, 0.9, 4)
    terms = {"task": TASK, "c": tt.term(F.mse_loss, "student(target)", "mean(target)", weight=0.5)}
    mean_of = tt.ema("student", decay, buffers=policy, mode=mode)
    step = small_step(terms, CONVS, trainable=trainable, ema={"mean": mean_of}, guard=False)
    state = step.init(IMAGES[0])
    student, mean = conv(1), conv(1).train(mode == "train" or (policy, mode) == ("own", None))
    learned = [p for n, p in student.named_parameters() if n in state.trainable["student"]]
    optimizer = torch.optim.SGD(learned, 0.1)
    for i, batch in enumerate(IMAGES):
        state, _ = step(state, batch)
        optimizer.zero_grad()
        task = F.cross_entropy(student(batch["source"]["x"]), batch["source"]["y"])
        out = student(batch["target"]["x"])
        before = {name: b.clone() for name, b in mean.named_buffers()}
        with torch.no_grad():
            wanted = mean(batch["target"]["x"])
        (task + 0.5 * F.mse_loss(out, wanted)).backward()
        optimizer.step()
        rate = 1 - (0.5 + 0.1 * i)
        if policy != "own":
            mean.load_state_dict(before, strict=False)
        with torch.no_grad():
            for p, q in zip(mean.parameters(), student.parameters(), strict=True):
                p.lerp_(q, rate)
            for p, q in zip(mean.buffers(), student.buffers(), strict=True):
                if policy == "lerp" and p.is_floating_point():
                    p.lerp_(q, rate)
                elif policy != "own":
                    p.copy_(q)
    ours = {**state.frozen["student"], **state.trainable["student"]}
    assert max((ours[n] - p).abs().max().item() for n, p in student.named_parameters()) < 1e-12
    assert worst(state.ema["mean"], dict(mean.named_parameters())) < 1e-12
    assert worst(state.buffers["mean"], dict(mean.named_buffers())) < 1e-12
    # Without the guard, whose selection would part them, no leaf of the new state is another's storage.
    mine = storages(state)
    assert len(mine) == len(set(mine))


BAD_EMA: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "policy": (lambda: tt.ema("student", buffers="cpy"), ("'cpy'", "did you mean 'copy'?")),
    "decay": (lambda: tt.ema("student", "slow"), ("decay", "str")),
    "mode": (lambda: tt.ema("student", mode="training"), ("mode", "'training'")),
}


@pytest.mark.parametrize("name", BAD_EMA)
def test_a_bad_average_is_refused(name: str) -> None:
    make, parts = BAD_EMA[name]
    refused(make, *parts)


# -- reparametrisations


def test_lora_trains_its_delta_alone_and_equals_a_plain_loop() -> None:
    base = mlp(1)
    net = tt.reparam(tt.functional(base), tt.adapters.lora(".*weight", rank=2))
    step = small_step(nets={"student": net}, optimizer=tt.optim.adamw(1e-2, eps=1e-3))
    state = step.init(BATCH)
    assert all(".lora_" in name for name in state.trainable["student"])
    delta = {name: p.clone().requires_grad_() for name, p in state.trainable["student"].items()}
    optimizer = torch.optim.AdamW(delta.values(), 1e-2, eps=1e-3)
    for batch in BATCHES:
        state, _ = step(state, batch)
        optimizer.zero_grad()
        merged = dict(base.named_parameters())
        for name in ("hidden.weight", "fc.weight"):
            merged[name] = merged[name].detach() + delta[f"{name}.lora_b"] @ delta[f"{name}.lora_a"]
        out = torch.func.functional_call(base, merged, (batch["source"]["x"],))
        F.cross_entropy(out, batch["source"]["y"]).backward()
        optimizer.step()
    assert max((state.trainable["student"][n] - p).abs().max().item() for n, p in delta.items()) < 1e-9
    assert worst(state.frozen["student"], dict(base.named_parameters())) == 0.0


def test_a_pattern_selects_base_and_delta_of_a_reparametrised_net() -> None:
    net = tt.reparam(tt.functional(mlp(1)), tt.adapters.lora("hidden.weight", rank=2))
    step = small_step(nets={"student": net}, trainable={"student": [".*lora.*", "fc.bias"]})
    state = step.init(BATCH)
    assert set(state.trainable["student"]) == {"hidden.weight.lora_a", "hidden.weight.lora_b", "fc.bias"}
    after, _ = step(state, BATCH)
    assert worst(after.trainable["student"]["fc.bias"], state.trainable["student"]["fc.bias"]) > 1e-4
    assert worst(after.frozen, state.frozen) == 0.0


def test_an_average_of_a_reparametrised_net_follows_its_delta() -> None:
    net = tt.reparam(tt.functional(mlp(1)), tt.adapters.lora("fc.weight", rank=1))
    terms = {"task": TASK, "c": tt.term(F.mse_loss, "student(target)", "mean(target)")}
    step = small_step(terms, {"student": net}, ema={"mean": tt.ema("student", 0.5)})
    start = step.init(BATCH)
    state, _ = step(start, BATCH)
    for name, p in state.trainable["student"].items():
        assert worst(state.ema["mean"][name], 0.5 * (start.trainable["student"][name] + p)) < 1e-15
