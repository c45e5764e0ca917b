"""Collectives as operations: eager, vmapped, compiled."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.effects import with_effects

from ttransfer.dist._ops import all_gather, all_reduce, all_reduce_joined, gather_rows, reduce_scatter
from ttransfer.dist._ranks import Ranks
from ttransfer.testing._threads import run_ranks

COUNTS = [[2, 1], [1, 3], [1, 1]]  # rows of two domains on two ranks, and one row each


def rows(rank: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(rank)
    a, b = COUNTS[0][rank], COUNTS[1][rank]
    return [
        torch.randn(a, 3, generator=g),
        torch.randint(9, (b,), generator=g),
        torch.randn(2 * b, 2, 2, generator=g, dtype=torch.float64),
        torch.tensor([rank == 0]),
    ]


WHICH, SIZES = [0, 1, 1, 2], [3, 4, 8, 2]


def gathered(ranks: Ranks) -> list[Tensor]:
    return gather_rows(rows(ranks.rank), torch.tensor(COUNTS), WHICH, SIZES, ranks.group)


def test_rows_of_all_dtypes_come_in_the_order_of_ranks() -> None:
    wanted = [torch.cat(pair) for pair in zip(rows(0), rows(1), strict=True)]
    for found in run_ranks(2, gathered):
        assert [x.dtype for x in found] == [x.dtype for x in wanted]
        assert all(map(torch.equal, found, wanted))


def test_members_go_in_one_message() -> None:
    def work(ranks: Ranks) -> Any:
        own = [torch.stack([x, x + 1]) for x in rows(ranks.rank)[:3]]

        def one(xs: list[Tensor]) -> list[Tensor]:
            return gather_rows(xs, torch.tensor(COUNTS), WHICH[:3], SIZES[:3], ranks.group)

        twice = [torch.stack([x, 2 * x]) for x in own]
        return torch.func.vmap(one)(own), torch.func.vmap(torch.func.vmap(one))(twice)

    wanted = [torch.cat(pair) for pair in zip(rows(0)[:3], rows(1)[:3], strict=True)]
    for once, twice in run_ranks(2, work):
        for x, y, full in zip(once, twice, wanted, strict=True):
            assert torch.equal(x, torch.stack([full, full + 1]))
            assert torch.equal(y[1], 2 * x)


def test_sums_and_parts_eager_and_vmapped() -> None:
    def work(ranks: Ranks) -> Any:
        x = torch.arange(8.0).view(2, 4) * (ranks.rank + 1)
        one = all_reduce([x, x[:1].long()], ranks.group)
        sums = torch.func.vmap(lambda x: all_reduce([x], ranks.group)[0])(x)
        parts = torch.func.vmap(lambda x: reduce_scatter(x, 2, ranks.group))(x)
        back = torch.func.vmap(lambda x: all_gather(x, 2, ranks.group))(parts)
        return x, one, sums, parts, back

    for rank, (_, one, sums, parts, back) in enumerate(run_ranks(2, work)):
        total = torch.arange(8.0).view(2, 4) * 3
        assert torch.equal(one[0], total)
        assert torch.equal(one[1], total[:1].long())
        assert torch.equal(sums, total)
        assert torch.equal(parts, total.view(2, 2, 2)[:, rank])
        assert torch.equal(back, total)


def test_operations_agree_with_what_they_say_of_themselves() -> None:
    def work(ranks: Ranks) -> None:
        x = torch.randn(4, 3)
        check = ("test_schema", "test_faketensor")
        torch.library.opcheck(all_reduce, ([x, x[0]], ranks.group), test_utils=check)
        torch.library.opcheck(all_gather, (x, 1, ranks.group), test_utils=check)
        torch.library.opcheck(reduce_scatter, (x, 1, ranks.group), test_utils=check)
        counts = torch.tensor([[4]])
        torch.library.opcheck(gather_rows, ([x], counts, [0], [4], ranks.group), test_utils=check)

    run_ranks(1, work)


def test_in_a_graph() -> None:
    def work(ranks: Ranks) -> None:
        def loss(x: Tensor) -> Tensor:
            (full,) = gather_rows([x], torch.tensor([[4]]), [0], [4], ranks.group)
            return all_reduce([full.square()], ranks.group)[0].sum()

        x = torch.randn(4, 3)
        torch.testing.assert_close(torch.compile(loss, backend="aot_eager", fullgraph=True)(x), loss(x))

    run_ranks(1, work)


def test_a_compiler_keeps_the_order_of_exchanges_that_do_not_depend_on_each_other() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def work(ranks: Ranks) -> Any:
        def one(x: Tensor, y: Tensor) -> Any:
            total = all_reduce_joined([x, y], ranks.group)[0]
            every = all_gather(y, 1, ranks.group)
            return every, reduce_scatter(x, 1, ranks.group), total

        many = torch.compile(torch.func.vmap(one), backend=aot_autograd(fw_compiler=kept), fullgraph=True)
        return many(torch.ones(2, 3), torch.ones(2, 4))

    ((every, own, total),) = run_ranks(1, work)
    assert (every.shape, own.shape, total.shape) == ((2, 4), (2, 3), (2, 7))
    exchanges = [node for node in graphs[0].graph.nodes if node.target is with_effects]
    assert [str(node.args[1]).split(".")[1] for node in exchanges] == [
        "all_reduce_joined", "all_gather", "reduce_scatter",
    ]  # fmt: skip
    for before, after in itertools.pairwise(exchanges):
        assert after.args[0].args[0] is before
