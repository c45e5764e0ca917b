"""What --thorough adds: the compiler that makes machine code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ttransfer.cli import _inductor
from ttransfer.testing import Trial, judge, loss_trial


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher.detach()).square().mean()


def branching(student: Tensor, teacher: Tensor) -> Tensor:
    if bool(student.sum() > 0):
        return squared(student, teacher)
    return 2 * squared(student, teacher)


def thorough(fn: object) -> Trial:
    return loss_trial(fn)._replace(laws=_inductor.LAWS)  # type: ignore[arg-type]


def test_machine_code_says_what_eager_says() -> None:
    assert [o.found for o in judge(thorough(squared)).outcomes] == ["", ""]


def test_what_does_not_compile_is_broken_with_its_input() -> None:
    first, second = judge(thorough(branching)).outcomes
    assert first.status == second.status == "broken"
    assert "it raised " in first.found
    assert "student = [[" in first.found


@pytest.mark.parametrize("law", ["inductor", "inductor-vmap"])
@pytest.mark.parametrize("part", ["value", "gradient"])
def test_a_compiler_that_is_wrong_is_found(law: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that multiplies the value, or the gradient, by 1 + 1e-6."""

    def off(x: Tensor) -> Tensor:
        more = x * (1 + 1e-6)
        return more if part == "value" else x.detach() + more - more.detach()

    def compile(fn: object, **options: object) -> object:
        def alone(*inputs: Tensor) -> Tensor:
            return off(fn(*inputs))  # type: ignore[operator]

        def many(*inputs: Tensor) -> object:
            slopes, values = fn(*inputs)  # type: ignore[operator]
            return (slopes, values * (1 + 1e-6)) if part == "value" else (tuple(s * (1 + 1e-6) for s in slopes), values)

        return alone if law == "inductor" else many

    monkeypatch.setattr(torch, "compile", compile)
    (outcome,) = judge(thorough(squared), only=[law]).outcomes
    assert outcome.found.startswith(f"its {part} is another")


def test_a_stochastic_loss_is_not_asked() -> None:
    from ttransfer.testing import Tags

    trial = loss_trial(squared, tags=Tags(stochastic=True))._replace(laws=_inductor.LAWS)
    assert not trial.asked
