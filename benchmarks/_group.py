"""Processes that play the ranks of a group and do what they are told, so that groups can take turns."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

PRIVATE = "TTRANSFER_BENCH_PRIVATE"
_UP = 0x8914  # SIOCSIFFLAGS, with IFF_UP | IFF_RUNNING


class Group:
    """Ranks in processes of their own, idle until they are asked for something."""

    def __init__(self, size: int, *, threads: int = 1, backend: str = "gloo", **environment: str) -> None:
        port = str(_free_port())
        self.size = size
        self._ranks = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("_rank.py")), backend],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    **environment,
                    "OMP_NUM_THREADS": str(threads),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(size),
                    "WORLD_SIZE": str(size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                },
            )
            for rank in range(size)
        ]
        self.ask("hello")

    def ask(self, what: str, **arguments: Any) -> list[Any]:
        """Have every rank do something; return what each says, in the order of ranks."""
        line = json.dumps({"what": what, **arguments})
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(line + "\n")
            rank.stdin.flush()
        found: list[Any] = []
        for number, rank in enumerate(self._ranks):
            assert rank.stdout is not None
            said = rank.stdout.readline()
            if not said:
                self.close()
                sys.exit(f"rank {number} of {self.size} ended while it was asked for {line}")
            found.append(json.loads(said))
        return found

    def processes(self) -> list[int]:
        """Their process ids."""
        return [rank.pid for rank in self._ranks]

    def close(self) -> None:
        """End the processes."""
        for rank in self._ranks:
            if rank.stdin is not None and not rank.stdin.closed:
                rank.stdin.close()
        for rank in self._ranks:
            try:
                rank.wait(30)
            except subprocess.TimeoutExpired:
                rank.kill()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def in_private() -> bool:
    """Start this program again in a network namespace of its own, where nobody else's bytes are counted.

    Returns:
        Whether this is the program that was started so; False where the system does not allow it.
    """
    if os.environ.get(PRIVATE):
        _bring_up()
        return True
    command = shutil.which("unshare")
    if command is None or subprocess.run([command, "-rn", "true"], capture_output=True, check=False).returncode:
        return False
    os.environ[PRIVATE] = "1"
    os.execv(command, [command, "-rn", sys.executable, *sys.argv])


def _bring_up() -> None:
    """Switch the loopback interface on: it is off in a new namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, _UP, struct.pack("16sh14x", b"lo", 0x1 | 0x40))


def sent() -> tuple[int, int]:
    """Bytes and packets that have gone over the loopback interface, headers and acknowledgements among them."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            fields = numbers.split()
            return int(fields[8]), int(fields[9])
    raise LookupError("no loopback interface in /proc/net/dev")


def trim() -> None:
    """Give freed memory back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
