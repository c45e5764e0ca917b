"""Joining the other processes."""

from __future__ import annotations

import atexit
import datetime
import importlib.metadata

import torch.distributed as dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ttransfer._errors import TransferError, nearest
from ttransfer.dist._ending import tell_at_end
from ttransfer.dist._faults import exchanging, watched
from ttransfer.dist._meet import agree, meet

__all__ = ["init"]

_PLUGINS = "ttransfer.backends"


def init(backend: str = "gloo", *, size: int | None = None, timeout: float = 600.0) -> DeviceMesh:
    """Join the other processes that `torchrun` started, and return the mesh of all of them.

    Without torchrun, this process is the only rank, so that one script serves both. Called again, it returns the mesh
    of the group there is. The group is left at the end of the process.

    A rank that fails stops the others: by the closed connection at once, or if it hangs after `timeout`, with an error
    that names it.

    Args:
        backend: "gloo", "ccl" (oneCCL: ``pip install ttransfer[oneccl]``), or another of torch.distributed's.
        size: how many ranks there must be; None takes as many as were started.
        timeout: seconds after which an exchange that others do not come to is given up. Longer than the longest thing
            that one rank does while the others wait, such as compiling a step.

    Returns:
        A one-dimensional `DeviceMesh` with the dimension "batch".

    Raises:
        TransferError: for an unknown backend or one that cannot be had here, for ranks that ask for different ones, for
            another number of ranks, for an address that is in use, for ranks that do not come in time.

    Example:
        >>> import ttransfer as tt
        >>> tt.dist.init().size()
        1
    """
    if not 0 < timeout < float("inf"):
        raise TransferError(f"dist.init: timeout must be more than 0 seconds, and finite; got {timeout!r}")
    if dist.is_initialized():
        _same(backend, size)
    else:
        _join(backend, size, datetime.timedelta(seconds=timeout))
    return init_device_mesh(_device(backend), (dist.get_world_size(),), mesh_dim_names=("batch",))


def _device(backend: str) -> str:
    return "cuda" if backend == "nccl" else "cpu"


def _same(backend: str, size: int | None) -> None:
    have = dist.get_backend()
    if backend != have:
        raise TransferError(f"dist.init: this process has joined a {have!r} group already, and asks for {backend!r}")
    _check_size(size, dist.get_world_size())


def _check_size(size: int | None, started: int) -> None:
    if size is not None and size != started:
        raise TransferError(
            f"dist.init: size={size}, but {started} {'process was' if started == 1 else 'processes were'} started; "
            f"run torchrun --nproc-per-node {size} ..."
        )


def _join(backend: str, size: int | None, timeout: datetime.timedelta) -> None:
    place = meet(timeout)
    problem = None
    try:
        _check_size(size, place.size)
        _find(backend)
    except TransferError as error:  # told to the others first, who would wait for this rank
        problem = str(error)
    agree(place, backend, problem, timeout)
    store = PrefixStore("group", place.store)
    if place.size == 1:
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        atexit.register(_leave)
        return
    watch = watched(place.store, place.rank, place.size, place.keeper)
    tell_at_end(watch)
    with exchanging("joining the group"):
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=timeout)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _find(backend: str) -> None:
    """Have a backend ready, by what other packages offer under its name if torch does not know it."""
    known = [name for name in dist.Backend.backend_list if name != "undefined"]
    if backend in known:
        if not _built(backend):
            raise TransferError(f"dist.init: this build of torch has no {backend!r}")
        return
    offered = {point.name: point for point in importlib.metadata.entry_points(group=_PLUGINS)}
    if backend not in offered:
        raise TransferError(f"dist.init: no backend {backend!r}{nearest(backend, [*filter(_built, known), *offered])}")
    offered[backend].load()()


def _built(backend: str) -> bool:
    return getattr(dist, f"is_{backend}_available", lambda: True)()
