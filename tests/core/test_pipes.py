"""Pipes: their parameters, their order, and what a stage cannot take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import mlp, vectors
from ttransfer._errors import TransferError
from ttransfer.core._pipes import init_pipes, loss_params, regroup, run_pipes, upcast

NONE: dict[str, Tensor] = {}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(out: int) -> tt.Adapter:
    """A matrix, drawn from the generator on the reading's last dimension."""

    def init(generator: torch.Generator, like: Tensor) -> tt.Params:
        assert like.device.type == "meta"
        return {"w": torch.randn(out, like.shape[-1], generator=generator, dtype=like.dtype)}

    return tt.Adapter(init, lambda params, x: x @ params["w"].T)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean()


def started(term: tt.Term, raw: list[Any], seed: int = 0) -> tuple[tt.Params, list[Any]]:
    return init_pipes(term, seeded(seed), NONE, raw, lambda params: params)


def test_each_stage_has_parameters_of_its_own() -> None:
    a, b = tt.read("n(a)") | linear(4) | F.relu | linear(2), tt.read("n(b)") | linear(2)
    raw = [torch.randn(5, 3), torch.randn(6, 7)]
    params, piped = started(tt.term(distance, a, b), raw)
    shapes = {name: tuple(p.shape) for name, p in params.items()}
    assert shapes == {"reads.0.0.w": (4, 3), "reads.0.2.w": (2, 4), "reads.1.0.w": (2, 7)}
    expected = F.relu(raw[0] @ params["reads.0.0.w"].T) @ params["reads.0.2.w"].T
    assert worst(piped, [expected, raw[1] @ params["reads.1.0.w"].T]) == 0.0


def test_running_equals_what_initialising_saw() -> None:
    reads = [tt.read("n(a)") | linear(4) | torch.tanh, "n(b)", tt.read("n(c)") | tt.detach | linear(4)]
    term = tt.term(lambda xs, y: xs[0].sum() + y.sum(), [reads[0], reads[1]], reads[2])
    raw = [torch.randn(5, 3), torch.randn(6), torch.randn(5, 2)]
    params, piped = started(term, raw)
    assert worst(run_pipes(term, params, NONE, raw), piped) == 0.0
    assert piped[1] is raw[1]


def test_shared_stages_share() -> None:
    both = tt.shared("both", linear(2))
    term = tt.term(distance, tt.read("n(a)") | both, tt.read("n(b)") | torch.abs | both)
    raw = [torch.randn(5, 3), torch.randn(5, 3)]
    params, piped = started(term, raw)
    assert list(params) == ["reads.both.w"]
    assert worst(piped, [raw[0] @ params["reads.both.w"].T, raw[1].abs() @ params["reads.both.w"].T]) == 0.0


def test_the_seed_decides() -> None:
    term = tt.term(distance, tt.read("n(a)") | linear(2), tt.read("n(b)") | linear(2))
    raw = [torch.randn(5, 3), torch.randn(5, 3)]
    first, again, other = started(term, raw)[0], started(term, raw)[0], started(term, raw, seed=1)[0]
    assert worst(first, again) == 0.0
    assert worst(first, other) > 0.1
    assert worst(first["reads.0.0.w"], first["reads.1.0.w"]) > 0.1


def test_a_stage_gets_its_own_parameters_only() -> None:
    seen: list[list[str]] = []

    def apply(params: tt.Params, x: Tensor) -> Tensor:
        seen.append(list(params))
        return x

    def named(*names: str) -> tt.Adapter:
        return tt.Adapter(lambda generator, like: {name: torch.zeros(1) for name in names}, apply)

    term = tt.term(distance, tt.read("n(a)") | named("w", "deep.b") | tt.shared("p", named("v")), "n(b)")
    raw = [torch.ones(2), torch.ones(2)]
    params, _ = started(term, raw)
    run_pipes(term, {**params, "w": torch.ones(1), "critic.w": torch.ones(1)}, NONE, raw)
    assert seen == [["w", "deep.b"], ["v"], ["w", "deep.b"], ["v"]]
    assert list(loss_params({**params, "w": torch.ones(1), "critic.w": torch.ones(1)})) == ["w", "critic.w"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "NoneType"), ((torch.ones(2),), "tuple"), ({"a": torch.ones(2)}, "dict"), (F.relu, "function")],
)
def test_only_tensors_go_through_pipes(value: Any, kind: str) -> None:
    term = tt.term(distance, tt.read("n(a)") | tt.detach, "n(b)")
    with pytest.raises(TransferError, match=f"'n\\(a\\) | detach': a pipe takes a tensor, got {kind}; pick one of it"):
        started(term, [value, torch.ones(2)])


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (lambda x: x @ torch.ones(7, 2), r"'n\(a\)' \(5, 3\) cannot go through <lambda>: .*mat1 and mat2"),
        (tt.Adapter(lambda g, like: {}, lambda p, x: x.flip(4)), r"cannot go through its adapter: "),
        (tt.shared("both", tt.Adapter(lambda g, like: {}, lambda p, x: p["w"])), r"cannot go through both: 'w'"),
    ],
)
def test_a_stage_that_fails_is_named(stage: Any, said: str) -> None:
    term = tt.term(distance, tt.read("n(a)") | stage, "n(b)")
    with pytest.raises(TransferError, match=said):
        started(term, [torch.ones(5, 3), torch.ones(5, 3)])


def test_shared_parameters_that_do_not_fit_a_second_reading() -> None:
    both = tt.shared("both", linear(2))
    term = tt.term(distance, tt.read("n(a)") | both, tt.read("n(b)") | both)
    with pytest.raises(TransferError, match=r"'n\(b\)' \(5, 4\) cannot go through both"):
        started(term, [torch.ones(5, 3), torch.ones(5, 4)])


@pytest.mark.parametrize(
    ("given", "to"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.int64),
        (torch.uint8, torch.uint8),
        (torch.bool, torch.bool),
        (torch.complex64, torch.complex64),
    ],
)
def test_losses_are_computed_in_float32_at_least(given: torch.dtype, to: torch.dtype) -> None:
    x = torch.tensor([0, 1]).to(given)
    lifted = upcast({"a": x, "b": (x, [x, None, 3.5, "text"])})
    assert lifted["a"].dtype == lifted["b"][0].dtype == lifted["b"][1][0].dtype == to
    assert lifted["b"][1][1:] == [None, 3.5, "text"]
    if given == to:
        assert lifted["a"] is x


def test_values_are_put_back_into_the_lists_of_the_reads() -> None:
    term = tt.term(lambda a, b, c: a, "n(a)", ["n(b)", ["n(c)", "n(d)"]], "n(e)")
    assert regroup(term.reads, [1, 2, 3, 4, 5]) == [1, [2, [3, 4]], 5]


def test_adapters_train_and_reversed_readings_turn_the_gradient() -> None:
    """One SGD step of a term with a shared adapter behind a reversal, by hand."""
    both = tt.shared("both", linear(2))
    reads = [tt.read(f"net({d}).hidden") | tt.reverse(0.5) | both for d in ("source", "target")]
    term = tt.term(lambda a, b: (a.mean(0) - b.mean(0)).square().sum(), *reads)
    step = tt.step({"net": tt.functional(mlp(1))}, tt.optim.sgd(0.1), trainable=("net",), gap=term)
    batch = vectors(0)
    state = step.init(batch, seed=2)
    new, logs = step(state, batch)

    w = state.trainable["terms"]["gap"]["reads.both.w"].clone().requires_grad_()
    net = mlp(1)
    hidden = [net.hidden(batch[d]["x"]) for d in ("source", "target")]
    gap = ((hidden[0].mean(0) - hidden[1].mean(0)) @ w.T).square().sum()
    gap.backward()
    assert abs(logs["gap"].item() - gap.item()) < 1e-12
    assert worst(new.trainable["terms"]["gap"]["reads.both.w"], (w - 0.1 * w.grad).detach()) < 1e-12
    grad = net.hidden.weight.grad
    assert grad is not None
    before = state.trainable["net"]["hidden.weight"]
    assert worst(new.trainable["net"]["hidden.weight"], before + 0.1 * 0.5 * grad) < 1e-12
