"""The private copy of a module: no storage, taps, buffers, precision."""

from __future__ import annotations

import collections
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.nn.utils import prune

import ttransfer as tt
from tests.support.compare import copied, worst
from tests.support.nets import conv, images
from ttransfer._errors import TransferError
from ttransfer.core._paths import Tap
from ttransfer.core._skeleton import bind_skeleton, copy_of

X = images(0)["source"]["x"]


def weights(module: nn.Module) -> tuple[tt.Params, tt.Params]:
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    return params, {name: b.clone() for name, b in module.named_buffers()}


class Output(collections.OrderedDict[str, Any]):
    """A dict whose values are attributes too, as model outputs of some packages are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Odd(nn.Module):
    """Tied weights, a buffer outside the checkpoint, a plain tensor, structured outputs, in-place writes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.randn(4), persistent=False)
        self.register_buffer("calls", torch.tensor(0))
        self.plain = torch.arange(4.0)
        self.act = nn.ReLU(inplace=True)
        self.pair = Pair()

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        x *= 2.0
        x = self.act(self.first(x) + self.shift)
        x = self.act(self.second(x) + self.plain)
        self.calls += 1
        a, rest = self.pair(x, scale=scale)
        a += 1.0
        return Output(logits=a, hidden=(x, rest["b"]))


class Pair(nn.Module):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        return x.clone(), {"b": x.sin() * (1.0 if scale is None else scale)}


def odd() -> Odd:
    torch.manual_seed(0)
    net = Odd().double()
    net.plain = net.plain.double()
    return net


def test_a_copy_has_no_storage_and_keeps_ties() -> None:
    net = odd()
    net.second.bias.requires_grad_(False)
    before = {name: (x.data_ptr(), x._version) for name, x in net.state_dict().items()}
    twin = copy_of(net)
    assert all(x.device.type == "meta" for x in (*twin.parameters(), *twin.buffers()))
    assert twin.get_parameter("second.weight") is twin.get_parameter("first.weight")
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in net.parameters()]
    assert torch.equal(twin.plain, net.plain)
    assert twin.plain is not net.plain
    assert {name: (x.data_ptr(), x._version) for name, x in net.state_dict().items()} == before
    assert [name for name, _ in copy_of(twin).named_parameters()] == [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize("make", [lambda: nn.LazyLinear(3), lambda: prune.identity(nn.Linear(2, 2), "weight")])
def test_what_cannot_be_copied_is_named(make: Any) -> None:
    module = make()
    with pytest.raises(TransferError, match=f"functional: {type(module).__name__} cannot be copied: "):
        copy_of(module)


def test_structured_outputs_and_two_inputs() -> None:
    net = odd()
    params, buffers = weights(net)
    x, scale = torch.randn(5, 4, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    expected = net(x.clone(), scale)
    out = bind_skeleton(copy_of(net), training=True)(params, buffers, x, scale)
    assert type(out.value) is Output
    assert worst(out.value["logits"], expected.logits.detach()) == 0.0
    assert worst(out.value["hidden"], tuple(h.detach() for h in expected.hidden)) == 0.0
    assert (buffers["calls"].item(), out.buffers["calls"].item(), net.calls.item()) == (0, 1, 1)


def test_inputs_parameters_and_buffers_are_left_alone() -> None:
    params, buffers = weights(odd())
    x = torch.randn(5, 4, dtype=torch.float64)
    before = copied((params, buffers, x))
    versions = [t._version for t in (*params.values(), *buffers.values(), x)]
    for training in (True, False):
        bind_skeleton(copy_of(odd()), [Tap("act", call=0)], training)(params, buffers, x)
    assert worst((params, buffers, x), before) == 0.0
    assert [t._version for t in (*params.values(), *buffers.values(), x)] == versions


def test_an_input_written_in_place_has_a_gradient() -> None:
    params, buffers = weights(odd())
    apply = bind_skeleton(copy_of(odd()), training=True)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    net = odd()
    (expected,) = torch.autograd.grad(net(x * 1.0)["logits"].square().sum(), x)
    got = grad(lambda x: apply(params, buffers, x).value["logits"].square().sum())(x.detach())
    assert worst(got, expected) < 1e-12


def test_tied_weights_get_both_gradients() -> None:
    params, buffers = weights(odd())
    assert "second.weight" not in params
    apply = bind_skeleton(copy_of(odd()), training=True)
    x = torch.randn(5, 4, dtype=torch.float64)
    net = odd()
    net(x.clone())["logits"].square().sum().backward()
    got = grad(lambda p: apply(p, buffers, x).value["logits"].square().sum())(params)
    assert worst(got, {name: p.grad for name, p in net.named_parameters()}) < 1e-12


def test_taps_are_what_flowed_at_the_time() -> None:
    """Outputs, inputs, calls, keywords and structures, though later modules write into them."""
    net = odd()
    params, buffers = weights(net)
    taps = [Tap("first"), Tap("first", True), Tap("act", False, 0), Tap("act", True, 1), Tap("act", False, 1)]
    taps += [Tap("pair"), Tap("pair", True), Tap("second", True)]
    x, scale = torch.randn(5, 4, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    found = bind_skeleton(copy_of(net), taps, True)(params, buffers, x, scale).taps
    assert list(found) == ["first", "first:in", "act@0", "act:in@1", "act@1", "pair", "pair:in", "second:in"]
    with torch.no_grad():
        first = net.first(2 * x)
        hidden = (first + net.shift).relu()
        before = net.second(hidden) + net.plain
        last = before.relu()
    expected = {
        "first": first, "first:in": 2 * x, "act@0": hidden, "act:in@1": before, "act@1": last,
        "pair": (last, {"b": last.sin() * 3}), "pair:in": (last, scale), "second:in": hidden,
    }  # fmt: skip
    assert worst(found, expected) == 0.0


@pytest.mark.parametrize(
    ("tap", "said"),
    [
        (Tap("act"), "tap 'act': the module is called 2 times in one forward; say which call, from 'act@0' to 'act@1'"),
        (Tap("act", True), "tap 'act:in': the module is called 2 times .* from 'act:in@0' to 'act:in@1'"),
        (Tap("act", False, 2), "tap 'act@2': the module is called 2 times, and calls count from 0"),
        (Tap("first", False, 1), "tap 'first@1': the module is called 1 times"),
        (Tap("spare"), "tap 'spare': the module was not called in this forward"),
        (Tap("spare", False, 0), "tap 'spare@0': the module was not called in this forward"),
    ],
)
def test_a_tap_of_no_call_or_of_many(tap: Tap, said: str) -> None:
    net = odd()
    net.spare = nn.Linear(1, 1)
    apply = bind_skeleton(copy_of(net), [tap], True)
    params, buffers = weights(net)
    for _ in range(2):  # a failure leaves nothing behind that changes the next
        with pytest.raises(TransferError, match=said):
            apply(params, buffers, torch.ones(5, 4, dtype=torch.float64))


def test_a_gradient_passes_through_taps() -> None:
    net = conv(1)
    params, buffers = weights(net)
    apply = bind_skeleton(copy_of(net), [Tap("bn"), Tap("fc", True)], True)

    def loss(params: tt.Params) -> Tensor:
        taps = apply(params, buffers, X).taps
        return taps["bn"].square().mean() + taps["fc:in"].sin().sum()

    normed = net.bn(net.conv(X))
    (normed.square().mean() + normed.relu().mean((2, 3)).sin().sum()).backward()
    got = grad(loss)(params)
    for name in ("conv.weight", "bn.weight", "bn.bias"):
        assert worst(got[name], net.get_parameter(name).grad) < 1e-9
    assert worst(got["fc.weight"], torch.zeros_like(params["fc.weight"])) == 0.0


@pytest.mark.parametrize("fault", ["Missing", "Unexpected"])
def test_names_must_fit(fault: str) -> None:
    params, buffers = weights(conv(1))
    if fault == "Missing":
        del params["fc.bias"]
    else:
        params["fc.scale"] = torch.ones(1)
    with pytest.raises(RuntimeError, match=fault):
        bind_skeleton(copy_of(conv(1)))(params, buffers, X)


def test_modes_do_not_mix() -> None:
    """Skeletons bound from one are each for themselves, in any order of calls."""
    net = conv(1)
    params, buffers = weights(net)
    skeleton = copy_of(net)
    train, still = bind_skeleton(skeleton, training=True), bind_skeleton(skeleton, [Tap("bn")])
    own = bind_skeleton(skeleton, training=True, batch_statistics=False)
    expected = {m: copy.deepcopy(net).train(m)(X).detach() for m in (True, False)}
    for _ in range(2):
        out = train(params, buffers, X)
        assert worst(out.value, expected[True]) == 0.0
        assert (out.taps, out.buffers["bn.num_batches_tracked"].item()) == ({}, 1)
        out = still(params, buffers, X)
        assert worst(out.value, expected[False]) == 0.0
        assert all(out.buffers[name] is buffer for name, buffer in buffers.items())
        out = own(params, buffers, X)
        assert worst(out.value, expected[False]) == 0.0
        assert worst(out.buffers, buffers) == 0.0
    assert all(module.training for module in skeleton.modules())


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    params, buffers = weights(conv(1, p=0.5))
    apply = bind_skeleton(copy_of(conv(1, p=0.5)), [Tap("bn")], True)
    keys = torch.arange(len(X))
    first = apply(params, buffers, X, keys=keys)
    with pytest.raises(RuntimeError):
        grad(lambda p: apply(p, buffers, X[:, :, :, 0], keys=keys).value.sum())(params)
    assert worst(apply(params, buffers, X, keys=keys), first) == 0.0


def test_every_mode_gives_the_same() -> None:
    """Eager, compiled in one graph, member by member under vmap, with taps, buffers and gradients."""
    params, buffers = weights(conv(1, p=0.5))
    apply = bind_skeleton(copy_of(conv(1, p=0.5)), [Tap("bn"), Tap("act", True)], True)
    keys = torch.arange(len(X))

    def run(params: tt.Params, buffers: tt.Params, keys: Tensor) -> Any:
        def loss(params: tt.Params) -> Any:
            out = apply(params, buffers, X, keys=keys)
            return out.value.square().sum() + out.taps["bn"].sin().sum(), out

        return grad(loss, has_aux=True)(params)

    eager = run(params, buffers, keys)
    assert worst(torch.compile(run, backend="aot_eager", fullgraph=True)(params, buffers, keys), eager) < 1e-12
    shifted = {name: p + 0.1 for name, p in params.items()}
    both = [{name: torch.stack([p, shifted[name]]) for name, p in params.items()}]
    both.append({name: torch.stack([b, b]) for name, b in buffers.items()})
    mapped = vmap(run)(both[0], both[1], torch.stack([keys, keys + 7]))
    for i, (p, k) in enumerate([(params, keys), (shifted, keys + 7)]):
        member = tt.tree.map(lambda x, i=i: x[i], mapped)
        assert worst(member, run(p, buffers, k)) < 1e-12


SEEN: list[torch.dtype] = []


class Noting(nn.Module):
    """Notes what a norm computes in."""

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(x.dtype)
        return super().forward(x)


class BatchNorm(Noting, nn.BatchNorm2d):
    pass


class GroupNorm(Noting, nn.GroupNorm):
    pass


class LayerNorm(Noting, nn.LayerNorm):
    pass


class RMSNorm(Noting, nn.RMSNorm):
    pass


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norms = nn.ModuleList([BatchNorm(4), GroupNorm(2, 4), LayerNorm((4, 4)), RMSNorm((4, 4))])
        self.probes = nn.ModuleList(nn.Identity() for _ in self.norms)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i, (norm, probe) in enumerate(zip(self.norms, self.probes, strict=True)):
            x = probe(norm(self.conv(x) if i == 0 else x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("how", ["eager", "vmap"])
def test_bfloat16_keeps_norms_parameters_and_gradients_in_float32(how: str) -> None:
    torch.manual_seed(0)
    net = Norms()
    apply = bind_skeleton(copy_of(net), [Tap("conv"), Tap("probes.0")], True, precision=torch.bfloat16)
    exact = bind_skeleton(copy_of(net), training=True)
    params, buffers = weights(net)
    x, y = X.float(), torch.arange(len(X)) % 3

    def member(params: tt.Params, buffers: tt.Params, run: Any = apply) -> Any:
        out = run(params, buffers, x)
        return F.cross_entropy(out.value.float(), y), out

    SEEN.clear()
    if how == "vmap":
        two = tt.tree.map(lambda x: torch.stack([x, x]), (params, buffers))
        grads, out = tt.tree.map(lambda x: x[1], vmap(grad(member, has_aux=True))(*two))
    else:
        grads, out = grad(member, has_aux=True)(params, buffers)
    assert [torch.float32] * len(net.norms) == SEEN
    assert out.value.dtype == out.taps["conv"].dtype == out.taps["probes.0"].dtype == torch.bfloat16
    assert {g.dtype for g in grads.values()} == {torch.float32}
    assert out.buffers["norms.0.running_mean"].dtype == torch.float32
    full, precise = grad(lambda p: member(p, buffers, exact), has_aux=True)(params)
    assert 0.0 < worst(out.value.float(), precise.value) < 0.05
    assert 0.0 < worst(grads, full) < 0.05


def test_norms_of_a_float64_net_stay_in_float64() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).double()
    params, buffers = weights(net)
    x = torch.randn(3, 4, dtype=torch.float64)
    out = bind_skeleton(copy_of(net), precision=torch.bfloat16)(params, buffers, x)
    assert worst(out.value, net(x).detach()) < 1e-12
