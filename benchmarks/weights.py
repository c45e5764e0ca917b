"""Our way from a checkpoint into a model against load_state_dict: time, interleaved in one run, and memory.

A ViT-B of timm is filled from the same state, by match, by a chain of a renaming and match, and by one that also
resamples the position embeddings from 384 pixels; the same is done by hand. That the results are equal is checked
first. Memory is the peak of a new process (VmHWM) above that of the module alone, for a file of a gigabyte. Run with
``make bench-weights``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ttransfer as tt

WIDTH, LAYERS = 2048, 64  # 1.07 GB in float32
LIMIT, MOST = 1.5, 1.1  # the ratio of time, and of memory to the file's size, above which this fails
State = dict[str, Tensor]


def vit() -> nn.Module:
    import timm

    return timm.create_model("vit_base_patch16_224", pretrained=False)


def at_384(state: State) -> State:
    """The same state with the position embeddings of another size of image."""
    like = state["pos_embed"]
    grid = torch.randn(1, 1 + 24 * 24, like.shape[2], generator=torch.Generator().manual_seed(0), dtype=like.dtype)
    return {**state, "pos_embed": grid}


def contestants(state: State) -> dict[str, tuple[nn.Module, Callable[[nn.Module], Any]]]:
    """Name -> a module of its own, and what fills it. The first of each pair is by hand."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    prefixed = {f"backbone.{name}": x for name, x in state.items()}
    larger = {f"backbone.{name}": x for name, x in at_384(state).items()}
    rename = tt.weights.rename(r"backbone\.(.*)", r"\1")
    renamed = tt.weights.chain(rename, tt.weights.match())
    resampled = tt.weights.chain(rename, tt.weights.interpolate_pos_embed(), tt.weights.match())

    def by_hand(module: nn.Module) -> None:
        module.load_state_dict({name.removeprefix("backbone."): x for name, x in prefixed.items()})

    def by_hand_resampled(module: nn.Module) -> None:
        new = {name.removeprefix("backbone."): x for name, x in larger.items()}
        new["pos_embed"] = resample_abs_pos_embed(new["pos_embed"], [14, 14])
        module.load_state_dict(new)

    return {
        "load_state_dict": (vit(), lambda module: module.load_state_dict(state)),
        "transfer": (vit(), lambda module: tt.weights.transfer(state, module)),
        "load_state_dict, renamed by hand": (vit(), by_hand),
        "transfer, chain(rename, match)": (vit(), lambda module: tt.weights.transfer(prefixed, module, renamed)),
        "load_state_dict, renamed and resampled by hand": (vit(), by_hand_resampled),
        "transfer, chain(rename, interpolate_pos_embed, match)": (
            vit(),
            lambda module: tt.weights.transfer(larger, module, resampled),
        ),
    }


def timing(say: Any, seconds: float) -> None:
    from _measure import interleaved

    state = vit().state_dict()
    size = sum(x.numel() * x.element_size() for x in state.values()) / 1e6
    every = contestants(state)
    names = list(every)
    pairs = dict(zip(names[::2], names[1::2], strict=True))
    for module, fill in every.values():
        fill(module)
    for hand, ours in pairs.items():
        theirs, mine = (every[name][0].state_dict() for name in (hand, ours))
        if any((theirs[key] - mine[key]).abs().max() > 1e-6 for key in theirs):
            sys.exit(f"{ours} and {hand} do not give the same: there is nothing to compare.")
    times = interleaved({name: (lambda one=one: one[1](one[0])) for name, one in every.items()}, seconds)
    say.say(f"ViT-B/16 of timm, {len(state)} tensors, {size:.0f} MB, from a state in memory into a module:")
    say.say(f"median over {len(times[names[0]].wall)} rounds of the ratio to the same by hand in the same round")
    rows: list[tuple[str, ...]] = []
    late: list[str] = []
    for hand, ours in pairs.items():
        ratio, cpu = times[ours].ratio(times[hand]), times[ours].cpu_ratio(times[hand])
        rows.append((hand, "1", "1", f"{times[hand].ms():.1f}"))
        rows.append((ours, f"{ratio:.3f}", f"{cpu:.3f}", f"{times[ours].ms():.1f}"))
        late += [ours] if ratio >= LIMIT else []
    say.table(("", "ratio", "of CPU time", "(ms)"), rows)
    with torch.device("meta"):
        dry, target = {name: torch.empty_like(x) for name, x in state.items()}, vit().state_dict()
    alone = interleaved({"plan": lambda: tt.weights.match().plan(dry, target)}, 2)["plan"]
    say.say(f"The plan alone: {alone.ms():.1f} ms")
    say.say()
    if late:
        sys.exit(f"slower than {LIMIT} times load_state_dict: {', '.join(late)}")


def layers(device: str) -> nn.Module:
    with torch.device(device):
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


HANDS = ("load_file, load_state_dict", "torch.load(mmap=True), load_state_dict", "torch.load, load_state_dict")
META_HAND = "load_file, load_state_dict(assign=True), module on meta"
META = "load, transfer, module on meta"
OURS = ("load (.safetensors), transfer", "load (.pt), transfer", META)


def fill(how: str, folder: Path, module: nn.Module) -> None:
    """Fill a module from a file, one way or the other."""
    from safetensors.torch import load_file

    safe, pickled = folder / "large.safetensors", folder / "large.pt"
    if how in (HANDS[0], META_HAND):
        module.load_state_dict(load_file(safe), assign=how == META_HAND)
    elif how == HANDS[1]:
        module.load_state_dict(torch.load(pickled, weights_only=True, mmap=True))
    elif how == HANDS[2]:
        module.load_state_dict(torch.load(pickled, weights_only=True))
    else:
        tt.weights.transfer(tt.weights.load(pickled if how == OURS[1] else safe), module)


def peak(how: str, folder: Path) -> dict[str, float]:
    """Bytes of the peak above the process with its module, all of whose tensors are then in memory; and seconds."""
    module = layers("meta" if how in (META, META_HAND) else "cpu")
    # What is imported and allocated once is not the file's.
    with torch.no_grad():
        small = nn.Linear(2, 2)
        tt.weights.transfer({name: x.clone() for name, x in small.state_dict().items()}, small)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is in use now
    before, began = status("VmRSS"), time.perf_counter()
    fill(how, folder, module)
    read = sum(p.detach().sum().item() for p in module.parameters())  # mapped pages are in memory once they are read
    seconds = time.perf_counter() - began
    return {"peak": status("VmHWM") - before, "seconds": seconds, "sum": read}


def status(key: str) -> float:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, key
    return int(found[1]) * 1024


def remembering(say: Any, threads: int) -> None:
    if not Path("/proc/self/clear_refs").exists():
        say.say("Memory: not measured, this system has no /proc/self/clear_refs")
        return
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        state = {name: x.detach() for name, x in layers("cpu").state_dict().items()}
        save_file(state, folder / "large.safetensors")
        torch.save(state, folder / "large.pt")
        del state
        size = (folder / "large.safetensors").stat().st_size
        rows: list[tuple[str, ...]] = []
        large: list[str] = []
        sums: set[float] = set()
        for how in (*HANDS, OURS[0], OURS[1], META_HAND, META):
            command = [sys.executable, __file__, "--child", how, "--folder", scratch, "--threads", str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{how!r} failed:\n{done.stderr}")
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append((how, f"{found['peak'] / 1e6:.0f}", f"{found['peak'] / size:.3f}", f"{found['seconds']:.2f}"))
            sums.add(found["sum"])
            large += [how] if how in OURS and found["peak"] >= MOST * size else []
    if len(sums) > 1:
        sys.exit(f"They do not give the same: {sums}")
    say.say(f"Memory: a file of {size / 1e6:.0f} MB into a module and read once, in a new process;")
    say.say("the peak above the process that has its module, if it is not on meta, and torch")
    say.table(("", "MB", "of the file", "(s)"), rows)
    if large:
        sys.exit(f"more than {MOST} times the file: {', '.join(large)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to time")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch (1)")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        print(json.dumps(peak(given.child, given.folder)))
        return
    from step import Report

    report = Report()
    report.say(
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{given.threads} thread(s), load {os.getloadavg()[0]:.1f}"
    )
    report.say()
    timing(report, given.seconds)
    remembering(report, given.threads)
    if given.output:
        given.output.write_text("\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
