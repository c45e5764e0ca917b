"""Embeddings, memories and negatives belong to the term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.games import obeys
from tests.support.nets import mlp, vectors
from tests.support.peers import tapped, theirs
from tests.support.sharded import gap
from tests.support.steps import refused, run, small_step

SIZE, DIM, OTHERS = 20, 5, 7
READS = ("student(source).fc:in", "teacher(source).fc:in", "source.index")
NETS = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}


def numbered(seed: int) -> dict[str, dict[str, Tensor]]:
    batch = vectors(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = len(batch["source"]["x"])
    batch["source"]["index"] = torch.randperm(SIZE, generator=generator)[:rows]
    batch["source"]["others"] = torch.randint(SIZE, (rows, OTHERS), generator=generator)
    return batch


BATCHES = [numbered(seed) for seed in range(3)]


def made(**more: Any) -> tt.Term:
    return tt.terms.crd(*READS, **{"size": SIZE, "negatives": OTHERS, "dim": DIM, **more})


@pytest.mark.parametrize("size", [SIZE, 16 * (OTHERS + 1) + 5])
def test_three_batches_beside_torchdistill(size: int) -> None:
    """Value, gradient, memories and constants; by products with the whole memory, and by rows of it."""
    term = made(size=size, negatives="source.others", momentum=0.4)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 6, d, generator=generator, dtype=torch.float64) for d in (4, 8))
    index = [torch.randperm(size, generator=generator)[:6] for _ in range(3)]
    others = [torch.randint(size, (6, OTHERS), generator=generator) for _ in range(3)]
    own, memory = term.init(torch.Generator().manual_seed(1), [student[0], teacher[0], index[0], others[0]])
    loss = theirs(
        "torchdistill.losses.mid_level", "CRDLoss", "norm", "empty", "norm", DIM, size, OTHERS, size, 0.07, 0.4, eps=0.0
    ).double()
    loss.memory_v1.copy_(memory["student"])
    loss.memory_v2.copy_(memory["teacher"])
    temperature, momentum = loss.params[1].clone(), loss.params[4].clone()  # rounded to float32 on the way
    for s, t, i, o in zip(student, teacher, index, others, strict=True):

        def ours(own: Any, s: Tensor, t: Tensor = t, i: Tensor = i, o: Tensor = o, memory: Any = memory) -> Any:
            numbers = {"temperature": temperature, "momentum": momentum}
            return term.apply(own, memory, numbers, torch.tensor(0), [s, t, i, o])

        slopes, (value, memory) = torch.func.grad_and_value(ours, argnums=(0, 1), has_aux=True)(own, s)
        parameters = {name: p.clone().requires_grad_() for name, p in own.items()}
        leaf = s.clone().requires_grad_()
        a = F.normalize(F.linear(leaf, parameters["student.weight"], parameters["student.bias"]))
        b = F.normalize(F.linear(t, parameters["teacher.weight"], parameters["teacher.bias"]))
        read = {"empty": {"input": {"pos_idx": i, "contrast_idx": torch.cat([i[:, None], o], 1)}}}
        wanted = loss({**tapped(norm=a), **read}, tapped(norm=b)).squeeze()
        names = list(parameters)
        gradients = torch.autograd.grad(wanted, [*parameters.values(), leaf])
        found = [*(slopes[0][name] for name in names), slopes[1]]
        torch.testing.assert_close(value, wanted.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found, list(gradients), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(memory["student"], loss.memory_v1.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(memory["teacher"], loss.memory_v2.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(memory["log_z"].exp(), loss.params[2:4], rtol=1e-9, atol=1e-9)


def test_negatives_are_others_and_all_of_them() -> None:
    term = made(negatives=2000)
    index, keys = torch.tensor([0, 7, SIZE - 1]), torch.arange(3)
    features = torch.randn(3, 4, dtype=torch.float64)
    own, memory = term.init(torch.Generator().manual_seed(0), [features, features, index, keys])
    # A memory that tells which rows are taken: the scores of the student are in the teacher's.
    taken: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ttransfer.terms._crd._scores",
            lambda anchor, memory, rows: (taken.append(rows), anchor.new_zeros(rows.shape))[1],
        )
        numbers = {"temperature": torch.tensor(1.0), "momentum": torch.tensor(0.5)}
        term.apply(own, memory, numbers, torch.tensor(0), [features, features, index, keys])
    for row, i in zip(taken[0], index, strict=True):
        assert row[0] == i
        assert sorted(set(row[1:].tolist())) == [j for j in range(SIZE) if j != i]


def test_in_every_mode() -> None:
    step = small_step({"crd": made()}, NETS)
    wanted = run(step, step.init(BATCHES[0]), *BATCHES)
    compiled = tt.compile(step, backend="aot_eager")
    assert worst(run(compiled, compiled.init(BATCHES[0]), *BATCHES), wanted) < 1e-11
    assert gap(step, BATCHES) < 1e-11
    two = tt.ensemble(step, 2)
    state, _ = run(two, two.init(BATCHES[0]), *BATCHES)
    for i in range(2):
        assert worst(tt.member(state, i), run(step, step.init(BATCHES[0], seed=i), *BATCHES)[0]) < 1e-11


def test_it_obeys_the_laws_of_terms() -> None:
    readings = (torch.randn(4, 3), torch.randn(4, 6), torch.arange(4), torch.arange(4) * 7919)
    held = "the first batch's constants are held, as the paper does"
    why = dict.fromkeys(("gradcheck", "own-gradients", "numbers-are-differentiable"), held)
    obeys(made(), readings, why)


def test_what_is_refused() -> None:
    refused(lambda: made(size=1), "crd: wanted at least 2 examples")
    refused(lambda: made(negatives=0), "crd: wanted at least 2 examples, 1 negative")
    step = small_step({"crd": tt.terms.crd(*READS[:2], "source.x", size=SIZE)}, NETS)
    refused(lambda: step.init(BATCHES[0]), "crd: wanted the numbers of the examples")
