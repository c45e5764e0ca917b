"""`sobolev` and `jacobian_matching` against their formulas in slow loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from tests.support.peers import theirs
from ttransfer._errors import TransferError
from ttransfer.losses._sobolev import jacobian_matching, sobolev
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks


def slow(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.stack(
        [(a - b) ** 2 for a, b in zip(student.flatten(), teacher.detach().flatten(), strict=True)]
    ).mean()


def slow_directions(student: Tensor, teacher: Tensor) -> Tensor:
    rows = [
        ((s / s.norm() - t / t.norm()) ** 2).sum()
        for s, t in zip(student.flatten(1), teacher.detach().flatten(1), strict=True)
    ]
    return torch.stack(rows).mean()


PAIR = (torch.randn(4, 3), torch.randn(4, 3))
TRIALS = (
    loss_trial(sobolev, PAIR, reference=slow, examples=8),
    loss_trial(
        jacobian_matching,
        PAIR,
        reference=slow_directions,
        limits={"opposite": lambda fn: (fn(torch.ones(2, 3), -torch.ones(2, 3)), 4)},
        examples=8,
    ),
    loss_trial(
        jacobian_matching,
        (torch.randn(4, 2, 3, 2), torch.randn(4, 2, 3, 2)),
        tags=Tags(rotation_invariant=False),
        reference=slow_directions,
        name="jacobian_matching of images",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def nets() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)) for width in (4, 8))
    return student.double(), teacher.double()


def test_beside_zhijian_through_the_student() -> None:
    student, teacher = nets()
    x, y = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    other = theirs("zhijian.models.kd.loss.sobolev", "Sobolev")
    leaf = x.clone().requires_grad_()
    wanted = other(student(leaf), teacher(leaf), leaf, y)
    slopes = torch.autograd.grad(wanted, list(student.parameters()), allow_unused=True, materialize_grads=True)

    def score(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, params, (x,)).gather(1, y[:, None]).sum()

    def loss(params: dict[str, Tensor]) -> Tensor:
        s = torch.func.grad(lambda x: score(student, params, x))(x)
        t = torch.func.grad(lambda x: score(teacher, dict(teacher.named_parameters()), x))(x)
        return jacobian_matching(s, t)

    found, value = torch.func.grad_and_value(loss)(dict(student.named_parameters()))
    torch.testing.assert_close(value / 6, wanted, rtol=1e-9, atol=1e-9)  # a mean over the inputs, for our sum
    torch.testing.assert_close([g / 6 for g in found.values()], list(slopes), rtol=1e-9, atol=1e-9)


def test_in_a_term_of_a_step() -> None:
    student, teacher = nets()
    x, y = torch.randn(64, 6, dtype=torch.float64), torch.arange(64) % 3
    batch = {"source": {"x": x, "y": y}}

    def slopes(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.func.grad(lambda x: net(x).gather(1, y[:, None]).sum())(x)

    def smooth(
        student: Callable[[Tensor], Tensor], teacher: Callable[[Tensor], Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        return sobolev(slopes(student, x, y), slopes(teacher, x, y))

    step = tt.step(
        {"student": tt.functional(student), "teacher": tt.functional(teacher)},
        tt.optim.adam(1e-2),
        trainable=("student",),
        slope=tt.term(smooth, "student:fn", "teacher:fn", "source.x", "source.y", coupled=False),
    )
    state = step.init(batch, seed=0)
    slope = []
    for _ in range(100):
        state, logs = step(state, batch)
        slope.append(float(logs["slope"]))
    assert slope[-1] < slope[0] / 4


def test_what_is_refused() -> None:
    for loss in (sobolev, jacobian_matching):
        with pytest.raises(TransferError, match=f"{loss.__name__}: wanted tensors of one shape"):
            loss(torch.zeros(4, 3), torch.zeros(4, 2))
