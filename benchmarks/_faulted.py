"""One rank of the job that faults.py kills: it trains by `fit`, and keeps a note of what it is doing in shared memory.

torchrun ... benchmarks/_faulted.py FOLDER STEPS OPTIMIZER
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STARTING, COMPUTING, EXCHANGING, SAVING, DONE = range(5)
DOING = ("starting", "computing", "in an exchange", "in a checkpoint", "done")


class Note:
    """What a rank is doing, for whoever maps the same file: it outlives the process.

    Bytes: 0 what it does, 1 the steps done in this life.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 16)

    def set(self, doing: int) -> None:
        """Begin something."""
        self._map[0] = doing

    def step(self) -> None:
        """Count a step."""
        self._map[1] = min(self._map[1] + 1, 255)

    @property
    def doing(self) -> int:
        """What it does."""
        return self._map[0]

    @property
    def steps(self) -> int:
        """How many steps it has done."""
        return self._map[1]

    @contextlib.contextmanager
    def doing_while(self, doing: int) -> Iterator[None]:
        """Do something, and then what was done before."""
        before = self._map[0]
        self._map[0] = doing
        yield
        self._map[0] = before


def main(folder: Path, steps: int, optimizer: str) -> None:
    rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    place = folder / f"note-{attempt}-{rank}"
    place.write_bytes(bytes(16))
    note = Note(place)
    # Only now is it there whole, for the one who kills.
    (folder / f"life-{attempt}-{rank}").write_text(json.dumps({"pid": os.getpid(), "time": time.monotonic()}))

    import torch
    import torch.nn.functional as F

    import ttransfer as tt
    from ttransfer.dist import _channel
    from ttransfer.run import _fit

    torch.set_num_threads(1)
    exchanging, save = _channel.exchanging, _fit.save

    @contextlib.contextmanager
    def noted(*arguments: Any) -> Iterator[None]:
        with exchanging(*arguments), note.doing_while(EXCHANGING):
            yield

    def saved(*arguments: Any, **keywords: Any) -> Path:
        with note.doing_while(SAVING):
            return save(*arguments, **keywords)

    _channel.exchanging, _fit.save = noted, saved

    def net(width: int, p: float) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(32, width), torch.nn.ReLU(), torch.nn.Dropout(p), torch.nn.Linear(width, 10)
        )

    mesh = tt.dist.init(timeout=60)
    step = tt.step(
        {"student": tt.functional(lambda: net(256, 0.3)), "teacher": tt.functional(lambda: net(512, 0.0))},
        tt.optim.adamw(tt.schedules.cosine(1e-3, steps)),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", weight=0.5),
        mmd=tt.term(tt.align.mmd, "student(source).3:in", "student(target).3:in", weight=0.1),
    )
    g = torch.Generator().manual_seed(0)
    data = {
        "source": {"x": torch.randn(500, 32, generator=g), "y": torch.randint(10, (500,), generator=g)},
        "target": {"x": torch.randn(330, 32, generator=g) + 0.5},
    }
    batches = tt.dist.sliced(
        tt.domains(**{name: tt.loader(fields, batch_size=50) for name, fields in data.items()}), mesh
    )
    sharded = tt.shard(step, mesh, optimizer=optimizer)
    state = sharded.init(next(iter(batches)), seed=1)
    if rank == "0":
        found = tt.latest(folder / "run")
        (folder / f"begun-{attempt}").write_text(json.dumps({"from": found and found.name, "time": time.monotonic()}))

    def evaluate(state: tt.State) -> dict[str, Any]:
        note.step()
        return {"norm": state.trainable["student"]["3.weight"].norm()}

    note.set(COMPUTING)
    tt.fit(
        sharded, state, batches, steps=steps, evaluate=evaluate, evaluate_every=1, log=str(folder / "log.jsonl"),
        log_every=1, checkpoint=folder / "run", checkpoint_every=3, progress=False,
    )  # fmt: skip
    note.set(DONE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
