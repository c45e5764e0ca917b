"""Forwards and readings: batches, picks, parameters and functions of nets, second passes, joined domains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import conv, images, mlp, vectors
from tests.support.steps import TASK, refused, run, small_step
from ttransfer.core._keyed import row_keys, salt

BATCH = vectors(0)
BATCHES = [vectors(seed) for seed in range(3)]
X, Y = BATCH["source"]["x"], BATCH["source"]["y"]


def source(**changes: Any) -> dict[str, Any]:
    return {**BATCH, "source": {**BATCH["source"], **changes}}


# -- batches

BAD_BATCHES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no domain": ({"sorce": BATCH["source"]}, ("no domain 'source'", "did you mean 'sorce'?")),
    "an empty batch": ({}, ("no domain 'source'", "there are none")),
    "no field": ({"source": {"x": X, "label": Y}}, ("'source'", "no field 'y'", "there are: label, x")),
    "a tuple": ((X, Y), ("a batch maps domains to fields", "[(6, 5) float64, (6,) int64]")),
    "a tensor for a domain": ({"source": X}, ("domain 'source'", "maps fields to tensors", "(6, 5) float64")),
    "a list for a field": (source(y=[0] * 6), ("source.y", "must be a tensor")),
    "a number for a field": (source(y=torch.tensor(1)), ("source.y", "one row per example", "State.hyper")),
    "an empty domain": (source(x=X[:0], y=Y[:0]), ("domain 'source'", "is empty")),
    "an empty field": (source(y=Y[:0]), ("domain 'source'", "is empty", "'y': 0")),
    "uneven rows": (source(y=Y[:4]), ("domain 'source'", "same number of rows", "'x': 6", "'y': 4")),
    "another width": (source(x=X[:, :4]), ("student(source)", "(6, 4) float64")),
    "another dtype": (source(x=X.float()), ("student(source)", "(6, 5) float32")),
}


# Without computing, shapes are known, but not what a kernel thinks of its dtypes.
AT_INIT = [(name, "init") for name in BAD_BATCHES if name != "another dtype"]


@pytest.mark.parametrize(("name", "when"), [*AT_INIT, *((name, "call") for name in BAD_BATCHES)])
def test_a_bad_batch_is_refused(name: str, when: str) -> None:
    batch, parts = BAD_BATCHES[name]
    step = small_step()
    state = step.init(BATCH)
    refused(lambda: step.init(batch) if when == "init" else step(state, batch), *parts)


def test_what_no_term_reads_is_not_looked_at() -> None:
    step = small_step()
    state = step.init(BATCH)
    strange = {**source(extra=None, path=["a.png"]), "other": 3}
    assert worst(step(state, BATCH), step(state, strange)) == 0.0


# -- picks


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclasses.dataclass
class Record:
    logits: Tensor


class Many(nn.Module):
    """A net with outputs of all kinds; its keys are also names of a dict's own methods."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> dict[str, Any]:
        out = self.fc(x)
        pair = self.inner(Pair(out, 2 * out))
        return {"values": 3 * out, "items": [4 * out, (5 * out,)], "pair": pair, "record": Record(6 * out)}


PICKS = {
    "student(source)[values]": 3,
    "student(source)[items][0]": 4,
    "student(source)[items][1][0]": 5,
    "student(source)[items][-1][0]": 5,
    "student(source)[pair][logits]": 1,
    "student(source)[pair][1]": 2,
    "student(source)[record][logits]": 6,
    "student(source).inner[features]": 2,
    "student(source).inner:in[0]": 1,
    "student(source).fc:in": None,
}


@pytest.mark.parametrize("path", PICKS)
def test_picks_reach_into_outputs(path: str) -> None:
    torch.manual_seed(0)
    net = Many().double()
    term = tt.term(lambda a: a.square().mean(), path, weight=0.0 if PICKS[path] is None else 1.0)
    step = small_step({"t": term}, {"student": tt.functional(net)})
    _, logs = step(step.init(BATCH), BATCH)
    expected = X if PICKS[path] is None else PICKS[path] * net.fc(X)
    assert abs(logs["t"].item() - expected.square().mean().item()) < 1e-12


BAD_PICKS: dict[str, tuple[str, ...]] = {
    "student(source)[value]": ("[value]", "did you mean 'values'?"),
    "student(source)[0]": ("[0]", "there are: items, pair, record, values"),
    "student(source)[items][2]": ("[2]", "[(6, 3) float64"),
    "student(source)[items][first]": ("[first]",),
    "student(source)[pair][logit]": ("[logit]", "did you mean 'logits'?"),
    "student(source)[pair][count]": ("[count]", "there are: features, logits"),
    "student(source)[values][mean]": ("[mean]", "(6, 3) float64"),
    "source.x[mean]": ("[mean]", "(6, 5) float64"),
}


@pytest.mark.parametrize("path", BAD_PICKS)
def test_a_pick_of_nothing_is_refused_at_init(path: str) -> None:
    step = small_step({"t": tt.term(lambda a: a.mean(), path)}, {"student": tt.functional(Many().double())})
    refused(lambda: step.init(BATCH), path, *BAD_PICKS[path])


# -- the batch's own fields, and nets with other inputs


def test_each_net_takes_the_fields_that_it_names() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.body(x * mask)

    teacher = Two()
    nets = {"student": tt.functional(mlp(1), inputs=("weak",)), "teacher": tt.functional(teacher, inputs=("x", "mask"))}
    step = small_step({"t": tt.term(F.mse_loss, "student(source)", "teacher(source)")}, nets)
    batch = {"source": {"weak": X + 1, "x": X, "mask": (X > 0).double()}}
    _, logs = step(step.init(batch), batch)
    assert abs(logs["t"].item() - F.mse_loss(mlp(1)(X + 1), teacher(X, (X > 0).double())).item()) < 1e-12


# -- parameters of nets


def l2_sp(now: dict[str, Tensor], start: dict[str, Tensor]) -> Tensor:
    """Side by side, not by name: the order of both is the net's own."""
    return torch.stack([((a - b) ** 2).sum() for a, b in zip(now.values(), start.values(), strict=True)]).sum()


@pytest.mark.parametrize("trainable", [("student",), {"student": "hidden.*"}, {"student": ".*bias"}])
def test_l2_sp_equals_a_plain_loop_whatever_is_trained(trainable: Any) -> None:
    terms = {"task": TASK, "sp": tt.term(l2_sp, "student:params", "teacher:params", weight=0.3)}
    step = small_step(terms, trainable=trainable, optimizer=tt.optim.sgd(0.1, momentum=0.9))
    state = step.init(BATCH)
    student, teacher = mlp(1), mlp(2)
    learned = [p for n, p in student.named_parameters() if n in state.trainable["student"]]
    optimizer = torch.optim.SGD(learned, 0.1, momentum=0.9)
    for batch in BATCHES:
        state, logs = step(state, batch)
        optimizer.zero_grad()
        pairs = zip(student.parameters(), teacher.parameters(), strict=True)
        sp = torch.stack([(p - q.detach()).pow(2).sum() for p, q in pairs]).sum()
        (F.cross_entropy(student(batch["source"]["x"]), batch["source"]["y"]) + 0.3 * sp).backward()
        optimizer.step()
        assert abs(logs["sp"].item() - sp.item()) < 1e-12
    ours = {**state.frozen["student"], **state.trainable["student"]}
    assert max((ours[n] - p).abs().max().item() for n, p in student.named_parameters()) < 1e-12


def test_parameters_of_an_average_and_of_a_reparametrised_net_can_be_read() -> None:
    seen: dict[str, list[str]] = {}

    def note(mean: dict[str, Tensor], lora: dict[str, Tensor]) -> Tensor:
        seen["mean"], seen["lora"] = list(mean), list(lora)
        return torch.stack([p.square().sum() for p in (*mean.values(), *lora.values())]).sum()

    nets = {
        "student": tt.functional(mlp(1)),
        "lora": tt.reparam(tt.functional(mlp(2)), tt.adapters.lora("fc.weight", rank=1)),
    }
    step = small_step(
        {"task": TASK, "t": tt.term(note, "mean:params", "lora:params")},
        nets,
        trainable=("student", "lora"),
        ema={"mean": tt.ema("student")},
    )
    step(step.init(BATCH), BATCH)
    names = ["hidden.weight", "hidden.bias", "fc.weight", "fc.bias"]
    assert seen == {"mean": names, "lora": [*names, "fc.weight.lora_a", "fc.weight.lora_b"]}


# -- nets as functions


def penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient penalty: the critic's slope should be one."""
    slope = torch.func.grad(lambda v: critic(v).sum())(x)
    return (slope.norm(dim=1) - 1).square().mean()


def plain_penalty(critic: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


def adversarial(net: Callable[[Tensor], Tensor], x: Tensor, start: Tensor) -> Tensor:
    """Virtual adversarial training with one power iteration."""
    here = net(x).detach().log_softmax(1)

    def away(step: Tensor) -> Tensor:
        return F.kl_div(net(x + step).log_softmax(1), here, log_target=True, reduction="batchmean")

    slope = torch.func.grad(away)(1e-3 * F.normalize(start))
    return away(0.5 * F.normalize(slope).detach())


def plain_adversarial(net: nn.Module, x: Tensor, start: Tensor) -> Tensor:
    here = net(x).detach().log_softmax(1)

    def away(step: Tensor) -> Tensor:
        return F.kl_div(net(x + step).log_softmax(1), here, log_target=True, reduction="batchmean")

    step = (1e-3 * F.normalize(start)).requires_grad_()
    (slope,) = torch.autograd.grad(away(step), step)
    return away(0.5 * F.normalize(slope))


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_gradient_penalty_and_virtual_adversary_equal_autograd(mode: str) -> None:
    terms = {
        "task": TASK,
        "gp": tt.term(penalty, "student:fn", "source.x", weight=0.5),
        "vat": tt.term(adversarial, "student:fn", "target.x", "target.r", weight=0.3),
    }
    step = small_step(terms)
    step = tt.compile(step, backend="aot_eager") if mode == "compiled" else step
    batches = [{**b, "target": {**b["target"], "r": b["target"]["x"].roll(1, 1)}} for b in BATCHES[:2]]
    state, _ = run(step, step.init(batches[0]), *batches)
    student = mlp(1)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for batch in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(student(batch["source"]["x"]), batch["source"]["y"])
        loss = loss + 0.5 * plain_penalty(student, batch["source"]["x"])
        (loss + 0.3 * plain_adversarial(student, batch["target"]["x"], batch["target"]["r"])).backward()
        optimizer.step()
    assert worst(state.trainable["student"], dict(student.named_parameters())) < 1e-9


def test_a_frozen_net_as_a_function_passes_the_gradient_of_its_input_on() -> None:
    def perceptual(net: Callable[[Tensor], Tensor], out: Tensor) -> Tensor:
        return net(F.pad(out, (0, 2))).square().mean()

    step = small_step({"t": tt.term(perceptual, "teacher:fn", "student(source)")})
    state = step.init(BATCH)
    new, _ = step(state, BATCH)
    student, teacher = mlp(1), mlp(2)
    teacher(F.pad(student(X), (0, 2))).square().mean().backward()
    for name, p in student.named_parameters():
        assert (state.trainable["student"][name] - 0.1 * p.grad - new.trainable["student"][name]).abs().max() < 1e-12
    assert worst(new.frozen, state.frozen) == 0.0


def test_a_function_writes_no_buffers_and_uses_those_of_the_forwards() -> None:
    def same(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return net(x).square().mean()

    batch = images(0)
    step = small_step({"t": tt.term(same, "student:fn", "source.x")}, {"student": tt.functional(conv(1))})
    state = step.init(batch)
    assert worst(step(state, batch)[0].buffers, state.buffers) == 0.0
    frozen = {"student": tt.functional(conv(1)), "fixed": tt.functional(conv(2))}
    step = small_step({"task": TASK, "t": tt.term(same, "fixed:fn", "source.x", weight=0.0)}, frozen)
    value = step(step.init(batch), batch)[1]["t"]
    assert abs(value.item() - conv(2).eval()(batch["source"]["x"]).square().mean().item()) < 1e-12


def test_a_function_with_dropout_repeats_its_masks_within_a_step_and_not_across() -> None:
    def same(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return (net(x) - net(x)).abs().sum()

    def total(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return net(x).sum()

    terms = {name: tt.term(fn, "student:fn", "source.x") for name, fn in {"same": same, "total": total}.items()}
    nets = {"student": tt.functional(mlp(1, p=0.5))}
    step = small_step(terms, nets, optimizer=tt.optim.sgd(0.0))
    state = step.init(BATCH)
    once, first = step(state, BATCH)
    again, second = step(once, BATCH)
    assert worst(once.trainable, again.trainable) == 0.0
    assert first["same"] == second["same"] == 0.0
    values = {first["total"].item(), second["total"].item(), mlp(1)(X).sum().item()}
    assert len(values) == 3
    assert torch.equal(step(state, BATCH)[1]["total"], first["total"])


# -- second passes and joined domains


def r_drop(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.log_softmax(1), b.log_softmax(1)
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(1).mean()


def test_a_second_pass_has_other_masks_and_both_get_a_gradient() -> None:
    module = mlp(1, p=0.5)
    net = tt.functional(module, mode="train")
    step = small_step({"t": tt.term(r_drop, "student(source)", "student(source)#2")}, {"student": net})
    state = step.init(BATCH, seed=7)
    for batch in BATCHES[:2]:
        rows = torch.arange(6)
        keys = [row_keys(state.seed, state.step, salt("student", n, "source"), rows) for n in (1, 2)]

        def twin(params: dict[str, Tensor], keys: list[Tensor] = keys, x: Tensor = batch["source"]["x"]) -> Tensor:
            return r_drop(*(net.apply(params, {}, x, keys=k).value for k in keys))

        old = {name: p.clone().requires_grad_() for name, p in state.trainable["student"].items()}
        value = twin(old)
        value.backward()
        state, logs = step(state, batch)
        assert value > 1e-3
        assert abs(logs["t"].item() - value.item()) < 1e-12
        for name, p in old.items():
            assert (p - 0.1 * p.grad - state.trainable["student"][name]).abs().max() < 1e-12
    without = small_step({"t": tt.term(r_drop, "student(source)", "student(source)#2")})
    assert without(without.init(BATCH), BATCH)[1]["t"] == 0.0


def test_a_second_pass_moves_running_statistics_again() -> None:
    batch = images(0)
    nets = {"student": tt.functional(conv(1))}
    step = small_step({"t": tt.term(F.mse_loss, "student(source)", "student(source)#2"), "task": TASK}, nets)
    state, _ = step(step.init(batch), batch)
    student = conv(1)
    student(batch["source"]["x"])
    student(batch["source"]["x"])
    assert worst(state.buffers["student"], dict(student.named_buffers())) < 1e-12


class Folded(nn.Module):
    """Rows are folded with windows inside, and there is an output that has no rows at all."""

    def __init__(self, aside: bool = False) -> None:
        super().__init__()
        self.fc, self.windows = nn.Linear(5, 3), nn.Identity()
        self.aside = aside

    def forward(self, x: Tensor) -> Any:
        folded = self.windows(x.reshape(-1, 1))
        out = self.fc(folded.reshape(-1, 5))
        return {"out": out, "aside": out.sum(0)} if self.aside else {"out": out, "scale": out.sum()}


def test_joined_domains_are_cut_by_rows_folded_ones_too() -> None:
    torch.manual_seed(0)
    net = Folded().double()

    def both(a: Tensor, b: Tensor, c: Tensor, scale: Tensor) -> Tensor:
        return a.square().mean() + 2 * b.mean() + 3 * c.mean() + 5 * scale

    reads = ("student(source)[out]", "student(target)[out]", "student(target).windows", "student(source)[scale]")
    step = small_step({"t": tt.term(both, *reads)}, {"student": tt.functional(net)}, joint=[("target", "source")])
    _, logs = step(step.init(BATCH), BATCH)
    z = BATCH["target"]["x"]
    total = net.fc(X).sum() + net.fc(z).sum()
    assert abs(logs["t"].item() - both(net.fc(X), net.fc(z), z.reshape(-1, 1), total).item()) < 1e-9


def test_what_has_no_rows_cannot_be_cut_by_domain() -> None:
    terms = {"t": tt.term(lambda a, b: a.mean() + b.mean(), "student(source)[out]", "student(target)[out]")}
    nets = {"student": tt.functional(Folded(aside=True).double())}
    small_step(terms, nets).init(BATCH)
    joined = small_step(terms, nets, joint=[("source", "target")])
    refused(lambda: joined.init(BATCH), "joint", "student(source + target)", "(3,) float64", "10 rows")


def test_joined_dropout_gives_each_row_the_mask_that_it_has_alone() -> None:
    terms = {"t": tt.term(tt.align.mmd, "student(source)", "student(target)"), "task": TASK}
    nets = {"student": tt.functional(mlp(1, p=0.5))}
    apart, joined = (small_step(terms, nets, joint=groups) for groups in ((), [("target", "source")]))
    assert worst(run(apart, apart.init(BATCH), *BATCHES), run(joined, joined.init(BATCH), *BATCHES)) < 1e-12
