"""Games of several phases equal the imperative loops that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import copied, worst
from tests.support.nets import Batch, conv, images, mlp, vectors
from tests.support.steps import TASK, refused, run, small_step
from ttransfer.core import _tree as tree

BATCHES = [images(seed) for seed in range(3)]
VECTORS = [vectors(seed) for seed in range(3)]


# -- a game of three phases, one of them repeated: maximum classifier discrepancy


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    return (a.softmax(1) - b.softmax(1)).abs().mean()


def body(seed: int) -> nn.Module:
    net = conv(seed)
    net.fc = nn.Identity()
    return net


def head(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 3).double()


class Heads(nn.Module):
    """A body and two heads, so that phases can train parts of one net."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body, self.one, self.two = body(1), head(2), head(3)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.drop(self.body(x))
        return self.one(z), self.two(z)


def both(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(a, y) + F.cross_entropy(b, y)


ORDER = ("all", "heads", "body", "body")
SPLIT = {"all": ".*", "heads": "one.*|two.*", "body": "body.*"}


def mcd(mode: str | None = "train", dropout: float = 0.0, **options: Any) -> tt.Step:
    net = {"net": tt.functional(Heads(dropout), mode=mode)}
    task = tt.term(both, "net(source)[0]", "net(source)[1]", "source.y")
    apart = tt.term(lambda a, b: -discrepancy(a, b), "net(target)[0]", "net(target)[1]", weight=0.7)
    near = tt.term(discrepancy, "net(target)[0]", "net(target)[1]", weight=tt.schedules.linear(0.5, 1.0, 2))
    rules = {
        "all": tt.optim.sgd(0.1, momentum=0.9),
        "heads": tt.optim.sgd(tt.schedules.linear(0.1, 0.2, 2), momentum=0.5),
        "body": tt.optim.adamw(0.01, eps=1e-3, weight_decay=0.0),
    }
    terms = {"all": {"task": task}, "heads": {"task": task, "apart": apart}, "body": {"near": near}}
    phases = {n: tt.step(net, rules[n], terms[n], trainable={"net": SPLIT[n]}, **options) for n in terms}
    return tt.alternate(phases, order=ORDER)


class Mcd:
    """The same as a loop over modules and optimizer objects."""

    def __init__(self) -> None:
        self.net = Heads()
        parts = {"all": self.net, "heads": nn.ModuleList([self.net.one, self.net.two]), "body": self.net.body}
        self.rules: dict[str, torch.optim.Optimizer] = {
            "all": torch.optim.SGD(parts["all"].parameters(), 0.1, momentum=0.9),
            "heads": torch.optim.SGD(parts["heads"].parameters(), 0.1, momentum=0.5),
            "body": torch.optim.AdamW(parts["body"].parameters(), 0.01, eps=1e-3, weight_decay=0.0),
        }

    def step(self, i: int, batch: Batch) -> None:
        self.rules["heads"].param_groups[0]["lr"] = 0.1 + 0.05 * i
        for phase in ORDER:
            self.net.zero_grad()
            loss = torch.zeros(())
            if phase in ("all", "heads"):
                a, b = self.net(batch["source"]["x"])
                loss = loss + F.cross_entropy(a, batch["source"]["y"]) + F.cross_entropy(b, batch["source"]["y"])
            if phase in ("heads", "body"):
                a, b = self.net(batch["target"]["x"])
                loss = loss + (-0.7 if phase == "heads" else 0.5 + 0.25 * i) * discrepancy(a, b)
            loss.backward()
            self.rules[phase].step()


def mcd_gap(state: tt.State, twin: Mcd) -> float:
    ours = {**state.frozen["net"], **state.trainable["net"]}
    pairs = [(ours[n], p) for n, p in twin.net.named_parameters()]
    pairs += [(state.buffers["net"][n], b) for n, b in twin.net.named_buffers()]
    for phase, slot in (("all", "momentum"), ("heads", "momentum"), ("body", "mu"), ("body", "nu")):
        key = {"momentum": "momentum_buffer", "mu": "exp_avg", "nu": "exp_avg_sq"}[slot]
        for name, p in twin.net.named_parameters():
            if name in state.opt[phase][slot]["net"]:
                pairs.append((state.opt[phase][slot]["net"][name], twin.rules[phase].state[p][key]))
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_game_of_three_phases_equals_an_imperative_loop(mode: str) -> None:
    game, twin = mcd(), Mcd()
    game = tt.compile(game, backend="aot_eager") if mode == "compiled" else game
    state = game.init(BATCHES[0])
    for i, batch in enumerate(BATCHES):
        state, _ = game(state, batch)
        twin.step(i, batch)
        assert mcd_gap(state, twin) < 1e-12
        assert int(state.step) == i + 1


def test_a_net_that_a_phase_does_not_train_runs_there_in_eval_mode() -> None:
    """Unless it is forced: without mode="train" phases that freeze the body whole use its running statistics."""
    nets = {"body": tt.functional(body(1)), "head": tt.functional(head(2))}
    whole = tt.term(lambda head, z, y: F.cross_entropy(head(z), y), "head:fn", "body(source)", "source.y")
    one = tt.step(nets, tt.optim.sgd(0.1), trainable=("body", "head"), task=whole)
    two = tt.step(nets, tt.optim.sgd(0.1), trainable=("head",), task=whole)
    game = tt.alternate(one=one, two=two)
    state, _ = run(game, game.init(BATCHES[0]), *BATCHES)
    b, h = body(1), head(2)
    for batch in BATCHES:
        for training in (True, False):
            b.train(training)
            parameters = [*(b.parameters() if training else ()), *h.parameters()]
            optimizer = torch.optim.SGD(parameters, 0.1)
            optimizer.zero_grad()
            F.cross_entropy(h(b(batch["source"]["x"])), batch["source"]["y"]).backward()
            optimizer.step()
    assert worst(state.trainable["body"], dict(b.named_parameters())) < 1e-12
    assert worst(state.trainable["head"], dict(h.named_parameters())) < 1e-12
    assert worst(state.buffers["body"], dict(b.named_buffers())) < 1e-12


# -- a game of two nets: a critic with a gradient penalty, trained twice for each step of the generator


def critic_loss(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    fake = fake.detach()
    middle = 0.5 * (real + fake)
    slope = torch.func.grad(lambda v: critic(v).sum())(middle)
    return critic(fake).mean() - critic(real).mean() + (slope.norm(dim=1) - 1).square().mean()


def generator_loss(critic: Callable[[Tensor], Tensor], fake: Tensor) -> Tensor:
    return -critic(fake).mean()


def make(seed: int, out: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, out)).double()


def gan() -> tt.Step:
    nets = {"g": tt.functional(make(1, 5)), "d": tt.functional(make(2, 1))}
    d = tt.step(nets, tt.optim.adam(0.01), trainable=("d",), w=tt.term(critic_loss, "d:fn", "real.x", "g(noise)"))
    g = tt.step(nets, tt.optim.adam(0.02), trainable=("g",), w=tt.term(generator_loss, "d:fn", "g(noise)"))
    return tt.alternate(d=d, g=g, order=("d", "d", "g"))


def test_a_game_of_two_nets_equals_an_imperative_loop() -> None:
    batches = [{"real": {"x": b["source"]["x"]}, "noise": {"x": b["source"]["x"].roll(1, 0) - 1}} for b in VECTORS]
    game = gan()
    state, logs = run(game, game.init(batches[0]), *batches)
    g, d = make(1, 5), make(2, 1)
    rules = {"g": torch.optim.Adam(g.parameters(), 0.01 * 2), "d": torch.optim.Adam(d.parameters(), 0.01)}
    said: dict[str, Tensor] = {}
    for batch in batches:
        real, noise = batch["real"]["x"], batch["noise"]["x"]
        for phase in ("d", "d", "g"):
            g.zero_grad()
            d.zero_grad()
            fake = g(noise)
            if phase == "d":
                middle = (0.5 * (real + fake.detach())).requires_grad_()
                (slope,) = torch.autograd.grad(d(middle).sum(), middle, create_graph=True)
                loss = d(fake.detach()).mean() - d(real).mean() + (slope.norm(dim=1) - 1).pow(2).mean()
            else:
                loss = -d(fake).mean()
            loss.backward()
            rules[phase].step()
            said[phase] = loss.detach()
    assert worst(state.trainable["g"], dict(g.named_parameters())) < 1e-12
    assert worst(state.trainable["d"], dict(d.named_parameters())) < 1e-12
    # A repeated phase tells of its last run, and the loss is the sum over phases.
    assert abs(logs["d.w"] - said["d"]) < 1e-12
    assert abs(logs["g.loss"] - said["g"]) < 1e-12
    assert abs(logs["loss"] - said["d"] - said["g"]) < 1e-12
    assert "w" not in logs


# -- what a game keeps


def test_the_structure_of_a_games_state_does_not_change() -> None:
    game = mcd()
    state = game.init(BATCHES[0])
    after, _ = run(game, state, *BATCHES)
    one, two = tree.paths(state), tree.paths(after)
    assert list(one) == list(two)
    assert [(x.shape, x.dtype) for x in one.values()] == [(x.shape, x.dtype) for x in two.values()]
    pointers = [x.untyped_storage().data_ptr() for x in one.values() if x.numel()]
    assert len(pointers) == len(set(pointers))
    assert list(state.opt) == ["all", "heads", "body"]
    assert {name.split(".")[0] for name in state.hyper} == {"all", "heads", "body"}
    assert list(state.trainable["net"]) == [name for name, _ in Heads().named_parameters()]


def test_the_inputs_of_a_game_are_left_alone() -> None:
    game = mcd(dropout=0.3)
    state = game.init(BATCHES[0])
    before = copied((state, BATCHES[0]))
    versions = [x._version for x in tree.leaves((state, BATCHES[0]))]
    generator = torch.get_rng_state()
    once = game(state, BATCHES[0])
    assert worst((state, BATCHES[0]), before) == 0.0
    assert [x._version for x in tree.leaves((state, BATCHES[0]))] == versions
    assert torch.equal(generator, torch.get_rng_state())
    assert worst(once, game(state, BATCHES[0])) == 0.0


def test_masks_differ_by_turn_and_by_step() -> None:
    nets = {"student": tt.functional(mlp(1, p=0.5))}
    still = small_step({"task": TASK}, nets, tt.optim.sgd(0.0))
    game = tt.alternate(one=still, two=still)
    state = game.init(VECTORS[0])
    values = []
    for _ in range(3):
        state, logs = game(state, VECTORS[0])
        values += [logs["one.task"].item(), logs["two.task"].item()]
    assert len(set(values)) == 6
    again = tt.alternate(one=still, order=("one", "one"))
    assert again(again.init(VECTORS[0]), VECTORS[0])[1]["one.task"].item() == values[1]
    # The first turn draws as the phase alone does.
    assert still(still.init(VECTORS[0]), VECTORS[0])[1]["task"].item() == values[0]


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_members_of_a_game_equal_their_own_runs(mode: str) -> None:
    game = tt.replace(mcd(dropout=0.3), order=("all", "heads", "body"))
    many = tt.sweep(tt.ensemble(game, 2), {"all.optim.lr": [0.1, 0.02], "heads.apart.weight": [0.7, 0.1]})
    many = tt.compile(many, backend="aot_eager") if mode == "compiled" else many
    start = many.init(BATCHES[0], seed=4)
    state, logs = run(many, start, *BATCHES[:2])
    assert logs["loss"].shape == (2, 2)
    for i in range(2):
        for j in range(2):
            alone, _ = run(game, tt.member(start, i, j), *BATCHES[:2])
            assert worst(tt.member(state, i, j), alone) < 1e-12
    assert worst(tt.member(state, 0, 0).trainable, tt.member(state, 1, 0).trainable) > 1e-4
    assert worst(tt.member(state, 0, 0).trainable, tt.member(state, 0, 1).trainable) > 1e-4


def test_a_phase_that_is_not_finite_takes_back_the_whole_turn() -> None:
    game = mcd()
    state, logs = run(game, game.init(BATCHES[0]), BATCHES[0])
    assert logs["finite"]
    broken = copied(BATCHES[1])
    broken["target"]["x"][0] = math.nan
    kept, logs = game(state, broken)
    assert logs["all.finite"]
    assert not logs["heads.finite"]
    assert not logs["finite"]
    assert worst(kept, state) == 0.0
    free = mcd(guard=False)
    assert "finite" not in free(free.init(BATCHES[0]), BATCHES[0])[1]


def test_terms_of_one_name_keep_their_parameters_and_states_apart() -> None:
    def counting(x: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
        return x.square().mean(), state + 1

    def phase(lr: float) -> tt.Step:
        terms = {
            "d": tt.terms.dann("student(source)", "student(target)", critic=tt.adapters.mlp(4), scale=0.5),
            "n": tt.term(counting, "student(source)", state=lambda generator, x: torch.zeros(())),
        }
        return small_step(terms, nets, tt.optim.sgd(lr))

    nets = {"student": tt.functional(mlp(1))}
    one, two = phase(0.1), phase(0.2)
    game = tt.alternate(one=one, two=two, order=("one", "two", "two"))
    state = game.init(VECTORS[0], seed=3)
    assert list(state.trainable["terms"]) == ["one.d", "one.n", "two.d", "two.n"]
    after, _ = run(game, state, *VECTORS)
    assert (after.terms["one.n"].item(), after.terms["two.n"].item()) == (3, 6)
    # The same as stepping each phase's own state by hand, with the net handed over.
    mine = {"one": one.init(VECTORS[0], seed=3), "two": two.init(VECTORS[0], seed=3)}
    student = mine["one"].trainable["student"]
    for i, batch in enumerate(VECTORS):
        for name in ("one", "two", "two"):
            s = mine[name]
            view = tt.State({**s.trainable, "student": student}, *s[1:7], torch.tensor(i), s.seed)
            mine[name], _ = (one if name == "one" else two)(view, batch)
            student = mine[name].trainable["student"]
    assert worst(after.trainable["student"], student) < 1e-12
    for name, s in mine.items():
        assert worst(after.trainable["terms"][f"{name}.d"], s.trainable["terms"]["d"]) < 1e-12
        assert worst(after.opt[name], s.opt) < 1e-12


def test_statistics_per_domain_are_joined_over_phases() -> None:
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    options: dict[str, Any] = {"buffers": {"student": "per_domain"}}
    one = small_step({"task": TASK}, nets, **options)
    two = small_step({"ent": tt.term(tt.losses.entropy, "student(target)")}, nets, **options)
    game = tt.alternate(one=one, two=two)
    state, _ = game(game.init(BATCHES[0]), BATCHES[0])
    assert set(state.buffers) == {"student(source)", "student(target)", "teacher"}
    student = conv(1)
    student(BATCHES[0]["source"]["x"])
    assert worst(state.buffers["student(source)"], dict(student.named_buffers())) < 1e-12
    assert worst(state.buffers["student(target)"], state.buffers["student(source)"]) > 1e-3


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_an_average_follows_what_other_phases_train_too(mode: str) -> None:
    nets = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
    ema = {"mean": tt.ema("student", 0.6)}
    one = small_step({"task": TASK}, nets, trainable={"student": "hidden.*"})
    consistency = tt.term(F.mse_loss, "student(target)", "mean(target)")
    two = small_step({"task": TASK, "c": consistency}, nets, trainable={"student": "fc.*"}, ema=ema)
    game = tt.alternate(one=one, two=two)
    game = tt.compile(game, backend="aot_eager") if mode == "compiled" else game
    state, _ = run(game, game.init(VECTORS[0]), *VECTORS)
    student, mean = mlp(1), mlp(1)
    for batch in VECTORS:
        for phase in ("one", "two"):
            student.zero_grad()
            loss = F.cross_entropy(student(batch["source"]["x"]), batch["source"]["y"])
            if phase == "two":
                loss = loss + F.mse_loss(student(batch["target"]["x"]), mean(batch["target"]["x"]).detach())
            loss.backward()
            with torch.no_grad():
                for p in (student.hidden if phase == "one" else student.fc).parameters():
                    p -= 0.1 * p.grad
        with torch.no_grad():
            for p, q in zip(mean.parameters(), student.parameters(), strict=True):
                p.lerp_(q, 0.4)
    assert worst(state.trainable["student"], dict(student.named_parameters())) < 1e-12
    assert worst(state.ema["mean"], dict(mean.named_parameters())) < 1e-12


# -- bad input


def pair(**changes: Any) -> tuple[tt.Step, tt.Step]:
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    return small_step(nets=nets), small_step(nets=nets, **changes)


def of(one: Any, two: Any, **options: Any) -> tt.Step:
    return tt.alternate(one=one, two=two, **options)


def average(of: str) -> tt.Step:
    return small_step(nets=NETS, ema={"mean": tt.ema(of)})


NETS = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
WITH_MEAN = {**NETS, "mean": NETS["teacher"]}
BAD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "no phases": (tt.alternate, ("no phases",)),
    "a phase twice": (lambda: tt.alternate({"one": pair()[0]}, one=pair()[0]), ("'one' is given twice",)),
    "unknown phase": (lambda: of(*pair(), order=("one", "tow")), ("'tow'", "did you mean 'two'?")),
    "phase left out": (lambda: of(*pair(), order=("one",)), ("leaves out the phase 'two'",)),
    "no step": (lambda: of(pair()[0], TASK), ("phase 'two' is Term", "tt.step")),
    "name with a dot": (lambda: tt.alternate({"a.b": small_step()}), ("'a.b'", "identifier")),
    "a stacked phase": (lambda: of(pair()[0], tt.ensemble(pair()[0], 2)), ("'two' must be a plain tt.step",)),
    "a game as a phase": (lambda: of(small_step(), tt.alternate(one=small_step())), ("'two' must be a plain tt.step",)),
    "other nets of one name": (
        lambda: of(small_step(), small_step()),
        ("'one' and 'two'", "different nets", "'student'"),
    ),
    "buffers apart in one phase": (
        lambda: of(*pair(buffers={"student": "per_domain"})),
        ("buffers of 'student' are per domain", "'one', 'two'"),
    ),
    "averages of different nets": (
        lambda: of(average("student"), average("teacher")),
        ("'mean' is an average of 'student'", "an average of 'teacher' in phase 'two'"),
    ),
    "an average that is a net elsewhere": (
        lambda: of(average("student"), small_step(nets=WITH_MEAN)),
        ("'mean' is an average of 'student'", "a net of its own in phase 'two'"),
    ),
    "a net that is an average elsewhere": (
        lambda: of(small_step(nets=WITH_MEAN), average("student")),
        ("'mean' is a net of its own", "an average of 'student' in phase 'two'"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_game_is_refused_when_it_is_made(name: str) -> None:
    make_game, parts = BAD[name]
    refused(make_game, *parts)


def test_a_bad_batch_is_refused_by_the_phase_that_reads_it() -> None:
    game = mcd()
    state = game.init(BATCHES[0])
    refused(lambda: game(state, {"source": BATCHES[0]["source"]}), "no domain 'target'")
    refused(lambda: game.init({"source": BATCHES[0]["source"]}), "no domain 'target'")
