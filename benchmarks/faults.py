"""Kill ranks of real jobs at random moments, let torchrun restart them, and look at what comes of it.

Each job trains a small net with dropout by cross-entropy, distillation and MMD over two or three processes, with a
checkpoint every third step. A rank is killed (SIGKILL) while it starts or works, in an exchange, or in a checkpoint;
what it was doing when it died is read from memory that outlives it. Then the next life of the job is waited for, and a
rank of that is killed. Run with ``python benchmarks/faults.py --output benchmarks/faults.txt``, on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _faulted import DOING, EXCHANGING, SAVING, STARTING, Note

from ttransfer.run import checkpoints

HERE = Path(__file__).parent
STEPS = 40
LIMIT = 300.0  # seconds for a life of a job
PLANS = ("at any moment", "in an exchange", "in a checkpoint")


class Job(NamedTuple):
    """How many ranks, and where the optimizer's state is."""

    size: int
    optimizer: str


class Killed(NamedTuple):
    """What came of killing a rank.

    Attributes:
        rank: which.
        doing: what it was doing.
        saving: whether the first rank was writing a checkpoint.
        seconds: from the kill to the end of each other rank.
        named: how many of them said that this rank was the cause.
        half: whether a half-written checkpoint was left.
        newest: the newest whole checkpoint then, if there was one.
    """

    rank: int
    doing: str
    saving: bool
    seconds: list[float]
    named: int
    half: bool
    newest: str | None


class Outcome(NamedTuple):
    """What came of a job.

    Attributes:
        job: which.
        left: the final state and the log.
        kills: of its ranks.
        right: for each life that came to load a checkpoint, whether that was the newest whole one.
        orphans: processes left behind.
        busy: whether its port was left in use.
    """

    job: Job
    left: tuple[str, str]
    kills: list[Killed]
    right: list[bool]
    orphans: int
    busy: bool


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
        return True


def wait_for(what: Callable[[], Any], pause: float = 0.005) -> Any:
    deadline = time.monotonic() + LIMIT
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError("a job does not go on")
        time.sleep(pause)
    return found


def read(path: Path) -> Any:
    with contextlib.suppress(OSError, ValueError):  # not there, or not whole
        return json.loads(path.read_text())
    return None


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def members(sessions: set[int]) -> list[int]:
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[3]) in sessions:
                found.append(int(path.name))
    return found


class Running:
    """A job under torchrun."""

    def __init__(self, job: Job, folder: Path, restarts: int) -> None:
        self.job, self.folder, self.port = job, folder, free_port()
        folder.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(job.size),
             "--max-restarts", str(restarts), "--master-addr", "127.0.0.1", "--master-port", str(self.port),
             "--redirects", "3", "--log-dir", str(folder / "logs"),
             str(HERE / "_faulted.py"), str(folder), str(STEPS), job.optimizer],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.sessions = {self.process.pid}
        self.left: set[int] = set()

    def pids(self, life: int) -> list[int]:
        """The processes of a life, once all have begun."""
        paths = [self.folder / f"life-{life}-{rank}" for rank in range(self.job.size)]
        found = [one["pid"] for one in wait_for(lambda: all(map(read, paths)) and [read(path) for path in paths])]
        self.sessions.update(found)
        return found

    def kill(self, life: int, plan: str, chance: random.Random, startup: float) -> Killed:
        """Kill a rank of a life of this job."""
        pids, rank = self.pids(life), chance.randrange(self.job.size)
        notes = [Note(self.folder / f"note-{life}-{r}") for r in range(self.job.size)]
        if plan == "at any moment":
            moment, steps = time.monotonic() + chance.uniform(0, startup), chance.randint(0, 6)
            if chance.random() < 0.5:
                moment = float("inf")
            wait_for(lambda: time.monotonic() > moment or notes[rank].steps > steps)
            time.sleep(chance.uniform(0, 0.02))
        else:
            watched, doing = (rank, EXCHANGING) if plan == "in an exchange" else (0, SAVING)
            steps = chance.randint(1, 6)
            wait_for(lambda: notes[watched].steps >= steps)
            wait_for(lambda: notes[watched].doing == doing, pause=0)
            time.sleep(chance.uniform(0, 0.001 if doing == EXCHANGING else 0.006))
        os.kill(pids[rank], signal.SIGKILL)
        at = time.monotonic()
        waiting, seconds = [pid for pid in pids if pid != pids[rank]], []
        saving = notes[0].doing == SAVING
        wait_for(lambda: not lives(pids[rank]), pause=0.001)
        doing = notes[rank].doing

        def ended() -> bool:
            for pid in [pid for pid in waiting if not lives(pid)]:
                waiting.remove(pid)
                seconds.append(time.monotonic() - at)
            return not waiting

        wait_for(ended)
        whole = [path.name for path in checkpoints(self.folder / "run")]
        # What an earlier kill left stays until the next checkpoint, and is not counted again.
        left = {path.stat().st_ino for path in (self.folder / "run").glob(".step-*.new")} - self.left
        self.left |= left
        said = [path.read_text() for path in (self.folder / "logs").glob(f"*/attempt_{life}/*/stderr.log")]
        named = sum(f"rank {rank} is dead or stopped" in text for text in said)
        return Killed(rank, DOING[doing], saving, seconds, named, bool(left), (whole or [None])[-1])

    def end(self) -> None:
        """Wait until the job is done."""
        status = self.process.wait(LIMIT)
        assert status == 0, f"torchrun ended with {status}"

    def stop(self) -> None:
        """End what this run has started, if something went wrong."""
        for pid in members(self.sessions):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def left_by(folder: Path) -> tuple[str, str]:
    """The seal of the last checkpoint, which covers all of its state, and the log of every step."""
    last = checkpoints(folder / "run")[-1]
    assert last.name == f"step-{STEPS:08d}"
    return read(last / "state.json")["seal"], (folder / "log.jsonl").read_text()


def run(job: Job, folder: Path, plans: list[str], chance: random.Random, startup: float) -> Outcome:
    running = Running(job, folder, len(plans))
    try:
        kills: list[Killed] = []
        for life, plan in enumerate(plans):
            kills.append(running.kill(life, plan, chance, startup))
            sys.stderr.write(f"{job.size} ranks, {job.optimizer}, {plan}: {kills[-1]}\n")
        running.end()
        orphans, free = members(running.sessions), is_free(running.port)
    finally:
        running.stop()
    begun = [read(folder / f"begun-{life}") for life in range(1, len(plans) + 1)]
    right = [one["from"] == killed.newest for one, killed in zip(begun, kills, strict=True) if one]
    return Outcome(job, left_by(folder), kills, right, len(orphans), not free)


def table(outcomes: list[Outcome], wanted: dict[Job, tuple[str, str]], seed: int) -> str:
    kills = [killed for outcome in outcomes for killed in outcome.kills]
    seconds = sorted(value for killed in kills for value in killed.seconds)
    joined = [killed for killed in kills if killed.doing != DOING[STARTING]]
    right = [one for outcome in outcomes for one in outcome.right]
    doing, ranks = Counter(killed.doing for killed in kills), Counter(killed.rank for killed in kills)
    named = f"{sum(killed.named for killed in joined)} of {sum(len(killed.seconds) for killed in joined)}"
    facts = {
        "half-written checkpoints that a kill left": sum(killed.half for killed in kills),
        "restarts from the newest whole checkpoint": f"{sum(right)} of {len(right)}",
        "survivors that named the killed rank, once joined": named,
        "processes left after the jobs": sum(outcome.orphans for outcome in outcomes),
        "ports left in use": sum(outcome.busy for outcome in outcomes),
        "seconds from a kill to a survivor's end, median": f"{statistics.median(seconds):.1f}",
        "seconds from a kill to a survivor's end, longest": f"{seconds[-1]:.1f}",
    }
    lines = [
        f"{len(kills)} kills in {len(outcomes)} jobs of {STEPS} steps, seed {seed}; torch {torch.__version__}, gloo, "
        f"{platform.system()}, {os.cpu_count()} cores",
        "",
        "the killed rank was",
        *(f"  {what:<50}{doing[what]:>9}" for what in DOING if doing[what]),
        *(f"  rank {rank:<45}{n:>9}" for rank, n in sorted(ranks.items())),
        f"the first rank was in a checkpoint{sum(killed.saving for killed in kills):>27}",
        "",
        "state and log equal the unbroken run's, bit for bit",
        *(
            f"  {f'{one.job.size} ranks, optimizer {one.job.optimizer}, {len(one.kills)} kills':<50}"
            f"{'yes' if one.left == wanted[one.job] else 'NO':>9}"
            for one in outcomes
        ),
        "",
        *(f"{what:<52}{value:>9}" for what, value in facts.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="of each of the six jobs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    told = parser.parse_args()
    chance = random.Random(told.seed)
    jobs = [Job(size, optimizer) for size in (2, 2, 3) for optimizer in ("replicated", "sharded")]
    # Every plan comes as often, in an order that chance decides.
    plans = [PLANS[i % len(PLANS)] for i in range(len(jobs) * told.kills)]
    chance.shuffle(plans)
    wanted: dict[Job, tuple[str, str]] = {}
    startup = 0.0
    with tempfile.TemporaryDirectory() as place:
        for job in dict.fromkeys(jobs):
            folder = Path(place) / f"unbroken-{job.size}-{job.optimizer}"
            wanted[job] = run(job, folder, [], chance, 0).left
            startup = max(startup, read(folder / "begun-0")["time"] - read(folder / "life-0-0")["time"])
        outcomes = [
            run(job, Path(place) / f"job-{i}", plans[i * told.kills : (i + 1) * told.kills], chance, startup)
            for i, job in enumerate(jobs)
        ]
    text = table(outcomes, wanted, told.seed)
    sys.stdout.write(text)
    if told.output:
        told.output.write_text(text)
    good = all(one.left == wanted[one.job] and all(one.right) and not one.orphans and not one.busy for one in outcomes)
    sys.exit(not good)


if __name__ == "__main__":
    main()
