"""Joining the other processes."""

from __future__ import annotations

import atexit
import datetime
import importlib.metadata
import os
from typing import Any

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ttransfer._errors import TransferError, nearest
from ttransfer.dist._faults import Watch, watched

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
    if not timeout > 0:
        raise TransferError(f"dist.init: timeout must be more than 0 seconds, got {timeout!r}")
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
    _find(backend)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    _check_size(size, started)
    store, rank = _store(started, timeout)
    _compare(store, rank, started, backend)
    dist.init_process_group(
        backend, store=PrefixStore("group", store), rank=rank, world_size=started, timeout=timeout
    )
    watch = watched(store, rank, started) if started > 1 else None
    atexit.register(_leave, watch)


def _find(backend: str) -> None:
    """Have a backend ready, by what other packages offer under its name if torch does not know it."""
    known = [name for name in dist.Backend.backend_list if name != "undefined"]
    if backend in known:
        if not getattr(dist, f"is_{backend}_available", lambda: True)():
            raise TransferError(f"dist.init: this build of torch has no {backend!r}")
        return
    offered = {point.name: point for point in importlib.metadata.entry_points(group=_PLUGINS)}
    if backend not in offered:
        raise TransferError(f"dist.init: no backend {backend!r}{nearest(backend, [*known, *offered])}")
    offered[backend].load()()


def _store(started: int, timeout: datetime.timedelta) -> tuple[Any, int]:
    if "RANK" not in os.environ:
        if started > 1:
            raise TransferError("dist.init: WORLD_SIZE is set and RANK is not; start the processes with torchrun")
        return HashStore(), 0
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    try:
        store, rank, _ = next(rendezvous("env://", timeout=timeout))
    except (dist.DistNetworkError, dist.DistStoreError, ValueError) as error:
        text = str(error)
        if "EADDRINUSE" in text or "address already in use" in text:
            raise TransferError(
                f"dist.init: {address} is in use by another process; give torchrun another --master-port, or "
                "--standalone, which finds one"
            ) from error
        raise TransferError(f"dist.init: cannot meet the other ranks at {address}: {text.splitlines()[0]}") from error
    store.set_timeout(timeout)
    return store, rank


def _compare(store: Any, rank: int, size: int, backend: str) -> None:
    """Let all ranks agree on the backend before any of them waits for the others in it."""
    store.set(f"ttransfer/backend/{rank}", backend)
    keys = [f"ttransfer/backend/{other}" for other in range(size)]
    try:
        store.wait(keys)
    except (dist.DistStoreError, RuntimeError) as error:
        missing = [other for other, key in enumerate(keys) if not store.check([key])]
        raise TransferError(f"dist.init: ranks {missing} of {size} did not come in time") from error
    asked = {other: store.get(key).decode() for other, key in enumerate(keys)}
    if len(set(asked.values())) > 1:
        raise TransferError(f"dist.init: the ranks ask for different backends: {asked}; give all the same")


def _leave(watch: Watch | None) -> None:
    """Leave the group at the end, unless it is broken: then nobody answers."""
    if dist.is_initialized() and (watch is None or not watch.broken):
        dist.destroy_process_group()
