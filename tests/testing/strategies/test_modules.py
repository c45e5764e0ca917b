"""Modules of every family, and that `tt.functional` of any of them is the module."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad

import ttransfer as tt
from tests.support.compare import worst
from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.testing import strategies as tts
from ttransfer.testing.strategies._modules import MODULES

Draws = Callable[..., list[Any]]
Smallest = Callable[..., Any]
F64 = torch.float64


def kinds(module: nn.Module) -> set[type[nn.Module]]:
    return {type(part) for part in module.modules()}


def calls(module: nn.Module, x: Tensor) -> list[str]:
    """The names of the modules called in a forward, in order."""
    seen: list[str] = []
    hooks = [
        part.register_forward_hook(lambda *_, name=name: seen.append(name)) for name, part in module.named_modules()
    ]
    module(x)
    for hook in hooks:
        hook.remove()
    return seen


SAYS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "linear": lambda m, x: type(m) is nn.Linear,
    "stack": lambda m, x: sum(isinstance(part, nn.Linear) for part in m.modules()) in (2, 3),
    "conv": lambda m, x: {nn.Conv2d, nn.BatchNorm2d} <= kinds(m) and x.ndim == 4,
    "norm": lambda m, x: nn.LayerNorm in kinds(m),
    "attention": lambda m, x: x.ndim == 3 and m(x).shape == x.shape,
    "tied": lambda m, x: len(dict(m.named_parameters(remove_duplicate=False))) == 1 + len(dict(m.named_parameters())),
    "dropout": lambda m, x: nn.Dropout in kinds(m),
    "in-place": lambda m, x: any(getattr(part, "inplace", False) for part in m.modules()),
    "twice": lambda m, x: len(calls(m, x)) > len(set(calls(m, x))),
    "dict": lambda m, x: isinstance(m(x), dict),
    "tuple": lambda m, x: isinstance(m(x), tuple) and isinstance(m(x)[1], list),
}


@pytest.mark.parametrize("family", MODULES)
def test_every_family_is_what_it_says_and_its_input_fits(family: str, draws: Draws) -> None:
    rows = set()
    for module, x in draws(tts.modules(family), 60):
        assert SAYS[family](module, x)
        assert module.training
        assert x.dtype == F64
        rows.add(len(x))
        held = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
        assert {t.dtype for t in held} == {F64}
        assert all(t.count_nonzero() for t in held)
        for out in tree.leaves(module(x)):
            assert out.dtype == F64
            assert out.isfinite().all()
            assert len(out) == len(x)
    assert rows == {1, 2, 3}


def test_all_families_come(draws: Draws) -> None:
    found = draws(tts.modules(), 300)
    for family, says in SAYS.items():
        assert any(says(module, x) for module, x in found), family
    assert {type(m) for m, _ in draws(tts.modules("linear", "tuple"))} == {
        nn.Linear,
        type(draws(tts.modules("tuple"))[0][0]),
    }
    assert {len(x) for _, x in draws(tts.modules(rows=(4, 4)), 10)} == {4}


def test_some_write_on_their_input_and_most_do_not(draws: Draws) -> None:
    wrote = []
    for module, x in draws(tts.modules("in-place")):
        given = x.clone()
        module(given)
        wrote.append(not torch.equal(given, x))
    assert 10 < sum(wrote) < 60


def test_weights_differ_and_variances_are_positive(draws: Draws) -> None:
    for module, _ in draws(tts.modules("conv"), 30):
        weights = torch.cat([p.flatten() for p in module.parameters()])
        assert weights.unique().numel() >= 0.9 * weights.numel()
        torch.testing.assert_close(weights * 1000, (weights * 1000).round(), rtol=0, atol=1e-9)
        assert module[1].running_var.min() >= 0.5
        assert module[1].running_mean.any()


def test_drawing_leaves_the_global_generator_alone(draws: Draws) -> None:
    """And is the same each time, whatever its state."""
    before = torch.get_rng_state()
    found = draws(tts.modules(), 40)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    for (one, x), (other, y) in zip(found, draws(tts.modules(), 40), strict=True):
        assert torch.equal(x, y)
        assert worst(dict(one.state_dict()), dict(other.state_dict())) == 0


def test_modules_shrink_to_one_layer_of_one_number(smallest: Smallest) -> None:
    module, x = smallest(tts.modules())
    assert (repr(module), x.tolist()) == ("Linear(in_features=1, out_features=1, bias=True)", [[0]])
    for family in ("conv", "attention", "tied"):
        assert smallest(tts.modules(family)).x.numel() == (9 if family == "conv" else 1)
    module, x = smallest(tts.modules(), lambda case: nn.BatchNorm2d in kinds(case.module) and case.x.any())
    assert x.shape == (1, 1, 3, 3)
    assert x.sum() == 0.25
    module, x = smallest(tts.modules(), lambda case: nn.ReLU in kinds(case.module))
    assert [type(part).__name__ for part in module] == ["Linear", "ReLU", "Linear"]
    assert x.tolist() == [[0]]


def weighed(value: Any) -> Tensor:
    """A scalar that every output goes into with weights of its own, and curved."""
    parts = []
    for i, out in enumerate(tree.leaves(value)):
        weights = torch.linspace(0.5, 1.5, out.numel(), dtype=F64).reshape(out.shape)
        parts.append((weights * (out + 0.3 * out.square())).sum() * (i + 1))
    return torch.stack(parts).sum()


@settings(max_examples=300)
@given(tts.modules(), st.sampled_from(["train", "eval"]))
def test_functional_is_the_module(case: tts.ModuleCase, mode: str) -> None:
    """The same output, gradients of parameters and input, and buffers; neither module nor arguments are changed."""
    # In train mode dropout is keyed, and so another one on purpose; tests/core/test_keyed.py tries it.
    if nn.Dropout in kinds(case.module):
        mode = "eval"
    kept = copy.deepcopy(case.module.state_dict())
    net = tt.functional(case.module, mode=mode)
    params, buffers = net.init(torch.Generator())
    given = [t._version for t in (*params.values(), *buffers.values(), case.x)]

    def loss(params: tt.Params, x: Tensor) -> tuple[Tensor, tt.Out]:
        out = net.apply(params, buffers, x)
        return weighed(out.value), out

    (by_params, by_x), out = grad(loss, argnums=(0, 1), has_aux=True)(params, case.x)
    assert [t._version for t in (*params.values(), *buffers.values(), case.x)] == given
    assert worst(dict(case.module.state_dict()), dict(kept)) == 0
    assert case.module.training

    twin, x = copy.deepcopy(case.module).train(mode == "train"), case.x.clone().requires_grad_()
    value = twin(x.clone())  # which the module may write on
    named = dict(twin.named_parameters())
    found = torch.autograd.grad(weighed(value), [*named.values(), x])
    assert type(out.value) is type(value)
    assert worst(out.value, tree.map(torch.Tensor.detach, value)) <= 1e-12
    expected = dict(zip(named, found, strict=False))
    scale = 1 + max(g.abs().max().item() for g in found)
    assert list(by_params) == list(expected)
    assert worst(by_params, expected) <= 1e-12 * scale
    assert worst(by_x, found[-1]) <= 1e-12 * scale
    assert worst(out.buffers, dict(twin.named_buffers())) <= 1e-12


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no such module": (lambda: tts.modules("linear", "cnov"), "modules: no family 'cnov'; did you mean 'conv'?"),
    "no rows": (
        lambda: tts.modules(rows=(0, 1)),
        "modules: rows must be the fewest and the most, from 1 on, got (0, 1)",
    ),
    "no name": (lambda: tts.modules(3), "modules: no family 3; there are: attention, conv"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_are_refused_before_anything_is_drawn(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(TransferError, match=re.escape(message)):
        call()
