"""Groups of ranks of which one fails, run in a process of their own. Prints how the others ended.

Torch is imported once, and every rank is a fork. Each group has a launcher, a fork too, that does as torchrun does: it
keeps the store (or leaves that to rank 0), and sends SIGTERM to the others as soon as a rank has ended. A rank is left
to end as the interpreter ends it, in a session of its own.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch.distributed as dist
import torch.nn.functional as F

import ttransfer as tt
from tests.support.nets import mlp, vectors
from ttransfer_ext.oneccl import register

ROOT = Path(__file__).parents[2]

TIMEOUT = 6.0  # seconds after which an exchange is given up
AT = 2  # the step before which a rank fails
LIMIT = 90.0  # seconds after which a group is ended from outside
AT_ONCE = 4  # groups


class Case(NamedTuple):
    """A group of ranks.

    Attributes:
        name: of the case.
        work: what a rank does.
        size: how many ranks.
        started: how many of them are started; None for all, -1 for all but the first.
        by_launcher: whether the launcher keeps the store, or else rank 0.
        taken: whether somebody else listens on the address.
    """

    name: str
    work: Callable[[int], object]
    size: int = 2
    started: int | None = None
    by_launcher: bool = True
    taken: bool = False


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fail() -> NoReturn:
    raise ValueError("no such file, say")


def hang() -> None:
    time.sleep(3600)


def leave() -> NoReturn:
    sys.exit()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


FAULTS = {"kill": kill, "stop": stop, "raise": fail, "hang": hang, "leave": leave, "terminate": terminate}


def problem() -> tt.Step:
    return tt.step(
        {"student": tt.functional(mlp(1, p=0.3)), "teacher": tt.functional(mlp(2))},
        tt.optim.sgd(0.1),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        mmd=tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in"),
    )


def train(
    rank: int,
    *,
    fault: str,
    who: int,
    backend: str = "gloo",
    compiled: bool = False,
    busy: bool = False,
    again: bool = False,
) -> None:
    """Take steps, before one of which a rank fails; the others may have something long to do, or try again."""
    mesh = tt.dist.init(backend, timeout=TIMEOUT)
    step = tt.shard(problem(), mesh)
    if compiled:
        step = tt.compile(step, backend="aot_eager")
    batches = [next(iter(tt.dist.sliced([vectors(i)], mesh))) for i in range(AT + 2)]
    state = step.init(batches[0])
    for i, batch in enumerate(batches):
        if i == AT and rank == who:
            Path("fault").write_text(str(time.monotonic()))
            FAULTS[fault]()
        if i == AT and busy:
            hang()
        try:
            state, _ = step(state, batch)
        except tt.TransferError:
            if not again:
                raise
            step(state, batch)


def fitted(rank: int, folder: Path) -> None:
    """Train with checkpoints, the last rank killed once under way; leave what was logged and the final state."""
    mesh = tt.dist.init(timeout=TIMEOUT)
    step = tt.shard(problem(), mesh, optimizer="sharded")
    data = {domain: tt.loader(fields, batch_size=4) for domain, fields in vectors(0, source=18, target=14).items()}
    batches = tt.dist.sliced(tt.domains(**data), mesh)
    state = step.init(next(iter(batches)), seed=1)
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"

    def evaluate(state: tt.State) -> dict[str, Any]:
        if first and rank == 1 and int(state.step) == 5:
            kill()
        return {"bias": state.trainable["student"]["fc.bias"].sum()}

    tt.fit(
        step, state, batches, steps=9, evaluate=evaluate, evaluate_every=1, log=str(folder / "log.jsonl"), log_every=1,
        checkpoint=folder, checkpoint_every=2, keep=9,
    )  # fmt: skip


def join(
    rank: int, *, backends: list[str], sizes: list[int | None] | None = None, timeout: float = TIMEOUT, **environ: str
) -> None:
    os.environ.update(environ)
    tt.dist.init(backends[rank % len(backends)], size=sizes[rank] if sizes else None, timeout=timeout)


def uncompiled(rank: int) -> None:
    """Ask for oneCCL without a compiler on rank 1."""
    if rank == 1:
        os.environ.update(CXX="no-such-compiler", TORCH_EXTENSIONS_DIR=os.getcwd())
    tt.dist.init("ccl", timeout=30.0)


def faults() -> Iterator[Case]:
    for fault in FAULTS:
        for who in (0, 1):
            yield Case(f"{fault} {who}", functools.partial(train, fault=fault, who=who))
    for fault in ("kill", "stop", "raise"):
        yield Case(f"{fault} 0, keeper", functools.partial(train, fault=fault, who=0), by_launcher=False)
    for fault in ("raise", "hang"):
        yield Case(f"{fault} 2 of three", functools.partial(train, fault=fault, who=2), size=3)
    yield Case("kill 1, compiled", functools.partial(train, fault="kill", who=1, compiled=True))
    for fault, who in (("kill", 1), ("stop", 0), ("raise", 0), ("hang", 1), ("leave", 0)):
        yield Case(f"{fault} {who}, ccl", functools.partial(train, fault=fault, who=who, backend="ccl"))


def endings() -> Iterator[Case]:
    for fault in ("kill", "raise", "terminate"):
        yield Case(f"{fault} 1, others busy", functools.partial(train, fault=fault, who=1, busy=True), size=3)
    yield Case("caught", functools.partial(train, fault="kill", who=1, again=True))
    yield Case("unbroken", functools.partial(fitted, folder=Path("run")))


def meetings() -> Iterator[Case]:
    gloo = functools.partial(join, backends=["gloo"])
    late = functools.partial(join, backends=["gloo"], timeout=3.0)
    yield Case("one is late", late, size=3, started=2)
    yield Case("one is late, no launcher", late, size=3, started=2, by_launcher=False)
    yield Case("the first is late", late, started=-1)
    yield Case("nobody listens", late, started=-1, by_launcher=False)
    yield Case("address in use", gloo, by_launcher=False, taken=True)
    yield Case("no number", functools.partial(gloo, RANK="first"), by_launcher=False)
    yield Case("no such rank", functools.partial(gloo, RANK="2"), by_launcher=False)


def refusals() -> Iterator[Case]:
    yield Case("mixed", functools.partial(join, backends=["gloo", "fake"]), by_launcher=False)
    yield Case("unknown", functools.partial(join, backends=["glo"]))
    yield Case("unknown on one", functools.partial(join, backends=["gloo", "glo"]))
    yield Case("size", functools.partial(join, backends=["gloo"], sizes=[3, 3]))
    yield Case("size on one", functools.partial(join, backends=["gloo"], sizes=[None, 3]), by_launcher=False)
    yield Case("no compiler on one", uncompiled)


KINDS = {kind.__name__: kind for kind in (faults, endings, meetings, refusals)}


def run(kind: str, folder: Path, *names: str) -> dict[str, Any]:
    """Run the groups of a kind, all or some, in a new process; return how their ranks ended."""
    folder.mkdir(exist_ok=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", __file__, kind, str(folder), *names]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def launch(case: Case, folder: Path) -> dict[str, Any]:
    """Run a group, and end what is left of it as torchrun would."""
    folder.mkdir()
    os.chdir(folder)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if case.taken:
        listener.listen()
    else:
        listener.close()
    started = case.started or case.size
    ranks = range(started) if started > 0 else range(-started, case.size)
    pids = {start(case, rank, port): rank for rank in ranks}
    store = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False) if case.by_launcher else None
    ends = wait(dict(pids), bool(store))
    fault = Path("fault")
    failed = float(fault.read_text()) if fault.exists() else None
    del store
    listener.close()
    return {
        "ranks": {
            rank: {
                "said": Path(f"rank{rank}").read_text(),
                "status": ends[pid][0],
                "seconds": None if failed is None else round(ends[pid][1] - failed, 2),
            }
            for pid, rank in pids.items()
        },
        "left": [pid for pid in pids if members(pid)],
        "port is free": free(port),
    }


def start(case: Case, rank: int, port: int) -> int:
    """Fork a rank. It never comes back here, and ends as a program does."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    out = os.open(f"rank{rank}", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(case.size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if case.by_launcher:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    case.work(rank)
    sys.exit()


def wait(running: dict[int, int], as_torchrun: bool) -> dict[int, tuple[int, float]]:
    """Wait for all ranks, and end those that do not end by themselves; return how and when each ended."""
    ends: dict[int, tuple[int, float]] = {}
    deadline = time.monotonic() + LIMIT
    told = False
    while running:
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                ends[pid] = (os.waitstatus_to_exitcode(status), time.monotonic())
                del running[pid]
        if as_torchrun and not told and any(status for status, _ in ends.values()):
            told = True
            for pid in running:
                os.kill(pid, signal.SIGTERM)
            deadline = min(deadline, time.monotonic() + 3 * TIMEOUT)
        if time.monotonic() > deadline or (ends and all(is_stopped(pid) for pid in running)):
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return ends


def is_stopped(pid: int) -> bool:
    return status_of(pid)[0] == "T"


def status_of(pid: int) -> list[str]:
    """State, parent, group and session of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]


def members(session: int) -> list[int]:
    """Processes of a session."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(status_of(int(path.name))[3]) == session:
                found.append(int(path.name))
    return found


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
        return True


def main(kind: str, folder: Path, *names: str) -> None:
    warm(kind)
    waiting, running, found = [case for case in KINDS[kind]() if case.name in names or not names], {}, {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            case = waiting.pop(0)
            place = folder / case.name.replace(" ", "-")
            pid = os.fork()
            if not pid:
                # A rank, forked in there, leaves by the interpreter's own end; the launcher does not.
                Path(f"{place}.json").write_text(json.dumps(launch(case, place)))
                os._exit(0)
            running[pid] = (case, place)
        pid, status = os.wait()
        case, place = running.pop(pid)
        assert status == 0, (case.name, status)
        found[case.name] = json.loads(Path(f"{place}.json").read_text())
    sys.stdout.write(json.dumps(found))


def warm(kind: str) -> None:
    """Import and prepare what all ranks need, once. (A process that has taken a gradient cannot be forked.)"""
    if kind in ("faults", "refusals"):
        builder = os.fork()
        if not builder:
            register()  # compiles it, if nobody has
            os._exit(0)
        assert os.waitpid(builder, 0)[1] == 0
    problem().init(vectors(0))
    gc.collect()
    gc.freeze()  # or each rank looks through all of torch at its end


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        fitted(int(os.environ["RANK"]), Path(sys.argv[1]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
