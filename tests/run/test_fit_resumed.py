"""Runs that are stopped, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import ttransfer as tt
from tests.support.toys import data, ones, real, same, toy, toy_state
from ttransfer.run import checkpoints, domains, fit, latest, load, loader, save

ROOT = Path(__file__).parents[2]


def stopped_at(at: int, number: signal.Signals, step: Any) -> Callable[..., Any]:
    def run(state: tt.State, batch: tt.Batch) -> Any:
        out = step(state, batch)
        if int(out[0].step) == at:
            signal.raise_signal(number)
        return out

    return run


@pytest.mark.parametrize("at", [1, 4, 5, 6, 11])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_as_if_it_never_stopped(at: int, number: signal.Signals, tmp_path: Path) -> None:
    step = real()
    state = step.init(next(data()), seed=3)

    def run(folder: Path, step: Any) -> Any:
        return fit(
            step, state, data(), steps=12, log_every=5, log=folder / "log.jsonl",
            evaluate=lambda s: {"bias": s.trainable["net"]["3.bias"].sum()}, evaluate_every=4, checkpoint=folder,
        )  # fmt: skip

    whole = run(tmp_path / "whole", step)
    first = run(tmp_path / "cut", stopped_at(at, number, step))
    assert (first.stopped, int(first.state.step)) == (number.name, at)
    assert [path.name for path in checkpoints(tmp_path / "cut")] == [f"step-{at:08d}"]
    second = run(tmp_path / "cut", step)
    assert second.stopped is None
    assert same(second.state, whole.state)
    assert first.history + second.history == whole.history
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_checkpoints_come_at_multiples_and_at_the_end_and_the_newest_stay(tmp_path: Path) -> None:
    def step(state: tt.State, batch: tt.Batch) -> Any:
        seen.append([int(path.name[5:]) for path in checkpoints(tmp_path)])
        return toy(state, batch)

    seen: list[list[int]] = []
    fit(step, toy_state(), ones(), steps=11, checkpoint=tmp_path, checkpoint_every=3, keep=2)
    assert [seen[i] for i in (0, 2, 3, 6, 9, 10)] == [[], [], [3], [3, 6], [6, 9], [6, 9]]
    assert [int(path.name[5:]) for path in checkpoints(tmp_path)] == [9, 11]


def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(tmp_path: Path) -> None:
    fit(toy, toy_state(), ones(), steps=3, checkpoint=tmp_path)
    fitted = fit(toy, toy_state(), ones(), steps=7, checkpoint=tmp_path, log_every=1)
    assert [row["task"] for row in fitted.history] == [4, 5, 1, 2]


def test_signals_are_the_caller_s_again_afterwards() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    fit(toy, toy_state(), ones(), steps=2)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    def step(state: tt.State, batch: tt.Batch) -> Any:
        for _ in range(2 if int(state.step) == 2 else 0):
            signal.raise_signal(signal.SIGINT)
        return toy(state, batch)

    with pytest.raises(KeyboardInterrupt):
        fit(step, toy_state(), ones(), steps=5, checkpoint=tmp_path)
    assert checkpoints(tmp_path) == []


def test_fit_runs_outside_the_main_thread(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(fit(toy, toy_state(), ones(), steps=5, checkpoint=tmp_path).stopped)
    )
    thread.start()
    thread.join()
    assert found == [None]
    assert latest(tmp_path) == tmp_path / "step-00000005"


def test_a_loader_that_the_signal_ended_too(tmp_path: Path) -> None:
    class Ended:
        """A loader whose workers die of the Ctrl-C that stops the run."""

        def __iter__(self) -> Iterator[Any]:
            for i, batch in enumerate(ones()):
                if i == 3:
                    signal.raise_signal(signal.SIGINT)
                    raise RuntimeError("DataLoader worker exited unexpectedly")
                yield batch["source"]

    batches = domains(seed=1, other=loader({"x": torch.arange(9)}, batch_size=2), source=Ended())
    fitted = fit(toy, toy_state(), batches, steps=5, checkpoint=tmp_path)
    assert (fitted.stopped, int(fitted.state.step)) == ("SIGINT", 3)
    _, extra = load(tmp_path / "step-00000003", toy_state())
    place = extra["batches"]["state"]
    assert (place["source"]["count"], place["other"]["count"], place["other"]["state"]["batch"]) == (3, 3, 3)


def test_a_loader_that_fails_by_itself_is_the_caller_s_error() -> None:
    def failing() -> Iterator[Any]:
        yield ones(1)[0]
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        fit(toy, toy_state(), failing(), steps=5)


def test_batches_without_a_state_are_replayed_with_one_warning(tmp_path: Path) -> None:
    def make() -> Any:
        return DataLoader(ones(), batch_size=None)  # pyright: ignore[reportArgumentType]

    whole = fit(toy, toy_state(), make(), steps=8)
    fit(toy, toy_state(), make(), steps=4, checkpoint=tmp_path)
    with pytest.warns(
        UserWarning, match=r"^batches: no state_dict, so the batches already used were drawn again"
    ) as caught:
        fitted = fit(toy, toy_state(), make(), steps=8, checkpoint=tmp_path)
    assert len(caught) == 1
    assert same(fitted.state, whole.state)


def test_a_list_of_batches_is_found_again_without_a_warning(tmp_path: Path) -> None:
    whole = fit(toy, toy_state(), ones(), steps=8)
    fit(toy, toy_state(), ones(), steps=4, checkpoint=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(fit(toy, toy_state(), ones(), steps=8, checkpoint=tmp_path).state, whole.state)


# Checkpoints that do not fit.


def test_a_damaged_checkpoint_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    fit(toy, toy_state(), ones(), steps=4, checkpoint=tmp_path, checkpoint_every=2)
    (tmp_path / "step-00000004" / "state.safetensors").write_bytes(b"")
    with pytest.raises(tt.TransferError, match=r"step-00000004.state\.safetensors' is truncated or changed"):
        fit(toy, toy_state(), ones(), steps=8, checkpoint=tmp_path)


def test_a_checkpoint_of_another_step_is_refused(tmp_path: Path) -> None:
    fit(toy, toy_state(), ones(), steps=4, checkpoint=tmp_path)
    with pytest.raises(tt.TransferError, match=r"does not fit the template: 'trainable/net/w' expected float64 \(3,\)"):
        fit(toy, toy_state(3), ones(), steps=8, checkpoint=tmp_path)


def test_a_checkpoint_behind_the_state_is_refused(tmp_path: Path) -> None:
    fit(toy, toy_state(), ones(), steps=4, checkpoint=tmp_path)
    state = fit(toy, toy_state(), ones(), steps=6).state
    with pytest.raises(
        tt.TransferError, match=r"^fit: the state given is at step 6, '.*step-00000004' at 4; give another"
    ):
        fit(toy, state, ones(), steps=8, checkpoint=tmp_path)


def test_a_checkpoint_that_fit_did_not_write_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "step-3", toy_state())
    with pytest.raises(tt.TransferError, match=r"step-3' was not written by fit: it has no place in the data"):
        fit(toy, toy_state(), ones(), steps=8, checkpoint=tmp_path)


# Real processes and real signals: see killed.py.


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("killed.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(script), str(tmp_path_factory.mktemp("lives"))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_that_is_killed_again_and_again_ends_as_the_unbroken_one(lives: dict[str, Any]) -> None:
    found = lives["killed"]
    assert found["end"] == {"stopped": None, "step": 24}
    newest = [life[-1] for life in found["lives"][:-1]]
    assert newest, "no life was killed"
    assert newest == sorted(set(newest)), "a life made no progress"
    assert found["sha256"] == lives["unbroken"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_run_that_is_stopped_by_a_signal_saves_and_goes_on(name: str, lives: dict[str, Any]) -> None:
    assert lives[name]["first"] == {"stopped": name, "step": 7}
    assert lives[name]["then"] == {"stopped": None, "step": 24}
    assert lives[name]["sha256"] == lives["unbroken"]


def test_ctrl_c_that_reaches_the_workers_of_a_data_loader(lives: dict[str, Any]) -> None:
    wanted = {"first": {"stopped": "SIGINT", "step": 7}, "then": {"stopped": None, "step": 24}, "same": True}
    assert lives["loaders"] == wanted


def test_a_forked_worker_outlives_ctrl_c_and_obeys_sigterm(lives: dict[str, Any]) -> None:
    assert lives["workers"] == {"SIGINT": 3, "SIGTERM": 128 + signal.SIGTERM}


def test_the_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    step = real()
    fit(step, step.init(next(data()), seed=3), data(), steps=2, checkpoint=tmp_path)
    with pytest.raises(tt.TransferError, match=r"seed 3, the state given has 4; give each run a directory"):
        fit(step, step.init(next(data()), seed=4), data(), steps=4, checkpoint=tmp_path)


def test_numbers_that_the_checkpoint_has_otherwise_are_told(tmp_path: Path) -> None:
    step = real()
    state = step.init(next(data()), seed=3)
    name = next(iter(state.hyper))
    fit(step, state, data(), steps=2, checkpoint=tmp_path)
    with pytest.warns(RuntimeWarning, match=f"its own numbers: {name}"):
        fitted = fit(step, tt.set_hyper(state, {name: 123.0}), data(), steps=4, checkpoint=tmp_path)
    assert torch.equal(fitted.state.hyper[name], state.hyper[name])


def test_a_file_in_the_place_of_the_directory_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    step = real()
    with pytest.raises(tt.TransferError, match="is a file, wanted a directory"):
        fit(step, step.init(next(data())), data(), steps=2, checkpoint=tmp_path / "file")
