"""MNIST to UCI digits, eleven ways: what each method adds, when nobody may look at the target's labels.

The data, the network and the learning rate are those of mnist_to_digits.py: 2000 labelled MNIST images are the source,
half of the 1797 UCI digits are the target, without labels, and the other half is the test.

Each way is the same expression with one thing changed (`ways_of`), and is trained on the same batches for the same
number of steps, with three seeds and three weights at once: one `tt.sweep` of a `tt.ensemble`. The weights are the
paper's, a tenth of it, and ten times it. Which one counts is chosen without labels, by the information that predictions
on the target's training images hold (`information`), in the mean over the seeds. Labels of the target serve for the
table, for the way "target labels", and for the column "best weight": it says what could have been had by looking, and
so what the choice without labels costs. What this gave, and what was changed after a first run: docs/adapt_digits.md.

- source only: cross-entropy on the source;
- AdaBN: batch normalisation keeps statistics for each domain;
- CORAL, MMD, JMMD: distances of features are made small;
- DANN, CDAN+E: a critic tells the domains apart, and features fool it;
- MCD: two classifiers disagree on the target, and features make them agree: six updates on each batch;
- MCC: predictions on the target confuse no classes;
- mean teacher: a running average of the network teaches it on distorted images of the target;
- SHOT: half of the steps on the source, then half on the target alone, with the last layer frozen;
- target labels: cross-entropy on the target's own labels, which is what could be reached.

Run it with ``make demo-adapt``, or ``python examples/adapt_digits.py --help``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from adapt_digits_report import Run, draw, kept, table
from mnist_to_digits import BATCH, FEATURES, LEARNING_RATE, Data, load, network, source_only
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt

SEEDS = 3
STEPS = 250
DECADE = (0.1, 1.0, 10.0)  # times what is written in `ways_of`: the paper's weight, or its authors' for digits


def information(logits: Tensor) -> Tensor:
    """How much predictions (..., image, class) tell of the class, in nats: H(mean of p) - mean of H(p).

    It is large where each prediction is sure and all classes are predicted, so it takes the classes to be about as
    frequent as each other. As a criterion it is pytorch-adapt's IMValidator, and minus `tt.align.infomax`. Its source:
    Andreas Krause, Pietro Perona, Ryan Gomes. Discriminative Clustering by Regularized Information Maximization. 2010.
    """
    p = logits.double().softmax(-1)
    return torch.special.entr(p.mean(-2)).sum(-1) - torch.special.entr(p).sum(-1).mean(-1)


def distorted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, stretch and move images a little, and add noise: the mean teacher's hard view."""
    n = len(x)
    turn = torch.eye(2) + 0.1 * torch.randn(n, 2, 2, generator=generator)
    move = (torch.rand(n, 2, 1, generator=generator) - 0.5) * 0.25  # at most 2 of MNIST's 28 pixels
    where = F.affine_grid(torch.cat([turn, move], 2), list(x.shape), align_corners=False)
    return F.grid_sample(x, where, align_corners=False) + 0.1 * torch.randn(x.shape, generator=generator)


def batches(data: Data, labels: bool = False) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Yield the same batches to every way. A row's number finds its pseudo-label; no label leaves unless asked for."""
    seen = {"x": data.target["x"], "row": torch.arange(len(data.target["x"]))}
    loaders = {
        "source": tt.loader(data.source, batch_size=BATCH, last="drop"),
        "target": tt.loader({**seen, "y": data.target["y"]} if labels else seen, batch_size=BATCH, last="drop"),
    }
    generator = torch.Generator().manual_seed(0)
    for batch in tt.domains(loaders, seed=0):
        yield {**batch, "strong": {"x": distorted(batch["target"]["x"], generator)}}


class TwoHeads(nn.Module):
    """The network with a second last layer, for MCD."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = network().children()
        self.other = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both."""
        features = self.body(x)
        return self.head(features), self.other(features)


def nothing(x: Tensor) -> Tensor:
    """A loss that only asks for the forward."""
    return 0 * x.sum()


def softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def labelled(logits: Tensor, rows: Tensor, *, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy by pseudo-labels, which are kept as the term's state until `relabelled` renews them."""
    return F.cross_entropy(logits, state["labels"][rows]), state


class Way(NamedTuple):
    """A way to train.

    Attributes:
        step: of one seed, with the paper's weight.
        weights: names in `State.hyper` that are swept, together.
        net: the path of what is tested.
        before: trained first, with half of the steps; `step` goes on from its network.
    """

    step: tt.Step
    weights: tuple[str, ...] = ()
    net: str = "net"
    before: tt.Step | None = None


def ways_of(steps: int, images: int) -> dict[str, Way]:
    """All ways for a target of so many images: one expression, and what is changed in it."""
    source, target = f"net(source).{FEATURES}", f"net(target).{FEATURES}"
    logits = "net(source)", "net(target)"
    joint = [source, tt.read("net(source)") | softmax], [target, tt.read("net(target)") | softmax]
    critic, ramp, align, terms = tt.adapters.mlp(64), tt.schedules.ramp(steps), tt.align, tt.terms
    alone, half = source_only(steps), source_only(steps // 2)

    def no_labels(*_: Any) -> dict[str, Tensor]:
        return {"labels": torch.zeros(images, dtype=torch.int64)}

    return {
        "source only": Way(alone),
        "AdaBN": Way(
            tt.replace(alone, buffers={"net": "per_domain"}, seen=tt.term(nothing, "net(target)")), net="net(target)"
        ),
        # Its paper wants both losses to end about equal: they do within a factor of about 2, whatever the weight.
        "CORAL": Way(tt.replace(alone, coral=tt.term(align.coral, source, target, weight=10.0)), ("coral.weight",)),
        "MMD": Way(tt.replace(alone, mmd=tt.term(align.mmd, source, target)), ("mmd.weight",)),
        "JMMD": Way(tt.replace(alone, jmmd=tt.term(align.jmmd, *joint, weight=ramp)), ("jmmd.weight.high",)),
        "DANN": Way(tt.replace(alone, dann=terms.dann(source, target, critic=critic, scale=ramp)), ("dann.weight",)),
        "CDAN+E": Way(
            tt.replace(alone, cdan=terms.cdan_e(source, target, *logits, critic=critic, scale=ramp)), ("cdan.weight",)
        ),
        # What the body learns alone, Adam takes in steps of one size whatever its weight: it is the rate that is swept.
        "MCD": Way(mcd(steps), ("heads.apart.weight", "body.optim.lr.peak"), net="net(target)[0]"),
        "MCC": Way(tt.replace(alone, mcc=tt.term(align.mcc, "net(target)")), ("mcc.weight",)),
        "mean teacher": Way(
            tt.replace(
                alone,
                ema={"mean": tt.ema("net", 0.99, buffers="own")},
                alike=tt.term(
                    align.consistency, "net(strong)", "mean(target)", weight=tt.schedules.ramp(steps, high=3.0)
                ),
            ),
            ("alike.weight.high",),
            net="mean",
        ),
        "SHOT": Way(
            tt.replace(
                half,
                trainable={"net": "body.*"},
                terms={
                    "infomax": tt.term(align.infomax, "net(target)"),
                    "pseudo": tt.term(labelled, "net(target)", "target.row", state=no_labels, weight=0.1),
                },
            ),
            ("pseudo.weight",),
            before=tt.replace(half, task=tt.term(F.cross_entropy, "net(source)", "source.y", label_smoothing=0.1)),
        ),
        "target labels": Way(tt.replace(alone, task=tt.term(F.cross_entropy, "net(target)", "target.y"))),
    }


def mcd(steps: int) -> tt.Step:
    """A game of three: all learn the source, the heads part on the target, the body makes them meet, four times."""
    nets = {"net": tt.functional(TwoHeads, mode="train")}
    both = (("net(source)[0]", "net(source)[1]"), ("net(target)[0]", "net(target)[1]"))
    phases = tt.terms.mcd(*both, "source.y")
    learns = {"all": ".*", "heads": "head.*|other.*", "body": "body.*"}
    rate = tt.optim.adam(tt.schedules.cosine(LEARNING_RATE, steps))
    return tt.alternate(
        {name: tt.step(nets, rate, phases[name], trainable={"net": learns[name]}) for name in phases},
        order=("all", "heads", *["body"] * 4),
    )


def train(way: Way, data: Data, stream: Iterator[Any], steps: int, seeds: int, backend: str) -> Run:
    """Train all seeds and weights of one way at once."""
    began = time.process_time()
    example = next(stream)

    def many(step: tt.Step, grid: dict[str, list[float]]) -> tt.Step:
        step = tt.ensemble(step, seeds)
        step = tt.sweep(step, grid) if grid else step
        return tt.compile(step, backend=backend, donate=True) if grid and backend != "none" else step

    def updated(step: tt.Step, state: tt.State, updates: int) -> tt.State:
        for batch in itertools.islice(stream, updates):
            state, logs = step(state, batch)
            assert logs["finite"].all()
        return state

    papers = way.step.init(example).hyper
    grid = {name: [times * float(papers[name]) for times in DECADE] for name in way.weights}
    step = many(way.step, grid)
    state = step.init(example, seed=0)
    if way.before is None:
        state = updated(step, state, steps)
    else:
        first = many(way.before, {})
        state = going_on(state, updated(first, first.init(example, seed=0), steps // 2))
        epoch = len(data.target["x"]) // BATCH
        for done in range(0, steps // 2, epoch):
            state = relabelled(step, state, data.target["x"])
            state = updated(step, state, min(epoch, steps // 2 - done))
    seconds = time.process_time() - began

    net = tt.predict(step, state, way.net)
    seen, unseen = (net(part["x"]).reshape(-1, seeds, len(part["x"]), 10) for part in (data.target, data.test))
    scores = (unseen.argmax(-1) == data.test["y"]).float().mean(-1)
    return Run(next(iter(grid.values()), []), scores, information(seen), seconds)


def going_on(state: tt.State, trained: tt.State) -> tt.State:
    """Put the network of one state, the same for every weight, into the state of another step."""
    old = {**trained.trainable["net"], **trained.buffers["net"]}

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: old[name].expand_as(x).clone() for name, x in tensors.items()}

    return state._replace(
        trainable={**state.trainable, "net": moved(state.trainable["net"])},
        frozen={**state.frozen, "net": moved(state.frozen["net"])},
        buffers={**state.buffers, "net": moved(state.buffers["net"])},
    )


def relabelled(step: tt.Step, state: tt.State, x: Tensor) -> tt.State:
    """Give every member the pseudo-labels that its own features make."""
    features = tt.predict(step, state, f"net(target).{FEATURES}")(x)  # (weight, seed, image, 64)
    label = torch.func.vmap(torch.func.vmap(tt.align.shot_labels))
    labels = label(features, tt.predict(step, state, "net")(x).softmax(-1))
    return state._replace(terms={**state.terms, "pseudo": {"labels": labels}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"updates of each run ({STEPS})")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each run ({SEEDS})")
    parser.add_argument("--output", type=Path, default=Path("runs/adapt_digits"), help="folder for the results")
    parser.add_argument("--only", nargs="*", help="run these alone")
    parser.add_argument("--backend", default="inductor", help="of tt.compile, or none (inductor)")
    parser.add_argument("--quick", action="store_true", help="20 steps of 2 seeds, not compiled")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.seeds, given.backend = 20, 2, "none"
    torch.set_num_threads(1)  # the nets are small: a second thread costs more than it brings
    data = load()
    runs: dict[str, Run] = {}
    for name, way in ways_of(given.steps, len(data.target["x"])).items():
        if given.only and name not in given.only:
            continue
        print(f"{name}: {given.steps} steps, {given.seeds} seeds of each weight at once", flush=True)
        stream = batches(data, labels=name == "target labels")
        runs[name] = train(way, data, stream, given.steps, given.seeds, given.backend)
    given.output.mkdir(parents=True, exist_ok=True)
    text = table(runs)
    (given.output / "table.txt").write_text(text + "\n")
    (given.output / "runs.json").write_text(json.dumps(kept(runs)) + "\n")
    draw(runs, given.output / "picture.png")
    print(f"\n{text}\n\nwritten to {given.output}: table.txt, runs.json, picture.png")


if __name__ == "__main__":
    main()
