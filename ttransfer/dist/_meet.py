"""Meeting the other processes at a store, and agreeing on what is started.

The store that torchrun keeps outlives its restarts, with all that an earlier attempt wrote there: addresses of
processes that are dead, and what they died of. So the ranks first agree on a name for this attempt, and then use no key
without it. (A count of restarts is no such name: each machine's torchrun has its own.)
"""

from __future__ import annotations

import atexit
import datetime
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from ttransfer._errors import TransferError
from ttransfer.dist._ending import exit_now

__all__ = ["Place", "agree", "meet"]

T = TypeVar("T")

_POLL = 0.01  # seconds
_PATIENCE = 3.0  # seconds


class Place(NamedTuple):
    """Where ranks meet.

    Attributes:
        store: of this attempt alone.
        rank: this process's.
        size: how many there are.
        keeper: the rank in whose process the store lives; None if in the launcher's.
    """

    store: Any
    rank: int
    size: int
    keeper: int | None


def meet(timeout: datetime.timedelta) -> Place:
    """Wait for the processes that were started with this one.

    Args:
        timeout: how long.

    Raises:
        TransferError: if there is no place to meet, or if some do not come.
    """
    if "RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") == "1":
        return Place(HashStore(), 0, 1, 0)
    rank, size, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not 0 <= rank < size:
        raise TransferError(f"dist.init: RANK is {rank}, and WORLD_SIZE {size}; start the processes with torchrun")
    host = os.environ.get("MASTER_ADDR", "localhost")
    keeper = None if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0
    deadline = time.monotonic() + timeout.total_seconds()
    try:
        store = _bounded(lambda: _store(host, port, rank == keeper, timeout), timeout)
        name = _lead(store, size, deadline) if rank == 0 else _follow(store, rank, size, timeout)
    except RuntimeError as error:  # of the store
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise TransferError(
                f"dist.init: {host}:{port} is in use by another process; give torchrun another --master-port, or "
                "--standalone, which finds one"
            ) from error
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TransferError(f"dist.init: cannot meet the other ranks at {host}:{port}: {text}") from error
    return Place(PrefixStore(name, store), rank, size, keeper)


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise TransferError(
            f"dist.init: the environment variable {name} is {text!r}, wanted a number; torchrun sets it right"
        )
    return int(text)


def _store(host: str, port: int, keeps: bool, timeout: datetime.timedelta) -> Any:
    """Open the store of all attempts. Nobody waits for the others in there, where he could not say who is missing."""
    store = TCPStore(host, port, None, keeps, timeout, wait_for_workers=False, multi_tenant=True)
    store.set_timeout(timeout)
    return store


def _bounded(act: Callable[[], T], timeout: datetime.timedelta) -> T:
    """Return what a function returns, if it does in time: who listens at an address may be no store, and silent."""
    found: list[T | BaseException] = []

    def work() -> None:
        try:
            found.append(act())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, name="ttransfer-meet", daemon=True)
    thread.start()
    thread.join(timeout.total_seconds() + _PATIENCE)
    if not found:
        atexit.register(_abandon, thread)
        raise RuntimeError("who listens there does not answer; is the address in use by another process?")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _abandon(thread: threading.Thread) -> None:
    thread.join(_PATIENCE)
    if thread.is_alive():
        exit_now()


def _lead(store: Any, size: int, deadline: float) -> str:
    """Name this attempt to each rank that asks, and wait until all have heard it."""
    name = f"ttransfer/{uuid.uuid4().hex}"
    missing = set(range(1, size))
    while missing and time.monotonic() < deadline:
        for rank in sorted(missing):
            # Who asked in an earlier attempt is answered too, and does not hear it.
            if store.check([f"ttransfer/asks/{rank}"]):
                store.set(f"ttransfer/answer/{store.get(f'ttransfer/asks/{rank}').decode()}", name)
            if store.check([f"{name}/here/{rank}"]):
                missing.discard(rank)
        time.sleep(_POLL)
    store.set(f"{name}/missing", ",".join(map(str, sorted(missing))))
    if missing:
        _linger(PrefixStore(name, store), set(range(1, size)) - missing)
        raise _late(sorted(missing), size)
    return name


def _follow(store: Any, rank: int, size: int, timeout: datetime.timedelta) -> str:
    """Ask for the name of this attempt, and wait until all have heard it."""
    question = uuid.uuid4().hex
    store.set(f"ttransfer/asks/{rank}", question)
    if not _came(store, [f"ttransfer/answer/{question}"], timeout):
        raise _late([0], size)
    name = store.get(f"ttransfer/answer/{question}").decode()
    store.set(f"{name}/here/{rank}", "")
    if not _came(store, [f"{name}/missing"], timeout):
        raise _late([r for r in range(1, size) if not store.check([f"{name}/here/{r}"])] or [0], size)
    missing = store.get(f"{name}/missing").decode()
    if missing:
        store.set(f"{name}/read/{rank}", "")
        raise _late([int(r) for r in missing.split(",")], size)
    return name


def _linger(store: Any, others: Iterable[int]) -> None:
    """Wait a little for others to read why there is an error: torchrun ends them, or their store, with this process."""
    _came(store, [f"read/{rank}" for rank in others], datetime.timedelta(seconds=_PATIENCE))


def _came(store: Any, keys: list[str], timeout: datetime.timedelta) -> bool:
    try:
        store.wait(keys, timeout)
    except dist.DistStoreError:  # nobody wrote them in time
        return False
    return True


def _late(missing: Sequence[int], size: int) -> TransferError:
    who = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
    return TransferError(f"dist.init: {who} of {size} did not come in time")


def agree(place: Place, asked: str, problem: str | None, timeout: datetime.timedelta) -> None:
    """Let all ranks know what each asks for, before any of them waits for the others in it.

    Args:
        place: where they meet.
        asked: what this rank asks for.
        problem: why this rank cannot have it.
        timeout: how long to wait for what others say.

    Raises:
        TransferError: on all ranks, if one has a problem or asks for something else.
    """
    place.store.set(f"asked/{place.rank}", asked if problem is None else f"!{problem}")
    keys = [f"asked/{rank}" for rank in range(place.size)]
    if not _came(place.store, keys, timeout):
        raise _late([rank for rank, key in enumerate(keys) if not place.store.check([key])], place.size)
    said = {rank: place.store.get(key).decode() for rank, key in enumerate(keys)}
    if wrong := _disagreement(said, place.rank):
        place.store.set(f"read/{place.rank}", "")
        _linger(place.store, said)
        raise TransferError(wrong)


def _disagreement(said: Mapping[int, str], own: int) -> str:
    refused = {rank: text[1:] for rank, text in said.items() if text.startswith("!")}
    if own in refused:
        return refused[own]
    if refused:
        rank, why = next(iter(refused.items()))
        return f"dist.init: rank {rank} of {len(said)} cannot take part: {why}"
    if len(set(said.values())) > 1:
        return f"dist.init: the ranks ask for different backends: {dict(said)}; give all the same"
    return ""
