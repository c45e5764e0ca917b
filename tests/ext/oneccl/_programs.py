"""What ranks do in the other tests: each function runs in every rank of a group whose default backend is ccl."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, float(value))


def one_rank(_: Any) -> dict[str, list[float]]:
    """Return what each call makes of 3 in a group of one."""
    x, out = full(3, 2), torch.zeros(2)
    found: dict[str, Any] = {}
    dist.all_reduce(x)
    found["all_reduce"] = x
    dist.broadcast(x, 0)
    found["broadcast"] = x
    dist.reduce(x, 0)
    found["reduce"] = x
    for name, call in (
        ("all_gather", lambda to: dist.all_gather([to], x)),
        ("all_gather_single", lambda to: dist.all_gather_into_tensor(to, x)),
        ("reduce_scatter", lambda to: dist.reduce_scatter(to, [x])),
        ("reduce_scatter_single", lambda to: dist.reduce_scatter_tensor(to, x)),
        ("all_to_all", lambda to: dist.all_to_all([to], [x])),
        ("all_to_all_single", lambda to: dist.all_to_all_single(to, x)),
        ("gather", lambda to: dist.gather(x, [to])),
        ("scatter", lambda to: dist.scatter(to, [x])),
    ):
        to = out.clone()
        call(to)
        found[name] = to
    dist.barrier()
    return {name: value.tolist() for name, value in found.items()}


def asynchronous(_: Any) -> dict[str, Any]:
    """Return what works and futures say, before and after."""
    rank, found = dist.get_rank(), {}
    x = full(rank + 1, 4)
    # The second sees what the first has written, without a wait between them.
    works = [dist.all_reduce(x, async_op=True) for _ in range(2)]
    works[1].wait()
    found["chained"] = x.tolist()
    found["completed"] = works[0].is_completed(), works[0].is_success()
    found["result"] = [t.tolist() for t in works[1].result()]
    y = full(rank, 2)
    found["then"] = dist.all_reduce(y, async_op=True).get_future().then(lambda f: f.value()[0] * 10).wait().tolist()
    many = [full(i, 3) for i in range(200)]
    for work in [dist.all_reduce(m, async_op=True) for m in many]:
        work.wait()
    found["many"] = all(m.eq(2 * i).all().item() for i, m in enumerate(many))
    if rank == 0:
        time.sleep(1.0)
        dist.all_reduce(y)
    else:
        work = dist.all_reduce(y, async_op=True)
        try:
            work.wait(timedelta(milliseconds=50))
        except dist.DistBackendError as error:
            found["short wait"] = str(error)
        work.wait()
    found["after"] = y.tolist()
    return found


def groups(_: Any) -> dict[str, Any]:
    """Return what overlapping groups give, used in another order on each rank."""
    rank = dist.get_rank()
    both = [dist.new_group([0, 1, 2]), dist.new_group([0, 1, 2])]
    pairs = {pair: dist.new_group(list(pair)) for pair in ((0, 1), (1, 2), (0, 2))}
    xs = [full(rank, 2), full(10 * rank, 2)]
    order = (0, 1) if rank == 0 else (1, 0)
    works = [dist.all_reduce(xs[i], group=both[i], async_op=True) for i in order]
    for work in works:
        work.wait()
    found: dict[str, Any] = {"crossed": [x[0].item() for x in xs]}
    for pair, group in pairs.items():
        if rank in pair:
            x = full(rank, 1)
            dist.all_reduce(x, group=group)
            found[str(pair)] = x.item()
    to, source = (rank + 1) % 3, (rank - 1) % 3
    large, got = full(rank, 300_000), torch.zeros(300_000)
    # Everybody sends first: no send may wait for the one's own receive.
    ops = [dist.P2POp(dist.isend, large, to), dist.P2POp(dist.irecv, got, source)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    found["ring"] = got.unique().tolist()
    objects: list[Any] = [None] * 3
    dist.all_gather_object(objects, {"rank": rank})
    found["objects"] = objects
    return found


def refusals(_: Any) -> dict[str, tuple[str, str]]:
    """Return the error of each wrong call, by what is wrong with it."""
    x, out = torch.ones(2), torch.zeros(4)
    ops = dist.ReduceOp
    calls = {
        "op": lambda: dist.all_reduce(torch.ones(2, dtype=torch.int32), ops.BAND),
        "average of integers": lambda: dist.all_reduce(torch.ones(2, dtype=torch.int32), ops.AVG),
        "average of bool": lambda: dist.reduce(torch.ones(2, dtype=torch.bool), 0, ops.AVG),
        "dtype": lambda: dist.all_reduce(torch.ones(2).to(torch.float8_e4m3fn)),
        "device": lambda: (
            dist.distributed_c10d._get_default_group()
            ._get_backend(torch.device("cpu"))
            .allreduce([torch.ones(2, device="meta")])
            .wait()
        ),
        "gathered size": lambda: dist.all_gather_into_tensor(torch.zeros(5), x),
        "scattered size": lambda: dist.reduce_scatter_tensor(torch.zeros(2), torch.zeros(5)),
        "own part": lambda: dist.all_gather([torch.zeros(3), torch.zeros(3)], x),
        "list": lambda: dist.all_to_all([out], [x]),
        "splits": lambda: dist.all_to_all_single(out, out.clone(), [1, 2], [2, 2]),
        "rows": lambda: dist.all_to_all_single(torch.zeros(3), torch.zeros(3)),
        "source": lambda: dist.recv(x),
    }
    found: dict[str, tuple[str, str]] = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            found[name] = type(error).__name__, str(error)
    dist.barrier()
    # A refused call leaves the group as it was.
    dist.all_reduce(x)
    found["afterwards"] = "", str(x.tolist())
    return found


def compiled(_: Any) -> dict[str, Any]:
    """Return what one compiled graph of functional collectives gives, eagerly and compiled."""
    import torch.distributed._functional_collectives as fc

    # Their names of now, which torch 2.8 has not.
    gather = getattr(fc, "all_gather_single", None) or fc.all_gather_tensor
    scatter = getattr(fc, "reduce_scatter_single", None) or fc.reduce_scatter_tensor
    gather_all = getattr(fc, "all_gather_single_coalesced", None) or fc.all_gather_into_tensor_coalesced
    scatter_all = getattr(fc, "reduce_scatter_single_coalesced", None) or fc.reduce_scatter_tensor_coalesced
    group = dist.distributed_c10d._get_default_group()

    def step(x: Tensor) -> list[Tensor]:
        y = x * 2
        results = [
            fc.all_reduce(y, "sum", group),
            fc.all_reduce(y, "avg", group),
            gather(y, 0, group),
            gather(y, 1, group),
            scatter(y, "sum", 0, group),
            fc.broadcast(y, 0, group),
            fc.all_to_all_single(y, None, None, group),
            *fc.all_reduce_coalesced([y, y + 1], "max", group),
            *gather_all([y, y + 1], group),
            *scatter_all([y, y + 1], "sum", [0, 0], group),
        ]
        return [fc.wait_tensor(r) for r in results]

    x = torch.arange(8.0).reshape(4, 2) + 10 * dist.get_rank()
    eager = [r.tolist() for r in step(x)]
    return {"eager": eager, "compiled": [r.tolist() for r in torch.compile(step, fullgraph=True)(x)]}


def replicated(_: Any) -> tuple[list[float], list[float]]:
    """Return the gradient that DistributedDataParallel gives, and that of the whole batch."""
    rank, size = dist.get_rank(), dist.get_world_size()
    batch = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)

    def gradient(model: torch.nn.Module, rows: Tensor) -> list[float]:
        model(rows).pow(2).mean().backward()
        return [v for p in model.parameters() if p.grad is not None for v in p.grad.flatten().tolist()]

    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    for p in net.parameters():
        torch.nn.init.constant_(p, 0.3)
    whole = gradient(net, batch)
    net.zero_grad()
    return gradient(torch.nn.parallel.DistributedDataParallel(net), batch.chunk(size)[rank]), whole


def faulty(how: str) -> dict[str, Any]:
    """Let rank 1 fail as told; return what rank 0 sees."""
    x = full(1, 4_000_000 if how == "killed in a collective" else 10)
    dist.all_reduce(x)
    if dist.get_rank() == 1:
        if how == "killed in a collective":
            dist.all_reduce(x, async_op=True)
            time.sleep(0.002)
        if how == "slow":
            time.sleep(5)
            return {}
        os.kill(os.getpid(), signal.SIGKILL)
    found: dict[str, Any] = {}
    started = time.monotonic()
    work = dist.all_reduce(x, async_op=True)
    future = work.get_future()
    for name, call in (
        ("wait", work.wait),
        ("future", future.wait),
        ("next", lambda: dist.all_reduce(x)),
    ):
        try:
            call()
        except Exception as error:
            found[name] = type(error).__name__, str(error)
    found["seconds"] = time.monotonic() - started
    found["success"] = work.is_success()
    return found


def unfinished(_: Any) -> None:
    """Leave without waiting for what was started, and without destroying the group."""
    dist.all_reduce(full(1, 100_000), async_op=True)
