from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import ttransfer as tt
from tests.support.toys import NAN, data, ones, real, same, toy, toy_state
from ttransfer.run import checkpoints, domains, fit, load


def test_fit_is_the_loop_written_by_hand() -> None:
    step = real()
    state, batches = step.init(next(data())), data()
    fitted = fit(step, step.init(next(data())), data(), steps=12, log_every=1)
    for row in fitted.history:
        state, logs = step(state, next(batches))
        wanted = {name: value.item() for name, value in logs.items() if name != "finite"}
        assert row == {"step": int(state.step), **wanted}
    assert len(fitted.history) == 12
    assert same(fitted.state, state)
    assert fitted.stopped is None


@pytest.mark.parametrize(
    ("steps", "every", "logged"),
    [(25, 10, [10, 20, 25]), (20, 10, [10, 20]), (3, 10, [3]), (3, 1, [1, 2, 3]), (0, 1, [])],
)
def test_rows_come_at_multiples_and_at_the_end(steps: int, every: int, logged: list[int]) -> None:
    found: list[Any] = []
    fitted = fit(
        toy, toy_state(), ones(), steps=steps, log_every=every, log=lambda step, row: found.append((step, row))
    )
    assert [row["step"] for row in fitted.history] == logged
    assert [{"step": step, **row} for step, row in found] == fitted.history


def test_steps_counts_those_before() -> None:
    first = fit(toy, toy_state(), ones(), steps=3)
    assert int(fit(toy, first.state, ones(), steps=5, log_every=1).history[0]["step"]) == 4
    done = fit(toy, first.state, ones(), steps=2)
    assert (done.state, done.history) == (first.state, [])


def test_evaluation_at_multiples_and_at_the_end() -> None:
    def evaluate(state: tt.State) -> dict[str, Any]:
        return {"w": state.trainable["net"]["w"], "seen": int(state.step)}

    fitted = fit(toy, toy_state(), ones(), steps=7, log_every=4, evaluate=evaluate, evaluate_every=3)
    assert [(row["step"], row.get("w"), "loss" in row) for row in fitted.history] == [
        (3, 6.0, False), (4, None, True), (6, 16.0, False), (7, 18.0, True),
    ]  # fmt: skip
    again = fit(toy, fitted.state, ones(), steps=7, evaluate=evaluate)
    assert again.history == [{"step": 7, "w": 18.0, "seen": 7.0}]


def test_the_progress_shows_the_terms(capsys: pytest.CaptureFixture[str]) -> None:
    fit(toy, toy_state(), ones(), steps=2, progress=True, evaluate=lambda state: {"accuracy": 0.5})
    assert capsys.readouterr().err == "step 2/2  loss 4  task 2  accuracy 0.5\n"


class Reads(TorchDispatchMode):
    """Counts what makes Python wait for a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
        return func(*args, **(kwargs or {}))


def test_numbers_are_read_where_a_row_is_logged_and_nowhere_else() -> None:
    reads = Reads()
    seen: list[int] = []

    def step(state: tt.State, batch: tt.Batch) -> Any:
        seen.append(reads.count)
        return toy(state, batch)

    with reads:
        fit(step, toy_state(), ones(), steps=25, log_every=10)
    assert [i for i in range(1, 25) if seen[i] > seen[i - 1]] == [10, 20]
    assert reads.count > seen[-1]


def test_a_data_loader_starts_again_when_it_ends() -> None:
    rows = DataLoader(TensorDataset(torch.arange(5.0, dtype=torch.float64)), batch_size=1)
    fitted = fit(toy, toy_state(), domains(source=rows), steps=12)
    assert float(fitted.state.trainable["net"]["w"]) == 10 + 10 + 0 + 1


def test_an_ensemble_logs_means_and_members() -> None:
    def step(state: tt.State, batch: tt.Batch) -> Any:
        state, logs = toy(state, batch)
        return state, {**logs, "task": logs["task"] * torch.tensor([1.0, 3.0])}

    fitted = fit(step, toy_state(2), ones(), steps=2, log_every=2)
    (row,) = fitted.history
    assert {name: row[name] for name in ("step", "task", "task/0", "task/1")} == {
        "step": 2, "task": 4.0, "task/0": 2.0, "task/1": 6.0,
    }  # fmt: skip


def test_a_sweep_of_an_ensemble_is_fitted_and_logged() -> None:
    step = tt.sweep(tt.ensemble(real(), 2), {"optim.lr.peak": [0.1, 0.01, 0.0]})
    fitted = fit(step, step.init(next(data())), data(), steps=2, log_every=2)
    (row,) = fitted.history
    assert {f"loss/{i}/{j}" for i in range(3) for j in range(2)} <= set(row)
    state, batches = step.init(next(data())), data()
    for _ in range(2):
        state, logs = step(state, next(batches))
    found = torch.tensor([[row[f"loss/{i}/{j}"] for j in range(2)] for i in range(3)])
    torch.testing.assert_close(found, logs["loss"].float(), rtol=1e-5, atol=0)


def test_the_caller_s_generator_is_left_alone() -> None:
    step = real()
    before = torch.get_rng_state()
    fit(step, step.init(next(data())), data(), steps=3)
    assert torch.equal(torch.get_rng_state(), before)


# Bad input.


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"steps": -1}, r"^fit: steps=-1, wanted a whole number, at least 0$"),
    "steps not whole": ({"steps": 1.5}, r"^fit: steps=1\.5, wanted a whole number"),
    "log_every": ({"log_every": 0}, r"^fit: log_every=0, wanted a whole number, at least 1$"),
    "keep": ({"keep": 0}, r"^fit: keep=0, wanted a whole number, at least 1$"),
    "every": ({"evaluate": len, "evaluate_every": 0}, r"^fit: evaluate_every=0, wanted a whole number, at least 1$"),
    "nothing to do": ({"evaluate_every": 3}, r"^fit: evaluate_every=3 without evaluate$"),
    "nowhere to save": ({"checkpoint_every": 3}, r"^fit: checkpoint_every=3 without checkpoint$"),
    "log": ({"log": "log.csv"}, r"^fit: log='log\.csv' is neither a path"),
    "evaluate": ({"evaluate": lambda s: {"a": "b"}}, r"^evaluate: 'a' is str, wanted a number"),
    "clash": (
        {"evaluate": lambda s: {"loss": 1}},
        r"^fit: evaluate returns 'loss', which the step logs; give it another",
    ),
    "empty list": ({"batches": []}, r"^batches is empty: it yields no batch$"),
    "empty loader": ({"batches": DataLoader(TensorDataset(torch.zeros(0)))}, r"^batches is empty: it yields no batch$"),
    "empty domain": ({"batches": domains(source=[])}, r"^domain 'source' is empty: it yields no batch$"),
    "iterator": (
        {"batches": iter(ones(2))},
        r"^batches ended after 2 batches and cannot start again, being an iterator",
    ),
    "mapping": ({"batches": {"source": ones()}}, r"^batches is a dict, wanted a loader"),
    "tuples": (
        {"batches": DataLoader(TensorDataset(torch.zeros(3), torch.zeros(3)))},
        r"^fit: batches yields a list, wanted \{domain: \{field: tensor\}\}; zip loaders with tt\.domains",
    ),
    "one domain": ({"batches": [{"x": torch.zeros(1)}]}, r"^fit: batches yields a dict, wanted \{domain: \{field"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(tt.TransferError, match=message):
        fit(toy, toy_state(), **{"steps": 3, "batches": ones(), **options})


# Updates that were refused.


def with_nan(at: set[int]) -> list[Any]:
    batches = ones(12)
    for i in at:
        batches[i]["source"]["x"] = torch.full_like(batches[i]["source"]["x"], NAN)
    return batches


@pytest.mark.parametrize("log_every", [1, 5, 100])
def test_a_refused_update_ends_the_run_with_the_state_before_it_saved(log_every: int, tmp_path: Path) -> None:
    batches = with_nan(set(range(6, 12)))
    with pytest.raises(
        tt.TransferError, match=r"^fit: the update after step 6 was refused: task is nan; the state before"
    ):
        fit(toy, toy_state(), batches, steps=12, log_every=log_every, checkpoint=tmp_path)
    state, _ = load(tmp_path / "step-00000006", toy_state())
    assert float(state.trainable["net"]["w"]) == 1 + 2 + 3 + 4 + 5 + 6


def test_a_refused_update_without_checkpoints() -> None:
    with pytest.raises(tt.TransferError, match=r"^fit: the update after step 0 was refused: task is nan$"):
        fit(toy, toy_state(), with_nan({0}), steps=3)


def test_a_refused_update_right_after_a_checkpoint_leaves_it(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(tt.TransferError, match="after step 3 was refused"):
            fit(toy, toy_state(), with_nan({3}), steps=4, checkpoint=tmp_path, checkpoint_every=3)
        assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]


def test_a_real_step_refuses_and_keeps_its_state(tmp_path: Path) -> None:
    step, batches = real(), [next(data()) for _ in range(6)]
    batches[4]["source"]["x"] = batches[4]["source"]["x"] * NAN
    with pytest.raises(tt.TransferError, match=r"^fit: the update after step 4 was refused: task is nan; "):
        fit(step, step.init(batches[0]), batches, steps=6, log_every=1, checkpoint=tmp_path)
    found, _ = load(tmp_path / "step-00000004", step.init(batches[0]))
    assert same(found, fit(step, step.init(batches[0]), batches, steps=4).state)


def test_one_member_of_an_ensemble_may_fail_alone() -> None:
    def batch(*x: float) -> Any:
        return {"source": {"x": torch.tensor(x, dtype=torch.float64)[:, None]}}

    batches = [batch(1, 1), batch(1, NAN), batch(1, 1)]
    with pytest.warns(RuntimeWarning, match="member 1 refused the update after step 1: task is nan") as caught:
        fitted = fit(toy, toy_state(2), batches, steps=3, log_every=1)
    assert len(caught) == 1
    assert fitted.state.trainable["net"]["w"].tolist() == [3.0, 2.0]
    assert fitted.history[1]["task"] == 1.0
    with pytest.raises(tt.TransferError, match="the update after step 0 was refused: task is nan"):
        fit(toy, toy_state(2), [batch(NAN, NAN)], steps=3)
