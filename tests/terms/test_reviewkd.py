"""The fusion belongs to the term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.games import obeys
from tests.support.nets import conv, images
from tests.support.peers import tapped, theirs
from tests.support.sharded import gap
from tests.support.steps import refused, small_step

TAPS = ("conv", "act", "fc:in")
READS = [f"student(source).{tap}" for tap in TAPS], [f"teacher(source).{tap}" for tap in TAPS]


def maps(n: int, c: int, size: int, seed: int) -> Tensor:
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fusion(nn.Module):
    """One layer of the authors' fusion, with the names of ours."""

    def __init__(self, into: int, middle: int, out: int, fuse: bool) -> None:
        super().__init__()
        self.add_module("in", nn.Conv2d(into, middle, 1, bias=False))
        self.in_norm = nn.BatchNorm2d(middle)
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuse else None
        self.out = nn.Conv2d(middle, out, 3, padding=1, bias=False)
        self.out_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, deeper: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
        x = self.in_norm(getattr(self, "in")(x))
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            z = torch.sigmoid(self.attention(torch.cat([x, deeper], 1)))
            x = x * z[:, 0].unsqueeze(1) + deeper * z[:, 1].unsqueeze(1)
        if x.shape[2] != size:
            x = F.interpolate(x, (size, size), mode="nearest")
        return self.out_norm(self.out(x)), x


def test_it_is_the_fusion_and_torchdistills_loss() -> None:
    term = tt.terms.reviewkd(*READS, middle=7)
    student = [maps(6, 3, 6, 0), maps(6, 4, 3, 1), maps(6, 5, 1, 2)]
    teacher = [maps(6, 5, 6, 3), maps(6, 6, 4, 4), maps(6, 8, 1, 5)]
    own, memory = term.init(torch.Generator().manual_seed(0), [[*student[:2], student[2][:, :, 0, 0]], teacher])
    layers = nn.ModuleList([Fusion(3, 7, 5, True), Fusion(4, 7, 6, True), Fusion(5, 7, 8, False)]).double()
    assert {name: p.shape for name, p in own.items()} == {name: p.shape for name, p in layers.named_parameters()}
    hcl = theirs("torchdistill.losses.mid_level", "HierarchicalContextLoss", "x", "output", "x", "output")

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, student: list[Tensor]) -> Tensor:
            deeper, total = None, student[0].new_zeros(())
            for layer, s, t in reversed(list(zip(self.layers, student, teacher, strict=True))):
                out, deeper = layer(s, deeper, t.shape[2])
                total = total + hcl(tapped(x=(out, None)), tapped(x=t))
            return total

    whole = All()
    statistics = dict(whole.named_buffers())

    def ours(own: Any, student: list[Tensor]) -> Tensor:
        return term.apply(own, memory, {}, torch.tensor(0), [student, teacher])[0]

    def wanted(own: Any, student: list[Tensor]) -> Tensor:
        fresh = {name: x.clone() for name, x in statistics.items()}
        named = {f"layers.{name}": p for name, p in own.items()}
        return torch.func.functional_call(whole, {**named, **fresh}, (student,))

    mine, others = (torch.func.grad_and_value(f, argnums=(0, 1))(own, student) for f in (ours, wanted))
    torch.testing.assert_close(mine, others, rtol=1e-9, atol=1e-9)


def test_pooled_features_are_maps_of_one_position() -> None:
    term = tt.terms.reviewkd(*READS, middle=3)
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    step = small_step({"review": term}, nets, buffers={"student": "eval"})
    assert gap(step, [images(seed) for seed in range(2)]) < 1e-10


def test_it_obeys_the_laws_of_terms() -> None:
    readings = ([torch.randn(5, 3, 4, 4), torch.randn(5, 4, 2, 2)], [torch.randn(5, 6, 4, 4), torch.randn(5, 3, 2, 2)])
    obeys(tt.terms.reviewkd(READS[0][:2], READS[1][:2], middle=4), readings, {})


def test_what_is_refused() -> None:
    refused(lambda: tt.terms.reviewkd(READS[0][0], READS[1][0]), "reviewkd: wanted lists of as many reads")
    refused(lambda: tt.terms.reviewkd(READS[0][:1], READS[1]), "reviewkd: wanted lists of as many reads")
    refused(lambda: tt.terms.reviewkd(*READS, middle=0), "middle of at least 1")
