"""A case on both backends: `compare` runs in every rank of a group whose default backend is ccl."""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.ext.oneccl._cases import Case

# Gloo knows neither these dtypes, in every call and torch, nor that True + True is True.
STAND_INS = {"int16": "int64", "uint16": "int64", "uint32": "int64", "uint64": "int64"} | {
    "bool": "uint8",
    "complex64": "float32",
}
TURN = 1 + 2j  # so that complex numbers have an imaginary part to lose
# Gloo of torch 2.8 adds in reduce_scatter whatever the reduction is.
GLOO_SCATTERS = tuple(int(part) for part in torch.__version__.split(".")[:2]) > (2, 8)


def tensor_of(case: Case, salt: int, dtype: torch.dtype, rows: tuple[int, ...] | None = None) -> Tensor:
    """Return small numbers whose sums and products are exact in every dtype, in the layout of the case."""
    shape = case.shape if rows is None else rows
    generator = torch.Generator().manual_seed(zlib.crc32(repr((case, salt)).encode()))
    low = -3 if dtype.is_signed and case.dtype != "bool" and not case.dtype.startswith("uint") else 0
    high = 2 if case.dtype == "bool" else 4
    values = torch.randint(low, high, shape, generator=generator).to(dtype)
    values = values * TURN if dtype.is_complex else values
    if case.layout == "transposed":
        return values.movedim(0, -1).contiguous().movedim(-1, 0)
    if case.layout == "strided":
        return torch.stack([values, torch.zeros_like(values)], -1)[..., 0]
    return values


def _finish(work: Any, waited: bool) -> None:
    if waited:
        work.wait()
    else:
        work.get_future().wait()


def _call(case: Case, group: Any, dtype: torch.dtype, exact: bool) -> list[Tensor]:
    """Make the call and return what it wrote. `exact`: the very call, not what other calls say that it should give."""
    size, rank = len(case.members), case.members.index(dist.get_rank())
    root = case.members[case.root]
    op = getattr(dist.ReduceOp, case.reduction)
    waited = case.waited or not exact  # gloo has no futures for some calls
    lead, rest = case.shape[0], case.shape[1:]

    def own(salt: int = 0, rows: tuple[int, ...] | None = None) -> Tensor:
        return tensor_of(case, rank + 100 * salt, dtype, rows)

    def blank(rows: tuple[int, ...] | None = None) -> Tensor:
        return tensor_of(case, 0, dtype, rows).zero_() if exact else own(0, rows).contiguous().zero_()

    def given(tensor: Tensor) -> Tensor:
        return tensor if exact else tensor.contiguous()

    def scattered(y: Tensor) -> Tensor:
        dist.all_reduce(y, op, group=group)
        return y[rank * lead : (rank + 1) * lead]

    match case.call:
        case "all_reduce":
            x = given(own())
            _finish(dist.all_reduce(x, op, group=group, async_op=True), waited)
            return [x]
        case "all_reduce_coalesced":
            xs = [given(own(i)) for i in range(3)]
            if exact:
                with dist._coalescing_manager(group, async_ops=True) as manager:
                    for x in xs:
                        dist.all_reduce(x, op, group=group, async_op=True)
                manager.wait()
            else:
                for x in xs:
                    dist.all_reduce(x, op, group=group)
            return xs
        case "reduce":
            x = given(own())
            _finish(dist.reduce(x, root, op, group=group, async_op=True), waited)
            return [x] if rank == case.root else []
        case "reduce_scatter":
            x = blank()
            parts = [given(own(i)) for i in range(size)]
            if not exact and not GLOO_SCATTERS:
                return [scattered(torch.cat(parts))]
            _finish(dist.reduce_scatter(x, parts, op, group=group, async_op=True), waited)
            return [x]
        case "reduce_scatter_single":
            x, y = blank(), given(own(0, (size * lead, *rest)))
            if not exact and not GLOO_SCATTERS:
                return [scattered(y)]
            _finish(dist.reduce_scatter_tensor(x, y, op, group=group, async_op=True), waited)
            return [x]
        case "reduce_scatter_coalesced":
            xs, ys = [blank(), blank()], [given(own(i, (size * lead, *rest))) for i in range(2)]
            if exact:
                with dist._coalescing_manager(group, async_ops=True) as manager:
                    for x, y in zip(xs, ys, strict=True):
                        dist.reduce_scatter_tensor(x, y, op, group=group, async_op=True)
                manager.wait()
                return xs
            return [scattered(y) for y in ys]
        case "broadcast":
            x = given(own())
            _finish(dist.broadcast(x, root, group=group, async_op=True), waited)
            return [x]
        case "all_gather":
            xs = [blank() for _ in range(size)]
            _finish(dist.all_gather(xs, given(own()), group=group, async_op=True), waited)
            return xs
        case "all_gather_single":
            x = blank((size * lead, *rest))
            _finish(dist.all_gather_into_tensor(x, given(own()), group=group, async_op=True), waited)
            return [x]
        case "all_gather_coalesced":
            xs = [blank((size * lead, *rest)) for _ in range(2)]
            if exact:
                with dist._coalescing_manager(group, async_ops=True) as manager:
                    for i, x in enumerate(xs):
                        dist.all_gather_into_tensor(x, given(own(i)), group=group, async_op=True)
                manager.wait()
            else:
                for i, x in enumerate(xs):
                    dist.all_gather_into_tensor(x, given(own(i)), group=group)
            return xs
        case "all_to_all":
            xs = [blank() for _ in range(size)]
            if exact:
                _finish(dist.all_to_all(xs, [given(own(i)) for i in range(size)], group=group, async_op=True), waited)
                return xs
            joined = torch.cat([own(i) for i in range(size)])
            out = torch.zeros_like(joined)
            dist.all_to_all_single(out, joined, group=group)
            return list(out.chunk(size)) if lead else xs
        case "all_to_all_single":
            x = blank((size * lead, *rest))
            _finish(dist.all_to_all_single(x, given(own(0, (size * lead, *rest))), group=group, async_op=True), waited)
            return [x]
        case "all_to_all_splits":
            # Rank r sends (r + to) % 3 rows, times the first dimension, to each other.
            sent = [lead * ((rank + to) % 3) for to in range(size)]
            got = [lead * ((source + rank) % 3) for source in range(size)]
            x = blank((sum(got), *rest))
            work = dist.all_to_all_single(x, given(own(0, (sum(sent), *rest))), got, sent, group=group, async_op=True)
            _finish(work, waited)
            return [x]
        case "gather":
            xs = [blank() for _ in range(size)] if rank == case.root else None
            _finish(dist.gather(given(own()), xs, root, group=group, async_op=True), waited)
            return xs or []
        case "scatter":
            x = blank()
            parts = [given(own(i)) for i in range(size)] if rank == case.root else None
            _finish(dist.scatter(x, parts, root, group=group, async_op=True), waited)
            return [x]
        case "ring":
            x = blank()
            to, source = case.members[(rank + 1) % size], case.members[(rank - 1) % size]
            works = [dist.isend(given(own()), to, group=group), dist.irecv(x, source, group=group)]
            for work in works:
                assert work is not None
                work.wait()
            return [x]
    raise AssertionError(case.call)


def compare(cases: list[Case]) -> list[tuple[Case, str]]:
    """Make each call on both backends; return the cases in which they differ, and how."""
    world = dist.get_world_size()
    groups: dict[tuple[int, ...], tuple[Any, Any]] = {}
    for members in dict.fromkeys([tuple(range(world)), (0, world - 1)]):
        groups[members] = dist.new_group(list(members)), dist.new_group(list(members), backend="gloo")
    failures: list[tuple[Case, str]] = []
    for case in cases:
        if dist.get_rank() not in case.members:
            continue
        dtype = getattr(torch, case.dtype)
        stand_in = getattr(torch, STAND_INS.get(case.dtype, case.dtype))
        ccl, gloo = groups[case.members]
        found = _call(case, ccl, dtype, exact=True)
        wanted = [x.to(dtype) for x in _call(case, gloo, stand_in, exact=False)]
        if dtype.is_complex:
            wanted = [x * TURN for x in wanted]
        try:
            # A third has no end in any dtype, and only there may the two round differently.
            loose = {} if case.reduction == "AVG" else {"rtol": 0, "atol": 0}
            torch.testing.assert_close([x.contiguous() for x in found], [x.contiguous() for x in wanted], **loose)
        except AssertionError as error:
            failures.append((case, str(error)))
    dist.barrier()
    return failures
