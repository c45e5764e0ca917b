"""A sharded step equals the step of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import ttransfer as tt
from tests.dist.cases import TERMS, decay, everything, nets, smooth
from tests.support.compare import worst
from tests.support.nets import conv, images, mlp, vectors
from tests.support.sharded import alone, cut, gap, spread
from tests.support.steps import refused, small_step
from ttransfer.dist._ranks import Ranks
from ttransfer.testing._threads import run_ranks

EXACT = 1e-12
EVEN = {"source": [0, 3, 6], "target": [0, 2, 4]}
UNEVEN = {"source": [0, 4, 6], "target": [0, 1, 4]}
THREE = {"source": [0, 4, 5, 6], "target": [0, 1, 3, 4]}
FOUR = {"source": [0, 1, 4, 5, 6], "target": [0, 1, 2, 3, 4]}
SPLITS = {"even": EVEN, "uneven": UNEVEN, "three": THREE, "four": FOUR}


@pytest.mark.parametrize("split", ["uneven", "three"])
@pytest.mark.parametrize("term", TERMS)
def test_every_term_is_what_it_is_on_one(term: str, split: str) -> None:
    step = small_step({"term": TERMS[term]()}, nets(), tt.optim.sgd(0.1, momentum=0.9))
    batches = [vectors(seed) for seed in range(2)]
    assert gap(step, batches, [SPLITS[split]] * 2) < EXACT


@pytest.mark.parametrize("split", ["uneven", "four"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"buffers": {"student": "per_domain"}},
        {"buffers": {"student": "eval"}},
        {"joint": [("source", "target")]},
        {"ema": {"mean": tt.ema("student", 0.9)}},
        {"ema": {"mean": tt.ema("student", 0.9, buffers="own")},
         "terms": {"follow": tt.term(F.mse_loss, "student(target)", "mean(target)")}},
        {"trainable": {"student": "conv.*|bn.*"}},
    ],
    ids=["plain", "per domain", "eval", "joint", "average", "average with buffers of its own", "frozen in part"],
)  # fmt: skip
def test_a_net_with_batch_normalisation_and_dropout(options: dict[str, Any], split: str) -> None:
    step = everything(nets(conv), **options)
    assert gap(step, [images(seed) for seed in range(3)], [SPLITS[split]] * 3) < EXACT


def test_rows_may_be_others_in_each_step() -> None:
    batches = [vectors(0), vectors(1, source=5, target=3), vectors(2)]
    cuts = [EVEN, {"source": [0, 1, 5], "target": [0, 2, 3]}, UNEVEN]
    assert gap(everything(nets()), batches, cuts) < EXACT


def test_members_of_an_ensemble_and_a_sweep() -> None:
    step, batches = everything(nets(conv)), [images(seed) for seed in range(2)]
    assert gap(tt.ensemble(step, 2), batches, [UNEVEN] * 2) < EXACT
    assert gap(tt.sweep(step, {"kd.temperature": [1.0, 4.0]}), batches, [UNEVEN] * 2) < EXACT


def test_members_with_batches_of_their_own() -> None:
    step = tt.ensemble(everything(nets()), 2, batches="stacked")
    batches = [
        {d: {f: torch.stack([x, other[d][f]]) for f, x in fields.items()} for d, fields in one.items()}
        for one, other in [(vectors(0), vectors(1)), (vectors(2), vectors(3))]
    ]
    assert gap(step, batches, [UNEVEN] * 2, axis=1) < EXACT


@pytest.mark.parametrize("split", ["even", "uneven"])
def test_micro_batches(split: str) -> None:
    terms = {name: TERMS[name]() for name in ("cross-entropy, some ignored", "kd", "the net as a function, a mean")}
    terms["decay"] = tt.term(decay, "student:params", "teacher:params", coupled=False)
    step = small_step({f"t{i}": term for i, term in enumerate(terms.values())}, nets(), accumulate=2)
    cuts = {"even": EVEN, "uneven": {"source": [0, 4, 6], "target": [0, 2, 4]}}[split]
    assert gap(step, [vectors(seed) for seed in range(2)], [cuts] * 2) < EXACT


def test_micro_batches_cannot_be_gathered() -> None:
    step = small_step({"bank": TERMS["a state"]()}, nets(), accumulate=2)
    refused(lambda: gap(step, [vectors(0)]), "term 'bank'", "it has a state", "accumulate")


def test_a_game() -> None:
    shared = nets()
    game = tt.alternate(
        first=everything(shared),
        second=small_step({"kd": TERMS["kd"](), "mmd": TERMS["mmd"]()}, shared, tt.optim.adam(1e-2)),
        order=("first", "second", "first"),
    )
    assert gap(game, [vectors(seed) for seed in range(2)], [UNEVEN] * 2) < EXACT


def test_windows_folded_into_the_rows_are_put_together() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Identity()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            windows = self.cut(x.repeat_interleave(2, 0) * torch.tensor([1.0, 2.0], dtype=x.dtype).repeat(n)[:, None])
            return self.fc(windows).view(n, 2, -1).mean(1)

    torch.manual_seed(0)
    own = {"student": tt.functional(Windows().double()), "teacher": tt.functional(mlp(2))}
    terms = {"mmd": tt.term(tt.align.mmd, "student(source)", "student(target)"),
             "windows": tt.term(tt.align.coral, "student(source).fc", "student(target).fc")}  # fmt: skip
    assert gap(small_step(terms, own), [vectors(0)], [UNEVEN]) < EXACT


def test_what_does_not_go_by_rows_is_refused() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), self.fc.weight

    own = {"student": tt.functional(Pooled().double())}
    step = small_step({"odd": tt.term(lambda a: a.square().sum(), "student(source)[1]")}, own)
    batch = {"source": {"x": vectors(0, source=8)["source"]["x"]}}
    refused(lambda: gap(step, [batch]), "term 'odd'", "(3, 5) float64 of 4 rows", "coupled=False")


def test_local_normalisation_is_by_the_rows_of_a_rank() -> None:
    student = conv(1)
    step = small_step({"task": TERMS["cross-entropy"]()}, {"student": tt.functional(student)})
    batch, cuts = images(0), {"source": [0, 2, 6], "target": [0, 2, 4]}
    ((state, _),), _ = spread(step, [batch], [cuts], batchnorm="local")
    student.train()
    logits = torch.cat([student(batch["source"]["x"][:2]), student(batch["source"]["x"][2:])])
    loss = F.cross_entropy(logits, batch["source"]["y"])
    loss.backward()
    for name, p in student.named_parameters():
        wanted = p.detach() - 0.1 * p.grad
        torch.testing.assert_close(state.trainable["student"][name], wanted, rtol=0, atol=EXACT)
    means = []
    for rows in (slice(0, 2), slice(2, 6)):
        one = conv(1).train()
        one(batch["source"]["x"][rows])
        means.append((one.bn.running_mean, one.bn.running_var))
    for key, a, b in zip(("running_mean", "running_var"), *means, strict=True):
        torch.testing.assert_close(state.buffers["student"][f"bn.{key}"], a / 3 + 2 * b / 3, rtol=0, atol=EXACT)
    assert gap(step, [batch], [cuts], batchnorm="local") > 1e-3


def test_a_rank_without_rows_is_named_on_all() -> None:
    step = everything(nets())
    refused(
        lambda: spread(step, [vectors(0)], [{"source": [0, 6, 6], "target": [0, 2, 4]}]),
        "domain 'source' has no rows on rank 1 (rows by rank: [6, 0])",
    )


def test_a_rank_that_refuses_its_batch_stops_all() -> None:
    step = small_step({"task": TERMS["cross-entropy"]()}, nets())
    state, batch = step.init(vectors(0)), vectors(0)

    def work(ranks: Any) -> str:
        mine = {"source": dict(batch["source"])}
        if ranks.rank == 1:
            del mine["source"]["y"]
        with pytest.raises(tt.TransferError) as error:
            tt.shard(step, ranks)(state, mine)
        return str(error.value)

    first, second = run_ranks(2, work)
    assert "no field 'y'" in second
    assert "rank 1 refused its batch" in first


def test_a_function_of_a_net_that_normalises_by_all_rows_is_refused() -> None:
    step = small_step({"smooth": tt.term(smooth, "student:fn", "source.x")}, nets(conv))
    refused(lambda: spread(step, [images(0)], [EVEN]), "'student' as a function", "'bn'", "batchnorm='local'")


def test_ranks_in_order_and_compiled_outermost() -> None:
    def names(ranks: Ranks) -> list[list[str]]:
        step = everything(nets())
        made = [
            tt.ensemble(tt.shard(step, ranks), 2),
            tt.shard(tt.compile(step, backend="aot_eager"), ranks),
            tt.replace(tt.compile(tt.shard(tt.ensemble(step, 2), ranks), backend="aot_eager"), mmd=None),
        ]
        return [[t.name for t in one.spec.transforms] for one in made]

    (found,) = run_ranks(1, names)
    assert found == [["ensemble", "shard"], ["shard", "compile"], ["ensemble", "shard", "compile"]]


def test_bad_options() -> None:
    step, one = everything(nets()), Ranks(0, 1, "none")
    refused(lambda: tt.shard(step, one, batchnorm="sync"), "batchnorm", "did you mean 'synced'")
    refused(lambda: tt.shard(step, one, optimizer="zero"), "optimizer", "replicated, sharded")
    refused(lambda: tt.shard(tt.shard(step, tt.dist.init()), tt.dist.init()), "sharded already")
    refused(lambda: tt.shard(step, "cpu"), "expected a DeviceMesh or a process group, got str")


def test_compiled_over_one_rank_is_one_graph_for_all_numbers_of_rows() -> None:
    # Not every torch can trace synced normalisation, and over one rank local is the same.
    step = everything(nets(conv), ema={"mean": tt.ema("student", 0.9)})
    batches = [images(0), images(1), images(2, source=5, target=3), images(3, source=7, target=2)]
    wanted = alone(step, batches)
    fast = tt.compile(tt.shard(step, tt.dist.init(), batchnorm="local"), backend="aot_eager")
    before = counters["stats"]["unique_graphs"]
    state = fast.init(batches[0])
    for batch, (one, logs) in zip(batches, wanted, strict=True):
        state, said = fast(state, batch)
        assert worst((state, said), (one, logs)) < EXACT
    assert counters["stats"]["unique_graphs"] - before == 2


def test_one_rank_needs_no_launcher() -> None:
    step = everything(nets())
    mesh = tt.dist.init()
    assert mesh.size() == 1
    sharded = tt.shard(step, mesh)
    batch = vectors(0)
    state, logs = sharded(sharded.init(batch), batch)
    (one,) = alone(step, [batch])
    assert worst((state, logs), one) < EXACT
    assert cut(batch, 1) == {"source": [0, 6], "target": [0, 4]}
