"""What DTensor and FSDP do under torch.func: each case is tried on two ranks, and compared with one process.

A cell is the largest difference of a gradient from that of one process, in float32, or the number of an error whose
text stands below. Run with ``make bench-dist``; the file is named after torch's version.

The cases, all with the batch split over the ranks (``Shard(0)``) and the parameters whole on each (``Replicate()``):
networks of linear layers, of a convolution, with batch normalisation, with attention; a loss that couples rows.
FSDP is `fully_shard` on the same networks. "autograd" is ``loss.backward()``, as both are meant to be used.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import ttransfer as tt

Params = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

MODES = ("autograd", "grad", "compile(grad)", "vmap(grad)")
WIDTH = 100  # of the report
CLOSE = 1e-5
SHOWN = 420  # characters of an error


class Attention(nn.Module):
    """Four heads over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72)

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        q, k, v = (part.unflatten(-1, (4, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 2))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
    )


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def attention() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 24)), Attention(), nn.Linear(192, 2))


def distances(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean kernel between rows: every row with every other, as in MMD."""
    return torch.exp(-(scores[:, None] - scores).square().sum(-1)).mean()


def mmd(scores: Tensor, labels: Tensor) -> Tensor:
    """Between two halves of the batch."""
    return tt.align.mmd(*scores.chunk(2))


NETS: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "linear, cross-entropy": (linear, F.cross_entropy),
    "convolution, cross-entropy": (convolution, F.cross_entropy),
    "batch normalisation, cross-entropy": (normalised, F.cross_entropy),
    "group normalisation, max-pooling, cross-entropy": (pooled, F.cross_entropy),
    "attention, cross-entropy": (attention, F.cross_entropy),
    "linear, mean kernel of all pairs": (linear, distances),
    "linear, MMD of two halves": (linear, mmd),
}


def problem(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = make()
    generator = torch.Generator().manual_seed(0)
    return net, torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 0, 1])


def value(net: nn.Module, loss: Loss, params: Any, buffers: Any, x: Tensor, y: Tensor) -> Tensor:
    return loss(functional_call(net, (params, {k: b.clone() for k, b in buffers.items()}), (x,)), y)


def in_mode(mode: str, of: Callable[[Params, Params], Tensor], params: Params, buffers: Params) -> Params:
    """Differentiate in one of the modes."""
    if mode == "autograd":
        leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
        of(leaves, buffers).backward()
        return {k: p.grad for k, p in leaves.items() if p.grad is not None}
    if mode == "grad":
        return grad(of)(params, buffers)
    if mode == "compile(grad)":
        return torch.compile(grad(of), backend="aot_eager", fullgraph=True)(params, buffers)
    found = vmap(grad(of))(stacked(params), stacked(buffers))
    return {k: g[0] for k, g in found.items()}


def stacked(tree: Params) -> Params:
    return {k: torch.stack([x, x]) for k, x in tree.items()}


def plain(p: Tensor) -> Tensor:
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def apart(found: Params, wanted: Params) -> float:
    gaps = [(plain(found[k]) - wanted[k]).abs().max() for k in wanted]
    return torch.stack(gaps).max().item()


def dtensor(mesh: Any, make: Callable[[], nn.Module], loss: Loss, mode: str) -> float:
    net, x, y = problem(make)
    own, buffers = {k: p.detach() for k, p in net.named_parameters()}, dict(net.named_buffers())
    wanted = in_mode("grad", lambda p, b: value(net, loss, p, b, x, y), own, buffers)

    def spread(tree: Params, how: Any) -> Params:
        return {k: distribute_tensor(t.clone(), mesh, [how]) for k, t in tree.items()}

    batch = spread({"x": x, "y": y}, Shard(0))
    found = in_mode(
        mode,
        lambda p, b: value(net, loss, p, b, batch["x"], batch["y"]),
        spread(own, Replicate()),
        spread(buffers, Replicate()),
    )
    return apart(found, wanted)


def fsdp(mesh: Any, make: Callable[[], nn.Module], loss: Loss, mode: str) -> float:
    net, x, y = problem(make)
    wanted = in_mode(
        "grad", lambda p, b: value(net, loss, p, b, x, y), {k: p.detach() for k, p in net.named_parameters()}, {}
    )
    fully_shard(net, mesh=mesh)
    n = len(x) // mesh.size()
    here = slice(n * mesh.get_rank(), n * (mesh.get_rank() + 1))
    if mode == "autograd":
        loss(net(x[here]), y[here]).backward()
        return apart({k: p.grad for k, p in net.named_parameters() if p.grad is not None}, wanted)
    params = {k: p.detach() for k, p in net.named_parameters()}
    return apart(in_mode(mode, lambda p, b: value(net, loss, p, b, x[here], y[here]), params, {}), wanted)


def dispatch(mesh: Any) -> str:
    """What it costs that every operation on a DTensor asks how its operands lie."""
    net, x, y = problem(linear)
    own = {k: p.detach() for k, p in net.named_parameters()}
    theirs = {k: distribute_tensor(p.clone(), mesh, [Replicate()]) for k, p in own.items()}
    dx, dy = (distribute_tensor(t, mesh, [Shard(0)]) for t in (x, y))
    here = x.chunk(mesh.size())[mesh.get_rank()], y.chunk(mesh.size())[mesh.get_rank()]
    ratios: list[float] = []
    for _ in range(200):
        took: list[float] = []
        for params, images, labels in ((theirs, dx, dy), (own, *here)):
            began = time.perf_counter()
            grad(lambda p, x=images, y=labels: value(net, F.cross_entropy, p, {}, x, y))(params)
            took.append(time.perf_counter() - began)
        ratios.append(took[0] / took[1])
    return (
        "time of grad of linear, cross-entropy, eager, no exchange: DTensor to plain tensors of as many rows "
        f"{statistics.median(ratios):.0f}"
    )


def text_of(error: BaseException) -> str:
    """What an error says, without where and without advice."""
    text = str(error).split("\nfrom user code")[0].split("For more details about this graph break")[0]
    before, sign, context = text.partition("Developer debug context:")
    # The compiler's errors are an explanation, hints, and what it met.
    text = f"{before.split('Hint:')[0].split('Explanation:')[-1]} {context}" if sign else text
    text = " ".join(re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {text}").split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"


def report(mesh: Any) -> list[str]:
    """Try everything; all ranks do, the first one's report counts."""
    errors: list[str] = []

    def cell(attempt: Callable[..., float], *case: Any) -> str:
        torch.compiler.reset()
        try:
            gap = attempt(mesh, *case)
        except Exception as error:  # that it fails is what we are here for
            text = text_of(error)
            if text not in errors:
                errors.append(text)
            return f"error {errors.index(text) + 1}"
        return f"{gap:.0e}" if gap < CLOSE else f"WRONG {gap:.0e}"

    lines = [f"torch {torch.__version__.split('+')[0]}, {dist.get_backend()}, {mesh.size()} ranks", ""]
    lines.append(f"{'':<58}" + "".join(f"{mode:>15}" for mode in MODES))
    for kind, attempt in (("DTensor", dtensor), ("FSDP", fsdp)):
        for name, (make, loss) in NETS.items():
            if attempt is fsdp and (loss is not F.cross_entropy or make is normalised):
                continue  # it shows neither a loss nor batch normalisation the rows of other ranks, nor is it meant to
            cells = [cell(attempt, make, loss, mode) for mode in MODES]
            lines.append(f"{f'{kind}: {name}':<58}" + "".join(f"{one:>15}" for one in cells))
    lines += ["", dispatch(mesh), ""]
    for number, text in enumerate(errors, 1):
        lines += textwrap.wrap(f"{number}. {text}", WIDTH, subsequent_indent="   ", break_on_hyphens=False)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="write the report there too")
    given = parser.parse_args()
    if "RANK" not in os.environ:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *sys.argv]
        sys.exit(subprocess.run(run, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    lines = report(init_device_mesh("cpu", (dist.get_world_size(),)))
    if dist.get_rank() == 0:
        print("\n".join(lines))
        if given.folder:
            version = ".".join(torch.__version__.split(".")[:2])
            (given.folder / f"dtensor_fsdp_{version}.txt").write_text("\n".join(lines) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
