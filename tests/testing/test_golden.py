"""Golden files: what is in them, what they notice, what they keep."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.testing import Broken, Tags, Trial, loss_trial
from ttransfer.testing._golden import check_golden, golden_cases, write_golden


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="batchmean")


def coral(source: Tensor, target: Tensor) -> Tensor:
    return (torch.cov(source.T) - torch.cov(target.T)).square().sum()


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    log = logits.log_softmax(1).gather(1, labels[:, None])
    return (-((1 - log.exp()) ** 2) * log).mean()


def mixed(probabilities: Tensor, mask: Tensor, importance: Tensor, power: float) -> Tensor:
    rows = (probabilities**power).sum(1) * importance * mask
    return rows.sum() / mask.sum()


def example() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(5, 3, generator=generator).softmax(1)
    return probabilities, torch.tensor([True, False, True, True, True]), torch.rand(5, generator=generator), 2.0


def drawn(rows: int) -> tuple[Tensor, Tensor]:
    """float32, as a user's strategy may be."""
    student = torch.arange(2.0 * rows).reshape(rows, 2).sin()
    return student, student.cos()


TRIALS: dict[str, Callable[[], Trial]] = {
    "kd": lambda: loss_trial(kd),
    "coral": lambda: loss_trial(coral, tags=Tags(min_batch=2)),
    "focal": lambda: loss_trial(focal),
    "mixed": lambda: loss_trial(mixed, example()),
    "given": lambda: loss_trial(kd, st.integers(1, 9).map(drawn)),
    "ours": lambda: loss_trial(tt.align.mmd),
}
every = pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)


def scaled(trial: Trial, factor: float) -> Trial:
    """The same loss, times a factor."""
    fn = trial.subject.fn
    return trial._replace(subject=trial.subject._replace(fn=lambda *inputs: fn(*inputs) * factor))


@every
def test_what_was_written_is_found_again_and_what_changed_is_told(trial: Callable[[], Trial], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "golden.json"
    cases = write_golden(path, trial())
    assert cases == tuple(golden_cases(trial()))
    assert check_golden(path, trial()) == cases
    assert check_golden(path, scaled(trial(), 1 + 1e-10)) == cases
    with pytest.raises(Broken) as caught:
        check_golden(path, scaled(trial(), 1 + 3e-9))
    told = str(caught.value).splitlines()
    assert told[0].startswith(f"{cases[0]}: the value was ")
    assert any(": the gradient of " in line for line in told)
    assert [p.name for p in path.parent.iterdir()] == ["golden.json"]  # nothing was left beside it


@pytest.mark.parametrize("name", ["kd", "coral", "focal", "mixed", "ours"])
def test_inputs_are_few_and_have_three_decimals(name: str) -> None:
    trial = TRIALS[name]()
    cases = golden_cases(trial)
    few = "2 rows" if name == "coral" else "one row"
    assert list(cases) == ["plain", "confident", "collapsed", few]
    for inputs in cases.values():
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        assert all(x.numel() <= 40 for x in tensors)
        for x in tensors:
            if x.is_floating_point():
                assert x.dtype == torch.float64
                assert torch.equal((x * 1000).round() / 1000, x)
    plain, confident, collapsed, small = cases.values()
    assert confident[0].abs().max() > plain[0].abs().max()
    assert torch.equal(collapsed[0], plain[0][:1].expand_as(plain[0]))
    assert small[0].shape[0] == (2 if name == "coral" else 1)
    assert torch.equal(small[0], plain[0][: small[0].shape[0]])


def test_two_domains_are_of_two_sizes_and_labels_are_of_more_than_one_class() -> None:
    source, target = golden_cases(TRIALS["coral"]())["plain"]
    assert source.shape[0] != target.shape[0]
    assert golden_cases(TRIALS["focal"]())["plain"][1].unique().numel() > 1


def test_probabilities_are_probabilities_in_every_case() -> None:
    for probabilities, *_ in golden_cases(TRIALS["mixed"]()).values():
        assert (probabilities >= 0).all()
        assert torch.allclose(probabilities.sum(1), torch.ones(len(probabilities), dtype=torch.float64), atol=1e-12)


def test_a_strategy_of_one_s_own_is_drawn_from() -> None:
    cases = golden_cases(TRIALS["given"]())
    assert list(cases) == ["drawn 1", "drawn 2", "drawn 3", "drawn 4"]
    assert all(x.dtype == torch.float64 for inputs in cases.values() for x in inputs)


def test_the_file_is_for_people_and_exact(tmp_path: Path) -> None:
    path = tmp_path / "kd.json"
    write_golden(path, loss_trial(kd))
    text = path.read_text()
    stored = json.loads(text)
    assert list(stored) == ["format", "loss", "arguments", "cases"]
    assert (stored["loss"], stored["arguments"]) == ("kd", ["student", "teacher"])
    plain = stored["cases"]["plain"]
    student, teacher = (torch.tensor(plain["inputs"][a], dtype=torch.float64) for a in ("student", "teacher"))
    student.requires_grad_()
    value = kd(student, teacher)
    value.backward()
    assert plain["value"] == value.item()  # to the last bit
    assert plain["gradients"]["student"] == student.grad.tolist()  # type: ignore[union-attr]
    assert plain["gradients"]["teacher"] == 0
    assert re.search(r"^ +\[-?\d+\.\d{1,3}(, -?\d+\.\d{1,3})+\],?$", text, re.MULTILINE)  # a row to a line
    assert max(map(len, text.splitlines())) <= 120


def test_the_file_stands_alone_when_other_inputs_would_be_drawn(tmp_path: Path) -> None:
    path = tmp_path / "focal.json"
    write_golden(path, loss_trial(focal))
    before = path.read_bytes()
    other = loss_trial(focal, (torch.randn(9, 7), torch.arange(9) % 7))
    assert not torch.equal(golden_cases(other)["plain"][0], golden_cases(loss_trial(focal))["plain"][0])
    check_golden(path, other)
    write_golden(path, other)  # an update keeps the inputs that were reviewed
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", ["value", "gradient", "hidden gradient"])
def test_value_and_gradients_are_compared_each(change: str, tmp_path: Path) -> None:
    path = tmp_path / "kd.json"
    write_golden(path, loss_trial(kd))

    def other(student: Tensor, teacher: Tensor) -> Tensor:
        value = kd(student, teacher)
        if change == "value":
            return value + 1e-6
        if change == "gradient":
            return value.detach() + (value - value.detach()) * (1 + 1e-6)
        return value + (teacher - teacher.detach()).sum() * 1e-6

    with pytest.raises(Broken) as caught:
        check_golden(path, loss_trial(other, name="kd"))
    what = {"value": "the value was", "gradient": "the gradient of student was"}
    assert what.get(change, "the gradient of teacher was 0.0 at [0, 0], and is 1e-06") in str(caught.value)
    lines = str(caught.value).splitlines()
    assert all(what.get(change, "the gradient of teacher") in line for line in lines)
    assert len(lines) == 4


def test_a_gradient_tells_where_it_differs_most(tmp_path: Path) -> None:
    path = tmp_path / "kd.json"
    write_golden(path, loss_trial(kd))
    stored = json.loads(path.read_text())
    rows = stored["cases"]["plain"]["gradients"]["student"]
    now = rows[2][1]
    rows[2][1] = 0.5
    rows[0][0] += 1e-3
    path.write_text(json.dumps(stored))
    with pytest.raises(Broken, match=re.escape(f"plain: the gradient of student was 0.5 at [2, 1], and is {now!r}")):
        check_golden(path, loss_trial(kd))


def test_what_is_not_finite_is_written_and_compared(tmp_path: Path) -> None:
    def log(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher.detach()).square().mean().log() - (student * 1e308).exp().sum()

    def less(student: Tensor, teacher: Tensor) -> Tensor:
        return log(student, teacher).nan_to_num()

    path = tmp_path / "log.json"
    write_golden(path, loss_trial(log))
    assert "nan" in path.read_text() or "inf" in path.read_text()
    check_golden(path, loss_trial(log))
    with pytest.raises(Broken, match="the value was"):
        check_golden(path, loss_trial(less, name="log"))


def test_a_loss_that_raises_now_is_told_with_its_case(tmp_path: Path) -> None:
    def refusing(student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[0] == 1:
            raise ValueError("one row is too few")
        return kd(student, teacher)

    path = tmp_path / "kd.json"
    write_golden(path, loss_trial(kd))
    with pytest.raises(Broken, match=r"^one row: it raised ValueError: one row is too few\n"):
        check_golden(path, loss_trial(refusing, name="kd"))


def test_a_case_that_cannot_be_counted_is_left_out(tmp_path: Path) -> None:
    def refusing(student: Tensor, teacher: Tensor) -> Tensor:
        assert float(student.detach().abs().max()) < 50
        return kd(student, teacher)

    assert write_golden(tmp_path / "a.json", loss_trial(refusing)) == ("plain", "collapsed", "one row")


def test_arguments_that_json_cannot_hold_come_from_the_trial(tmp_path: Path) -> None:
    def through(student: Tensor, teacher: Tensor, head: torch.nn.Module, scale: Tensor) -> Tensor:
        return kd(head(student), teacher) * scale

    head = torch.nn.Linear(3, 3, dtype=torch.float64)
    given = (torch.randn(4, 3), torch.randn(4, 3), head, torch.tensor(2.0))
    path = tmp_path / "through.json"
    write_golden(path, loss_trial(through, given))
    assert json.loads(path.read_text())["cases"]["plain"]["inputs"]["head"] == {"given": "Linear"}
    check_golden(path, loss_trial(through, given))
    with pytest.raises(Broken):
        check_golden(path, loss_trial(through, (*given[:3], torch.tensor(2.5))))


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (lambda: loss_trial(kd, tags=Tags(stochastic=True)), "kd: it draws random numbers"),
        (lambda: loss_trial(kd, (torch.randn(4, 900), torch.randn(4, 900))), "more than the 5000"),
        (lambda: loss_trial(lambda student, teacher: student, name="whole"), "whole: no case could be written"),
    ],
)
def test_what_makes_no_golden_file_is_refused(trial: Callable[[], Trial], message: str, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=message):
        write_golden(tmp_path / "a.json", trial())
    assert not list(tmp_path.iterdir())


def test_other_arguments_are_refused_and_an_update_draws_anew(tmp_path: Path) -> None:
    def weighted(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        return kd(student, teacher) * weights.mean()

    path = tmp_path / "kd.json"
    write_golden(path, loss_trial(kd))
    trial = loss_trial(weighted, name="kd")
    message = "it was written for kd(student, teacher), and the arguments are (student, teacher, weights) now"
    with pytest.raises(TransferError, match=re.escape(message)):
        check_golden(path, trial)
    write_golden(path, trial)
    check_golden(path, trial)


def test_another_loss_s_file_is_neither_compared_nor_written_over(tmp_path: Path) -> None:
    path = tmp_path / "kd.json"
    write_golden(path, loss_trial(kd))
    before = path.read_bytes()
    for action in (check_golden, write_golden):
        with pytest.raises(TransferError, match="it is the golden file of 'kd', not of 'coral'"):
            action(path, loss_trial(coral))
    assert path.read_bytes() == before
