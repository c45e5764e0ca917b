"""Modules as pure functions: what goes in, what comes out, what is left alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import Conv, Mlp, conv, images, mlp, vectors
from ttransfer._errors import TransferError
from ttransfer.core._paths import Tap

X = images(0)["source"]["x"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_init_copies_the_weights_of_a_module() -> None:
    module = conv(1)
    net = tt.functional(module)
    params, buffers = net.init(seeded())
    assert worst(params, {name: p.detach() for name, p in module.named_parameters()}) == 0.0
    assert worst(buffers, dict(module.named_buffers())) == 0.0
    again = net.init(seeded(1))
    assert worst((params, buffers), again) == 0.0
    kept = [x.data_ptr() for x in (*module.parameters(), *module.buffers())]
    made = [x.data_ptr() for x in (*params.values(), *buffers.values(), *again[0].values(), *again[1].values())]
    assert len({*kept, *made}) == len(kept) + len(made)
    assert not any(p.requires_grad for p in params.values())


def test_neither_init_nor_apply_follows_the_module_later() -> None:
    """The weights of a module are taken when it is made functional: a write_back contaminates no later run."""
    module = conv(1)
    net = tt.functional(module)
    start = net.init(seeded())
    before = net.apply(*start, X).value
    with torch.no_grad():
        module.fc.weight.zero_()
    assert worst(net.apply(*start, X).value, before) == 0.0
    assert worst(net.init(seeded()), start) == 0.0
    assert net.init(seeded())[0]["fc.weight"].data_ptr() != start[0]["fc.weight"].data_ptr()


@pytest.mark.parametrize("make", [Conv, lambda: Conv(classes=2), lambda *, classes=4: Conv(classes)])
def test_a_factory_builds_under_its_own_seed(make: Callable[[], nn.Module]) -> None:
    net = tt.functional(make)
    first, again, other = net.init(seeded(0)), net.init(seeded(0)), net.init(seeded(1))
    assert worst(first, again) == 0.0
    assert worst(first[0]["conv.weight"], other[0]["conv.weight"]) > 0.1
    torch.manual_seed(int(torch.randint(2**62, (), generator=seeded(0))))
    assert worst(first[0], {name: p.detach() for name, p in make().named_parameters()}) == 0.0


def test_the_random_state_of_the_user_is_left_alone() -> None:
    python, numpy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for source in (lambda: Conv(p=0.5), conv(1, p=0.5)):
        before = torch.get_rng_state()
        net = tt.functional(source, mode="train")
        params, buffers = net.init(seeded())
        net.apply(params, buffers, X.to(params["fc.weight"].dtype), keys=torch.arange(len(X)))
        net.bind([Tap("bn")], True)
        assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all()  # noqa: NPY002


def test_a_factory_that_fails_gives_the_random_state_back() -> None:
    def broken() -> nn.Module:
        torch.rand(3)
        raise OSError("no such file")

    before = torch.get_rng_state()
    with pytest.raises(OSError, match="no such file"):
        tt.functional(broken)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_module_is_left_untouched() -> None:
    module = conv(1)
    module.bn.eval()
    module.conv.weight.requires_grad_(False)
    module.fc.register_forward_hook(lambda *_: None)

    def facts() -> Any:
        tensors = {name: (id(x), x.data_ptr(), x._version) for name, x in module.state_dict(keep_vars=True).items()}
        flags = {name: (m.training, [*m._forward_hooks], [*m._forward_pre_hooks]) for name, m in module.named_modules()}
        return tensors, flags, [p.requires_grad for p in module.parameters()], [p.grad for p in module.parameters()]

    before, values = facts(), copy.deepcopy(module.state_dict())
    net = tt.functional(module, mode="train")
    params, buffers = net.init(seeded())
    for apply in (net.apply, net.bind([Tap("bn"), Tap("fc", True)], True)):
        grad(lambda p, apply=apply: apply(p, buffers, X).value.sum())(params)
    assert facts() == before
    assert worst(module.state_dict(), values) == 0.0


@pytest.mark.parametrize(("mode", "training"), [("train", True), ("eval", False), (None, False)])
def test_modes(mode: str | None, training: bool) -> None:
    """The mode of the functional, never that of the module or of its parts."""
    for flag in (True, False):
        module = conv(1).train(flag)
        net = tt.functional(module, mode=mode)
        out = net.apply(*net.init(seeded()), X)
        twin = conv(1).train(training)
        assert worst(out.value, twin(X).detach()) == 0.0
        assert worst(out.buffers, dict(twin.named_buffers())) == 0.0
        assert module.training == flag
        forced = net.bind(training=not training)(*net.init(seeded()), X)
        assert worst(forced.value, conv(1).train(not training)(X).detach()) == 0.0


def test_layout() -> None:
    module = conv(1, p=0.5)
    module.fc.bias.requires_grad_(False)
    net = tt.functional(module, inputs=["image"])
    assert {name: (tuple(p.shape), p.dtype, p.device.type) for name, p in net.layout.parameters.items()} == {
        name: (tuple(p.shape), p.dtype, "meta") for name, p in module.named_parameters()
    }
    assert list(net.layout.buffers) == [name for name, _ in module.named_buffers()]
    assert net.layout.modules == ("conv", "bn", "act", "drop", "fc")
    assert net.layout.frozen == {"fc.bias"}
    assert (net.layout.drops, tt.functional(nn.Linear(2, 2)).layout.drops) == (True, False)
    assert (net.mode, net.inputs) == (None, ("image",))
    params, _ = net.init(seeded())
    assert net.merged(params) == params


class Bimodal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 2)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.fc(text) * image


def test_inputs_go_in_order() -> None:
    net = tt.functional(Bimodal().double(), inputs=("text", "image"))
    params, buffers = net.init(seeded())
    text, image = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 1, dtype=torch.float64)
    expected = F.linear(text, params["fc.weight"], params["fc.bias"]) * image
    assert worst(net.apply(params, buffers, text, image).value, expected) == 0.0


def test_every_member_of_a_vmap_is_its_own() -> None:
    """Over parameters and buffers in train mode, against the user's modules one by one."""
    modules = [conv(seed) for seed in range(3)]
    nets = [tt.functional(module, mode="train").init(seeded()) for module in modules]
    params, buffers = tt.tree.map(lambda *leaves: torch.stack(leaves), *nets)
    apply = tt.functional(modules[0], mode="train").apply
    out = vmap(apply, in_dims=(0, 0, None))(params, buffers, X)
    for i, module in enumerate(modules):
        assert worst(out.value[i], module(X).detach()) < 1e-12
        assert worst({name: b[i] for name, b in out.buffers.items()}, dict(module.named_buffers())) < 1e-12


def test_one_graph_equals_eager() -> None:
    net = tt.functional(conv(1), mode="train")
    params, buffers = net.init(seeded())
    apply = net.bind([Tap("bn"), Tap("fc", True)], True)

    def run(params: tt.Params, buffers: tt.Params, x: Tensor) -> tt.Out:
        return apply(params, buffers, x)

    out = run(params, buffers, X)
    assert worst(torch.compile(run, backend="aot_eager", fullgraph=True)(params, buffers, X), out) == 0.0
    assert list(out.taps) == ["bn", "fc:in"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision(precision: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    net, exact = tt.functional(module, precision=precision), tt.functional(module, precision="float32")
    params, buffers = net.init(seeded())
    x = vectors(0)["source"]["x"].float()
    value = net.apply(params, buffers, x).value
    assert value.dtype == getattr(torch, precision)
    assert {p.dtype for p in params.values()} == {torch.float32}
    full = exact.apply(params, buffers, x).value
    assert full.dtype == torch.float32
    assert 0.0 < worst(value.float(), full) < 0.05
    grads = grad(lambda p: net.apply(p, buffers, x).value.float().square().sum())(params)
    assert {g.dtype for g in grads.values()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_precision_at_binding_goes_before() -> None:
    net = tt.functional(Mlp(), precision="float16")
    params, buffers = net.init(seeded())
    x = vectors(0)["source"]["x"].float()
    assert net.bind(precision=torch.bfloat16)(params, buffers, x).value.dtype == torch.bfloat16
    assert net.bind()(params, buffers, x).value.dtype == torch.float16


def test_lora_trains_the_delta_alone_and_equals_its_own_arithmetic() -> None:
    module = mlp(1)
    net = tt.reparam(tt.functional(module), tt.adapters.lora("hidden.weight", rank=2, alpha=3.0))
    params, buffers = net.init(seeded())
    names = {"hidden.weight.lora_a", "hidden.weight.lora_b"}
    assert set(net.layout.parameters) == set(params) == {*dict(module.named_parameters()), *names}
    assert net.layout.frozen == set(dict(module.named_parameters()))
    assert {name: tuple(p.shape) for name, p in net.layout.parameters.items()} == {
        name: tuple(p.shape) for name, p in params.items()
    }
    moved = {name: p + torch.randn(p.shape, generator=seeded(3), dtype=p.dtype) for name, p in params.items()}
    x = vectors(0)["source"]["x"]

    def by_hand(params: tt.Params) -> Tensor:
        own = {name: p for name, p in params.items() if name not in names}
        a, b = params["hidden.weight.lora_a"], params["hidden.weight.lora_b"]
        own["hidden.weight"] = own["hidden.weight"] + 1.5 * b @ a
        return functional_call(module, own, (x,))

    assert worst(net.apply(moved, buffers, x).value, by_hand(moved)) < 1e-12
    got = grad(lambda p: net.apply(p, buffers, x).value.square().sum())(moved)
    assert worst(got, grad(lambda p: by_hand(p).square().sum())(moved)) < 1e-9
    merged = net.merged(moved)
    assert set(merged) == set(dict(module.named_parameters()))
    assert worst(functional_call(module, merged, (x,)), by_hand(moved)) < 1e-12
    tapped = net.bind([Tap("hidden")])(moved, buffers, x).taps["hidden"]
    assert worst(tapped, F.linear(x, merged["hidden.weight"], merged["hidden.bias"])) < 1e-12


def test_maps_of_parameters_compose() -> None:
    doubled = tt.Reparam(
        lambda generator, params: {"scale": torch.full((), 2.0, dtype=torch.float64)},
        lambda base, delta: {name: p * delta["scale"] for name, p in base.items()},
        trains_base=True,
    )
    net = tt.reparam(tt.functional(mlp(1)), doubled)
    assert net.layout.frozen == frozenset()
    both = tt.reparam(net, tt.adapters.lora("fc.weight", rank=1))
    params, buffers = both.init(seeded())
    x = vectors(0)["source"]["x"]
    own = {name: 2.0 * p.detach() for name, p in mlp(1).named_parameters()}
    assert worst(both.apply(params, buffers, x).value, functional_call(mlp(1), own, (x,)).detach()) < 1e-12
    assert worst(both.merged(params), own) == 0.0


def test_names_of_a_delta_may_not_clash() -> None:
    clash = tt.Reparam(lambda generator, params: {"fc.weight": torch.zeros(1)}, lambda base, delta: base)
    with pytest.raises(TransferError, match=r"reparam: the map names its own parameter 'fc\.weight', as the base does"):
        tt.reparam(tt.functional(mlp(1)), clash)


class Clipped(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.max_norm = 1.0


def patched() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2))
    inner = net[0].forward
    net[0].forward = lambda x: 2 * inner(x)
    return net


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (nn.Linear, {}, "expected an nn.Module or a function of no arguments that makes one, got <class"),
        (3, {}, "expected an nn.Module or a function of no arguments that makes one, got 3"),
        (None, {}, "expected an nn.Module or a function"),
        (lambda width: nn.Linear(width, 2), {}, "expected an nn.Module or a function"),
        (lambda: 3, {}, "the factory made int, expected an nn.Module"),
        (nn.LazyLinear(2), {}, "LazyLinear cannot be copied"),
        (nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), {}, "'0' has max_norm, which writes its weight"),
        (Clipped(), {}, "'Clipped' has max_norm"),
        (patched(), {}, "'0' has a forward put in by hand"),
        (nn.Linear(2, 2), {"mode": "training"}, "mode must be .* got 'training'; did you mean 'train'"),
        (nn.Linear(2, 2), {"precision": "bf16"}, "unknown precision 'bf16'; did you mean 'bfloat16'"),
        (nn.Linear(2, 2), {"inputs": "x"}, "inputs must be names of batch fields such as .* got 'x'"),
        (nn.Linear(2, 2), {"inputs": ()}, "inputs must be names of batch fields"),
        (nn.Linear(2, 2), {"inputs": (0,)}, "inputs must be names of batch fields"),
    ],
)
def test_what_is_refused(given: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TransferError, match=f"functional: .*{said}"):
        tt.functional(given, **options)


def test_weights_must_be_there() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    with pytest.raises(TransferError, match="'weight' is on the meta device; load its weights first"):
        tt.functional(module).init(seeded())
