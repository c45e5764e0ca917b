"""The layers that make queries and keys belong to the term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.games import obeys
from tests.support.nets import conv, images
from tests.support.sharded import gap
from tests.support.steps import refused, small_step

READS = (
    ["student(source).conv", "student(source).act"],
    ["teacher(source).conv", "teacher(source).bn", "teacher(source).act"],
)


def maps(n: int, c: int, size: int, seed: int) -> Tensor:
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Block(nn.Module):
    """A linear layer and a batch norm."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(into, out), nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class Slow(nn.Module):
    """The authors' layers and sums, one pair of layers after the other."""

    def __init__(self, student: list[int], teacher: list[int], dim: int) -> None:
        super().__init__()
        self.query = nn.ModuleList([Block(c, dim) for c in teacher])
        self.key = nn.ModuleList([Block(c, dim) for c in student])
        self.bilinear = Block(dim, dim * len(teacher))
        self.position = nn.ParameterDict(
            {"teacher": torch.zeros(len(teacher), dim), "student": torch.zeros(len(student), dim)}
        )
        self.dim = dim

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        keys = torch.stack([F.relu(layer(x.mean(3).mean(2))) for layer, x in zip(self.key, student, strict=True)], 1)
        n, layers = keys.shape[:2]
        bilinear = self.bilinear(keys.reshape(n * layers, -1)).view(n, layers, len(teacher), self.dim)
        total = bilinear.new_zeros(())
        for t, target in enumerate(teacher):
            query = self.query[t](target.mean(3).mean(2))
            logits = [
                ((bilinear[:, s, t] * query).sum(1) + self.position["teacher"][t] @ self.position["student"][s])
                / self.dim**0.5
                for s in range(layers)
            ]
            attention = torch.stack(logits, 1).softmax(1)
            wanted = F.normalize(target.pow(2).mean(1).flatten(1))
            for s, source in enumerate(student):
                pooled = F.adaptive_avg_pool2d(source.pow(2).mean(1, keepdim=True), (target.shape[2], target.shape[3]))
                gaps = (F.normalize(pooled.flatten(1)) - wanted).pow(2).mean(1)
                total = total + (gaps * attention[:, s]).mean()
        return total


def test_it_is_the_authors_value() -> None:
    term = tt.terms.afd(*READS, dim=7)
    student = [maps(6, 3, 6, 0), maps(6, 4, 3, 1)]
    teacher = [maps(6, 5, 6, 2), maps(6, 5, 3, 3), maps(6, 8, 3, 4)]
    own, memory = term.init(torch.Generator().manual_seed(0), [student, teacher])
    slow = Slow([3, 4], [5, 5, 8], 7).double()
    assert set(own) == {name for name, _ in slow.named_parameters()}
    statistics = dict(slow.named_buffers())

    def ours(own: Any, student: list[Tensor]) -> Tensor:
        return term.apply(own, memory, {}, torch.tensor(0), [student, teacher])[0]

    def wanted(own: Any, student: list[Tensor]) -> Tensor:
        fresh = {name: x.clone() for name, x in statistics.items()}
        return torch.func.functional_call(slow, {**own, **fresh}, (student, teacher))

    mine, theirs = (torch.func.grad_and_value(f, argnums=(0, 1))(own, student) for f in (ours, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_sharded() -> None:
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    step = small_step({"afd": tt.terms.afd(*READS, dim=5)}, nets, buffers={"student": "eval"})
    assert gap(step, [images(seed) for seed in range(2)]) < 1e-10


def test_it_obeys_the_laws_of_terms() -> None:
    readings = ([torch.randn(5, 3, 4, 4), torch.randn(5, 4, 2, 2)], [torch.randn(5, 6, 2, 2)])
    term = tt.terms.afd(READS[0], READS[1][:1], dim=4)
    obeys(term, readings, {})


def test_what_is_refused() -> None:
    refused(lambda: tt.terms.afd("student(source).conv", READS[1]), "afd: wanted lists of reads for both sides")
    refused(lambda: tt.terms.afd([], READS[1]), "afd: wanted lists of reads")
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    step = small_step({"afd": tt.terms.afd(["student(source)"], READS[1])}, nets)
    refused(lambda: step.init(images(0)), "afd: wanted a map (n, c, h, w)")
