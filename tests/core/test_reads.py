"""Reads and the stages they run through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.core._paths import Tap, parse_path
from ttransfer.core._reads import as_reads, flat

DOUBLE = tt.Adapter(lambda generator, like: {"w": torch.full((), 2.0)}, lambda params, x: params["w"] * x)


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def run(read: tt.Read, value: Any, **hyper: float) -> Tensor:
    """Send a value through the stages of a read, each initialised on what reaches it."""
    numbers = {name: torch.tensor(number, dtype=torch.float64) for name, number in hyper.items()}
    for pipe in read.pipes:
        value = pipe.apply(pipe.init(torch.Generator(), value), numbers, value)
    return value


def test_a_read_is_a_path_and_stages() -> None:
    read = tt.read("net(source).fc:in")
    assert read.path == parse_path("net(source).fc:in")
    assert read.pipes == ()
    longer = read | DOUBLE | doubled | tt.reverse(0.5) | tt.detach | tt.shared("both", DOUBLE) | nn.Flatten()
    assert read.pipes == ()  # it is not changed
    assert str(longer) == "net(source).fc:in | adapter | doubled | reverse | detach | both | function"


def test_stages_run_from_left_to_right() -> None:
    read = tt.read("net(a)") | (lambda x: x + 1.0) | DOUBLE | (lambda x: x.reshape(-1)) | doubled
    torch.testing.assert_close(run(read, torch.ones(2, 3)), torch.full((6,), 8.0))


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("how", ["hyper", "fixed"])
def test_reverse_keeps_the_value_and_turns_the_gradient(scale: float, how: str) -> None:
    stage = tt.reverse(9.0) if how == "hyper" else tt.reverse(tt.fixed(scale))
    read = tt.read("net(a)") | (lambda x: x.sin()) | stage
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    numbers = {"scale": scale} if how == "hyper" else {}
    assert torch.equal(run(read, x, **numbers), x.sin())
    gradient = torch.func.grad(lambda x: (run(read, x, **numbers) ** 2).sum())(x)
    torch.testing.assert_close(gradient, -scale * 2 * x.sin() * x.cos(), rtol=1e-12, atol=1e-12)


def test_a_reverse_that_was_not_lifted_uses_its_own_number() -> None:
    gradient = torch.func.grad(lambda x: run(tt.read("net(a)") | tt.reverse(0.5), x).sum())(torch.ones(2))
    assert gradient.tolist() == [-0.5, -0.5]


def test_reverse_declares_its_number() -> None:
    ramp = tt.schedules.ramp(10)
    assert dict(tt.reverse(0.5).hyper) == {"scale": 0.5}
    assert tt.reverse(ramp).hyper["scale"] is ramp
    term = tt.term(tt.align.mmd, tt.read("n(a)") | tt.reverse(0.5), tt.read("n(b)") | tt.reverse(0.5))
    assert dict(term.hyper) == {"weight": 1.0, "scale": 0.5}


def test_two_scales_in_one_term_are_refused() -> None:
    with pytest.raises(TransferError, match="two different numbers are called 'scale'"):
        tt.term(tt.align.mmd, tt.read("n(a)") | tt.reverse(0.5), tt.read("n(b)") | tt.reverse(1.0))


def test_detach_stops_the_gradient() -> None:
    read = tt.read("net(a)") | doubled | tt.detach
    value = torch.ones(3, dtype=torch.float64)
    assert torch.equal(run(read, value), 2 * value)
    assert torch.func.grad(lambda x: (run(read, x) * x).sum())(value).tolist() == [2.0, 2.0, 2.0]


BAD_STAGES = {
    "number": 3,
    "nothing": None,
    "text": "net(b)",
    "class": nn.Flatten,
    "schedule": tt.schedules.ramp(10),
    "read": tt.read("net(b)"),
    "functional": tt.functional(nn.Linear(2, 2)),
    "reparam": tt.Reparam(lambda generator, params: {}, lambda base, delta: base),
    "fixed": tt.fixed(doubled),
}


@pytest.mark.parametrize("name", BAD_STAGES)
def test_a_bad_stage_is_refused(name: str) -> None:
    with pytest.raises(TransferError, match=r"cannot pipe a reading through .* expected an Adapter, tt\.reverse"):
        tt.read("net(a)") | BAD_STAGES[name]


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)], ids=["parameters", "buffers"])
def test_a_module_with_weights_is_no_stage(module: nn.Module) -> None:
    with pytest.raises(TransferError, match=f"through {type(module).__name__}: its parameters and buffers would be"):
        tt.read("net(a)") | module


@pytest.mark.parametrize("scale", ["0.5", None, True, torch.ones(2), tt.fixed("0.5"), tt.fixed(None)])
def test_a_scale_that_is_no_number_is_refused(scale: Any) -> None:
    with pytest.raises(TransferError, match="reverse: scale must be a number or a schedule"):
        tt.reverse(scale)


@pytest.mark.parametrize("name", ["", "0.1", "a.b", "a b"])
def test_a_shared_name_is_an_identifier(name: str) -> None:
    with pytest.raises(TransferError, match="shared: expected a name and an Adapter"):
        tt.shared(name, DOUBLE)


def test_only_adapters_are_shared() -> None:
    with pytest.raises(TransferError, match="got 'both' and function"):
        tt.shared("both", doubled)


def test_the_arguments_of_a_term_become_reads() -> None:
    piped = tt.read("net(b)") | tt.detach
    reads = as_reads(("net(a)", piped, ["net(a).fc", ("net(b).fc", "a.y")]))
    assert reads[1] is piped
    assert [str(read) for read in flat(reads)] == ["net(a)", "net(b) | detach", "net(a).fc", "net(b).fc", "a.y"]
    assert isinstance(reads[2], tuple)
    assert reads[2][1][0].path.tap == Tap("fc")


@pytest.mark.parametrize("bad", [3, None, torch.ones(2), [], (), ["net(a)", 3], [[]], {"a": "net(a)"}, tt.detach])
def test_what_is_no_read_is_refused(bad: Any) -> None:
    with pytest.raises(TransferError, match="a term reads from paths, got"):
        as_reads(("net(a)", bad))


def test_a_bad_path_in_a_list_is_refused() -> None:
    with pytest.raises(TransferError, match="cannot read 'net\\(a'"):
        as_reads((["net(b)", "net(a"],))
