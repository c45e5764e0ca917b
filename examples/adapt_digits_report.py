"""What adapt_digits.py found, as a table and a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from torch import Tensor

NOISE = 0.02  # of accuracy: smaller differences say nothing


class Run(NamedTuple):
    """What one way gave.

    Attributes:
        weights: that were tried; none for a way without.
        scores: accuracy on the target's test half, (weight, seed).
        told: `information` on the target's training half, the same.
        seconds: of this process's CPU, for compiling and training.
    """

    weights: list[float]
    scores: Tensor
    told: Tensor
    seconds: float

    @property
    def chosen(self) -> int:
        """The weight that the criterion takes."""
        return int(self.told.mean(1).argmax())

    @property
    def best(self) -> int:
        """The weight that is best on the test. Needs its labels."""
        return int(self.scores.mean(1).argmax())


def table(runs: dict[str, Run]) -> str:
    """Mean and spread over the seeds, with the weight that was chosen and with the one that was best."""
    lines = [f"{'trained with':<16}{'weight':<8}{'target accuracy':<18}{'best weight':<13}{'its accuracy':<18}CPU s"]
    for name, run in runs.items():
        cells = ["", said(run.scores[run.chosen]), "", ""]
        if run.weights:
            cells = [f"{run.weights[run.chosen]:g}", cells[1], f"{run.weights[run.best]:g}", said(run.scores[run.best])]
        lines.append("{:<16}{:<8}{:<18}{:<13}{:<18}{:.0f}".format(name, *cells, run.seconds))
    if "source only" in runs:
        low = runs["source only"].scores.mean() - NOISE
        below = [
            f"{name} at {weight:g} ({score:.3f})"
            for name, run in runs.items()
            for weight, score in zip(run.weights, run.scores.mean(1).tolist(), strict=bool(run.weights))
            if score < low
        ]
        lines += ["", f"below source only by more than {NOISE:g}: {', '.join(below) or 'none'}"]
    return "\n".join(lines)


def kept(runs: dict[str, Run]) -> dict[str, dict[str, object]]:
    """Return all that was found, as JSON has it."""
    return {
        name: {**run._asdict(), "scores": run.scores.tolist(), "told": run.told.tolist()} for name, run in runs.items()
    }


def said(values: Tensor) -> str:
    return f"{values.mean().item():.3f} +- {statistics.stdev(values.tolist()):.3f}"


def draw(runs: dict[str, Run], path: Path) -> None:
    """Draw what each way reaches, and how much the criterion knows of it."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (bars, points) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    colours = {name: plt.get_cmap("tab20")(i) for i, name in enumerate(runs)}
    order = sorted(runs, key=lambda name: runs[name].scores[runs[name].chosen].mean().item())
    for i, name in enumerate(order):
        run, values = runs[name], runs[name].scores[runs[name].chosen]
        bars.barh(i, values.mean(), color=colours[name])
        bars.plot([values.min(), values.max()], [i, i], "k", linewidth=2)
        if run.weights:
            bars.plot(run.scores[run.best].mean(), i, "kD", fillstyle="none")
    bars.plot([], [], "kD", fillstyle="none", label="the best of three weights, by the labels")
    bars.plot([], [], "k", linewidth=2, label="range of the seeds")
    bars.set_yticks(range(len(order)), order)
    bars.set(xlabel="accuracy on the target's test half", xlim=(0, 1), title="Weights chosen without labels")
    bars.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)

    for name, run in runs.items():
        for i, (told, score) in enumerate(zip(run.told.mean(1), run.scores.mean(1), strict=True)):
            chosen = bool(run.weights) and i == run.chosen
            points.scatter(
                told, score, s=90, marker="v^"[i // 2] if run.weights and i != 1 else "o", color=colours[name],
                edgecolor="k" if chosen else "none", label=name if i == run.chosen else None,
            )  # fmt: skip
    points.set(
        xlabel="information on the target's training half (nats); log 10 is 2.30",
        ylabel="accuracy on the target's test half",
        title="What the criterion knows\n(circle: the paper's weight, triangles: a tenth and ten times; edge: chosen)",
    )
    points.grid(alpha=0.3)
    points.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle("MNIST (labelled) to UCI digits (unlabelled)")
    figure.savefig(path, dpi=110)
    plt.close(figure)
