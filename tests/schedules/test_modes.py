"""Every schedule, in every mode: float64, vmapped over steps and numbers, compiled, differentiated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ttransfer import schedules as S
from ttransfer.core._types import Schedule

F64 = torch.float64
CASES = {
    "constant": S.constant(0.3),
    "linear": S.linear(1.0, 0.2, 7),
    "polynomial": S.polynomial(1.0, 0.2, 7, power=1.7),
    "square root": S.polynomial(1.0, 0.2, 7, power=0.5),
    "cosine": S.cosine(0.5, 7, floor=0.1),
    "step": S.step(0.5, every=3, factor=0.3),
    "ramp": S.ramp(7, high=2.0, alpha=5.0),
    "warmup to a number": S.warmup(0.5, 4, start=0.1),
    "warmup": S.warmup(S.cosine(0.5, 6), 4),
    "warmup of a step": S.warmup(S.step(0.5, every=3, factor=0.3), 4),
    "staircase": S.join((0.5, 0.1, 0.2), (3, 5)),
    "join": S.join({"rise": S.linear(0.0, 1.0, 3), "stay": 1.0, "fall": S.cosine(1.0, 4)}, (3, 5)),
    "nested": S.join((S.warmup(S.cosine(1.0, 4), 2), S.step(2.0, every=2)), (5,)),
}
cases = pytest.mark.parametrize("schedule", CASES.values(), ids=CASES.keys())


def own(schedule: Any) -> dict[str, Tensor]:
    return {name: torch.tensor(number, dtype=F64) for name, number in schedule.hyper.items()}


@cases
def test_numbers_are_floats_and_values_are_float64_scalars(schedule: Any) -> None:
    assert all(type(number) is float for number in schedule.hyper.values())
    numbers = own(schedule)
    for t in range(12):
        value = schedule.apply(torch.tensor(t, dtype=F64), numbers)
        assert (value.shape, value.dtype) == ((), F64)
        assert torch.isfinite(value)
        assert all(value is not number for number in numbers.values())


@cases
def test_vmap_over_steps_equals_a_loop(schedule: Any) -> None:
    steps = torch.arange(12, dtype=F64)
    got = torch.vmap(lambda t: schedule.apply(t, own(schedule)))(steps)
    torch.testing.assert_close(got, torch.stack([schedule(t) for t in steps]), rtol=0, atol=1e-15)


@cases
def test_vmap_over_numbers_equals_a_loop(schedule: Any) -> None:
    factors = torch.tensor([1.0, 1.5, 0.6], dtype=F64)
    stacked = {name: number * factors for name, number in own(schedule).items()}
    for t in (0, 2, 4, 5, 9):
        step = torch.tensor(t, dtype=F64)
        got = torch.vmap(lambda n, step=step: schedule.apply(step, n))(stacked)
        want = [schedule(t, {name: number[i] for name, number in stacked.items()}) for i in range(3)]
        torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-15)


@cases
def test_compiles_once_for_all_steps_and_numbers(schedule: Any) -> None:
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(schedule.apply, backend="aot_eager", fullgraph=True)
    for t in range(12):
        numbers = {name: number * (1 + 0.1 * t) for name, number in own(schedule).items()}
        step = torch.tensor(t, dtype=F64)
        torch.testing.assert_close(compiled(step, numbers), schedule.apply(step, numbers), rtol=0, atol=1e-15)
    assert counters["stats"]["unique_graphs"] == 1


@cases
def test_compiled_vmap_equals_a_loop(schedule: Any) -> None:
    torch._dynamo.reset()
    steps = torch.arange(12, dtype=F64)
    mapped = torch.compile(torch.vmap(schedule.apply, in_dims=(0, None)), backend="aot_eager", fullgraph=True)
    want = torch.stack([schedule(t) for t in steps])
    torch.testing.assert_close(mapped(steps, own(schedule)), want, rtol=0, atol=1e-15)


@cases
def test_gradients_with_respect_to_the_numbers(schedule: Any) -> None:
    # Half steps keep away from the kinks; the numbers of steps are not differentiated at them either.
    for t in (0.5, 2.5, 4.5, 6.5, 11.5):
        step, numbers = torch.tensor(t, dtype=F64), own(schedule)
        grads = torch.func.grad(lambda n, step=step: schedule.apply(step, n))(numbers)
        for name, number in numbers.items():
            wide = 1e-6
            up, down = ({**numbers, name: number + d} for d in (wide, -wide))
            want = (schedule.apply(step, up) - schedule.apply(step, down)) / (2 * wide)
            torch.testing.assert_close(grads[name], want, rtol=1e-7, atol=1e-8, msg=f"{name} at step {t}")


# torch.func.jvp loads decompositions that torch itself still scripts.
@pytest.mark.filterwarnings("ignore:`torch.jit")
@cases
def test_derivatives_are_finite_on_the_kinks_and_when_no_step_is_left(schedule: Any) -> None:
    for shrink in (1.0, 0.0):
        numbers = {k: n * shrink if "steps" in k or "boundaries" in k else n for k, n in own(schedule).items()}
        ones = {k: torch.ones_like(n) for k, n in numbers.items()}
        for t in range(12):
            step = torch.tensor(t, dtype=F64)
            backward = torch.func.grad(lambda n, step=step: schedule.apply(step, n))(numbers)
            forward = torch.func.jvp(lambda n, step=step: schedule.apply(step, n), (numbers,), (ones,))[1]
            assert all(torch.isfinite(g) for g in (*backward.values(), forward)), (shrink, t)


@pytest.mark.parametrize("wrap", [lambda s: S.warmup(s, 3), lambda s: S.join((1.0, s), (3,))], ids=["warmup", "join"])
def test_a_schedule_is_never_asked_for_a_step_before_its_own_first(wrap: Any) -> None:
    wrapped = wrap(Schedule(lambda step, h: h["a"] * torch.log1p(step), {"a": 2.0}))
    for t in range(3):
        grads = torch.func.grad(lambda n, t=t: wrapped.apply(torch.tensor(t, dtype=F64), n))(own(wrapped))
        assert all(torch.isfinite(g) for g in grads.values()), t
