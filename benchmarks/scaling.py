"""From what `dist.txt` measured, what the alpha-beta model says of up to 1024 ranks. A model, not a measurement.

A message of m bytes takes alpha + m beta seconds. Both are fitted to the messages in `dist.txt`, between two processes
of one machine; --alpha and --beta put another network's in their place. The tables are quoted in docs/scaling.md,
which derives the formulas. At the end the chunked form of MMD is compared with the plain one. Run with
``make bench-dist``, or ``python benchmarks/scaling.py``.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from step import Report
from torch import Tensor

import ttransfer as tt

WORLDS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ROWS, WIDTH, FLOAT = 32, 512, 4  # rows of each domain on a rank, features, bytes
NORMS, FORWARDS = 12, 2  # resnet10: its batch normalisation layers, and the forwards of a step that write them
CHANNELS = 3 * (64 + 128 + 256 + 512) // NORMS  # of one of them, on average
CHUNK = 4096
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
GB = 1e9


class Measured(NamedTuple):
    """What is read from `dist.txt`.

    Attributes:
        messages: (operation, backend) -> (bytes, seconds).
        step: seconds of a step of resnet10 of 64 + 64 rows in one process with one thread.
        pair: of the same over two ranks.
        gradient: bytes.
        coupled: (rows of each domain, seconds) of MMD.
    """

    messages: dict[tuple[str, str], list[tuple[float, float]]]
    step: float
    pair: float
    gradient: float
    coupled: list[tuple[float, float]]


def read(path: Path) -> Measured:
    """Take the numbers out of the report."""
    text = path.read_text()
    messages: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for operation in ("all_reduce", "all_gather"):
        table = _table(text, f"{operation}, 2 ranks")
        for i, backend in enumerate(dict.fromkeys(name for name in table[0] if name in ("gloo", "ccl"))):
            messages[operation, backend] = [(float(row[0]), 1e-6 * float(row[1 + 2 * i])) for row in table[1:]]
    # The last two words of a row are the ratio of CPU time and milliseconds.
    threads = _table(text, "resnet10, 64 + 64 rows")
    seconds = {" ".join(row[:5]): 1e-3 * float(row[-1]) for row in threads if row[-1] != "(ms)" and len(row) > 5}
    gradient = re.search(r"^resnet10, .*a gradient of ([\d.]+) MB", text, re.MULTILINE)
    assert gradient is not None, f"no gradient in {path}"
    coupled = [(float(row[0]), 1e-3 * float(row[-1])) for row in _table(text, "MMD, value and gradient")[1:]]
    return Measured(
        messages, seconds["1 rank x 1 thread"], seconds["2 ranks x 1 thread"], float(gradient[1]) * 1024**2, coupled
    )


def _table(text: str, title: str) -> list[list[str]]:
    """The rows that follow a line which begins with a title, up to an empty line."""
    found = re.search(rf"^{re.escape(title)}.*\n((?:[^ \n].*\n)*)((?: .*\n)+)", text, re.MULTILINE)
    assert found is not None, f"no table {title!r}"
    return [line.split() for line in found[2].splitlines()]


def fit(points: Sequence[tuple[float, float]], powers: tuple[int, int]) -> tuple[float, float]:
    """Fit t = a x^p + b x^q with a, b >= 0, by least squares of the relative error."""
    x = torch.tensor(points, dtype=torch.float64)
    design = torch.stack([x[:, 0] ** power / x[:, 1] for power in powers], 1)
    found = torch.linalg.lstsq(design, torch.ones(len(x), 1, dtype=torch.float64)).solution.flatten()
    if (found < 0).any():
        i = int(found.argmax())
        one = design[:, i]
        found = torch.zeros(2, dtype=torch.float64)
        found[i] = one.sum() / one.square().sum()
    return found[0].item(), found[1].item()


class Network(NamedTuple):
    """The model: a message of m bytes takes alpha + m beta."""

    alpha: float
    beta: float

    def all_reduce(self, world: int, size: float) -> float:
        """By a ring: 2 (w - 1) messages of a w-th of the tensor."""
        return 2 * (world - 1) * (self.alpha + size / world * self.beta)

    def all_gather(self, world: int, size: float) -> float:
        """By a ring: w - 1 messages of one rank's tensor."""
        return (world - 1) * (self.alpha + size * self.beta)

    def by_tree(self, world: int, size: float) -> float:
        """An all-gather by recursive doubling: the bytes of the ring in log2 w messages."""
        return math.ceil(math.log2(world)) * self.alpha + (world - 1) * size * self.beta

    def reduce_by_tree(self, world: int, size: float) -> float:
        """An all-reduce by recursive halving and doubling: the bytes of the ring in 2 log2 w messages."""
        return 2 * math.ceil(math.log2(world)) * self.alpha + 2 * (world - 1) / world * size * self.beta


class Parts(NamedTuple):
    """Seconds of the parts of a step on one rank."""

    compute: float
    agree: float
    norms: float
    gather: float
    whole: float
    own: float
    gradient: float


def parts(net: Network, measured: Measured, world: int, cost: tuple[float, float], tree: bool) -> Parts:
    """Work out a step of so many ranks, each with `ROWS` rows of each domain.

    Args:
        net: alpha and beta.
        measured: compute and sizes.
        world: number of ranks.
        cost: of MMD, a n + b n^2 seconds for n rows of each domain.
        tree: exchange by trees and not by rings.
    """
    gather, reduce = (net.by_tree, net.reduce_by_tree) if tree else (net.all_gather, net.all_reduce)
    statistics = FLOAT * (2 * CHANNELS + 1)
    n = world * ROWS
    return Parts(
        measured.step / 2,
        2 * gather(world, 24),  # the numbers of rows; what the means count
        NORMS * FORWARDS * (gather(world, statistics) + reduce(world, statistics * world)),
        gather(world, 2 * ROWS * WIDTH * FLOAT),
        cost[0] * n + cost[1] * n**2,
        cost[0] * n + cost[1] * n * ROWS,
        reduce(world, measured.gradient),
    )


def chunked(
    own: Tensor, signs: Tensor, rows: Tensor, weights: Tensor, variance: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """A rank's part of MMD and its gradient by the rank's rows, with the kernel in blocks.

    With weights 1/n for rows of the source and -1/m for those of the target, MMD is the double sum of
    a_i a_j k(z_i, z_j): a rank adds its rows i against all j.

    Args:
        own: this rank's rows, (k, d), of both domains.
        signs: their weights a_i, (k,).
        rows: all rows z_j, (n, d).
        weights: a_j, (n,).
        variance: the kernels' width, of all rows.
        chunk: rows in a block.

    Returns:
        This rank's part of the sum over i, and the gradient of the whole sum by its rows.
    """
    value, slopes, drawn = own.new_zeros(()), own.new_zeros(len(own)), torch.zeros_like(own)
    for block, a in zip(rows.split(chunk), weights.split(chunk), strict=True):
        squared = (own.square().sum(1)[:, None] + block.square().sum(1) - 2 * own @ block.T).clamp_min(0)
        kernel, slope = torch.zeros_like(squared), torch.zeros_like(squared)
        for scale in SCALES:
            one = torch.exp(-squared / (2 * scale * variance))
            kernel += one
            slope += one / (scale * variance)
        value += signs @ kernel @ a
        slopes += slope @ a
        drawn += (slope * a) @ block
    return value, -2 * signs[:, None] * (slopes[:, None] * own - drawn)


def check(world: int = 4, n: int = 40, m: int = 24, d: int = 8) -> float:
    """Compare the chunked form, added up over ranks, with the derivative of `tt.align.mmd`."""
    g = torch.Generator().manual_seed(0)
    source, target = (torch.randn(k, d, generator=g, dtype=torch.float64) + i for i, k in enumerate((n, m)))
    grads, value = torch.func.grad_and_value(tt.align.mmd, argnums=(0, 1))(source, target)
    rows = torch.cat([source, target])
    weights = torch.cat([source.new_full((n,), 1 / n), source.new_full((m,), -1 / m)])
    variance = 2 * (rows - rows.mean(0)).square().sum() / (len(rows) - 1)
    total, worst = source.new_zeros(()), 0.0
    whole = torch.cat(grads)
    for own in torch.arange(n + m).chunk(world):
        part, gradient = chunked(rows[own], weights[own], rows, weights, variance, 7)
        total += part
        worst = max(worst, (gradient - whole[own]).abs().max().item())
    return max(worst, (total - value).abs().item())


def tables(report: Report, net: Network, measured: Measured, cost: tuple[float, float]) -> None:
    for tree, name in ((False, "rings, as gloo exchanges"), (True, "trees: recursive halving and doubling")):
        every = {world: parts(net, measured, world, cost, tree) for world in WORLDS}
        report.say(f"Milliseconds of the parts of a step on a rank, by {name}")
        rows: list[list[str]] = []
        for world, p in every.items():
            means = p.compute + p.agree + p.gradient
            seen = means + p.gather
            rows.append([
                str(world), *(f"{1e3 * x:.3g}" for x in p),
                *(f"{p.compute / x:.0%}" for x in (means, seen + p.own, seen + p.whole, seen + p.own + p.norms)),
            ])  # fmt: skip
        head = ("ranks", "compute", "agree", "norms", "gather", "MMD whole", "MMD own", "gradient")
        report.table((*head, "means", "+ own", "+ whole", "+ own, synced"), rows)


def limits(report: Report, net: Network, measured: Measured, cost: tuple[float, float]) -> None:
    """Where MMD of all rows costs a given part of the rest, and what it keeps."""
    report.say("Ranks from which MMD of all rows, its gather included, takes more than a part of the rest of the step")
    rows: list[list[str]] = []
    for share in (0.01, 0.1, 0.5, 1.0):
        cells: list[str] = []
        for tree in (False, True):
            for form in ("whole", "own"):
                found = ">2^20"
                for k in range(1, 21):
                    p = parts(net, measured, 2**k, cost, tree)
                    rest = p.compute + p.agree + p.gradient
                    if p.gather + getattr(p, form) > share * rest:
                        found = str(2**k)
                        break
                cells.append(found)
        rows.append([f"{share:.0%}", *cells])
    report.table(("", "whole, rings", "own, rings", "whole, trees", "own, trees"), rows)
    report.say(f"Memory of MMD on a rank, in GB: one float32 kernel matrix of it, and blocks of {CHUNK} columns")
    rows = [
        [
            str(world),
            f"{FLOAT * (2 * world * ROWS) ** 2 / GB:.3g}",
            f"{FLOAT * 2 * ROWS * 2 * world * ROWS / GB:.3g}",
            f"{FLOAT * 2 * ROWS * min(CHUNK, 2 * world * ROWS) / GB:.3g}",
            f"{FLOAT * 2 * world * ROWS * WIDTH / GB:.3g}",
        ]
        for world in WORLDS
    ]
    report.table(("ranks", "all x all", "own x all", "own x block", "rows gathered"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measured", type=Path, default=Path(__file__).with_name("dist.txt"), help="the report read")
    parser.add_argument("--backend", default="gloo", help="whose messages (gloo)")
    parser.add_argument("--alpha", type=float, help="seconds of a message, in place of the fitted")
    parser.add_argument("--beta", type=float, help="seconds of a byte, in place of the fitted")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    given = parser.parse_args()
    report, measured = Report(), read(given.measured)
    report.say("A model, worked out from the numbers in dist.txt; nothing here but those was measured.")
    report.say()
    fitted: dict[tuple[str, str], Network] = {}
    rows: list[list[str]] = []
    for (operation, backend), points in measured.messages.items():
        # Over two ranks an all-reduce is two messages of half the tensor, an all-gather one of all of it.
        a, b = fit(points, (0, 1))
        one = Network(a / 2, b) if operation == "all_reduce" else Network(a, b)
        fitted[operation, backend] = one
        wrong = [abs(a + b * x - y) / y for x, y in points]
        rows.append([
            f"{operation}, {backend}", f"{1e6 * one.alpha:.0f}", f"{1e-9 / one.beta:.2f}",
            f"{sorted(wrong)[len(wrong) // 2]:.0%}", f"{max(wrong):.0%}",
        ])  # fmt: skip
    report.say("alpha and beta, fitted to messages between two processes of one machine")
    report.table(("", "alpha (us)", "1/beta (GB/s)", "median error", "largest"), rows)
    net = fitted["all_reduce", given.backend]
    net = Network(given.alpha or net.alpha, given.beta or net.beta)
    cost = fit(measured.coupled, (1, 2))
    report.say(
        f"Used: alpha {1e6 * net.alpha:.0f} us, 1/beta {1e-9 / net.beta:.2f} GB/s. MMD of n + n rows: "
        f"{1e6 * cost[0]:.2f} us n + {1e9 * cost[1]:.1f} ns n^2."
    )
    report.say(
        f"Each rank has {ROWS} + {ROWS} rows, {WIDTH} features and a gradient of {measured.gradient / 1024**2:.1f} MB."
    )
    two = parts(net, measured, 2, cost, False)
    # Two ranks of dist.txt hold half of its rows each, which is ROWS.
    worked = sum(two) - two.own
    report.say(f"Two ranks: worked out {1e3 * worked:.0f} ms, to measured {worked / measured.pair:.2f}.")
    report.say()
    tables(report, net, measured, cost)
    limits(report, net, measured, cost)
    report.say(f"The chunked form against tt.align.mmd, value and gradient in float64, 4 ranks: {check():.0e}")
    if given.output:
        given.output.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
