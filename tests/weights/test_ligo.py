"""Larger networks as linear functions of small ones."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import ttransfer as tt
from tests.support.channel_nets import IMAGE, cnn, resnet, vit, with_state
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import channel_groups, interlace_layers, ligo, ligo_start, net2wider, stack_layers, transfer

NET = cnn()
GROUPS = channel_groups(NET, IMAGE)
WIDTHS = {"conv1.weight": 9, "conv2.weight": 11}
START = ligo_start(GROUPS, WIDTHS, noise=0.2, dtype=torch.float64)
VIT = vit()
BLOCKS = channel_groups(VIT, IMAGE)
DEPTH = {"depth0": torch.randn(3, 2, dtype=torch.float64)}

TRIALS = (
    weight_map_trial(
        ligo(GROUPS, WIDTHS)(**START),
        NET.state_dict(),
        cnn(1, 9, 11).state_dict(),
        verbatim=False,
        examples=4,
        name="width",
    ),
    weight_map_trial(
        ligo(BLOCKS, layers="blocks")(**DEPTH),
        VIT.state_dict(),
        vit(1, depth=3).state_dict(),
        verbatim=False,
        examples=4,
        name="depth",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check) -> None:
    check()


def matrices(seed: int, *shapes: tuple[int, int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def number_of(groups, name: str) -> int:
    return next(i for i, g in enumerate(groups) if g.axes[0].name == name)


def test_the_formula() -> None:
    src = NET.state_dict()
    first, second = number_of(GROUPS, "conv1.weight"), number_of(GROUPS, "conv2.weight")
    b1, a1, b2 = matrices(0, (9, 6), (9, 6), (10, 8))
    grow = ligo(GROUPS, {first: 9, "conv2.weight": 10})
    new = grow(**{f"width{first}": b1, f"into{first}": a1, f"width{second}": b2}).apply(src, {})
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    close(new["conv1.weight"], torch.einsum("nm,mihw->nihw", b1, src["conv1.weight"]))
    close(new["bn1.running_mean"], b1 @ src["bn1.running_mean"])
    close(new["conv2.weight"], torch.einsum("nm,mihw,ki->nkhw", b2, src["conv2.weight"], a1))
    # No matrix A of its own: B is taken.
    flat = src["hidden.weight"].unflatten(1, (8, 4))
    close(new["hidden.weight"], torch.einsum("ocp,nc->onp", flat, b2).flatten(1))
    assert new["head.weight"] is src["head.weight"]


def test_as_the_authors_code_has_it() -> None:
    """There a matrix has the identity above what is learned, and is the next layer's A: torch.cat([w, w @ m.T], 1)."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    groups, (m,) = channel_groups(net, torch.zeros(1, 3, dtype=torch.float64)), matrices(0, (2, 4))
    whole = torch.cat([torch.eye(4, dtype=torch.float64), m])
    new = ligo(groups, {"0.bias": 6})(width0=whole).apply(net.state_dict(), {})
    w0, w2 = net[0].weight, net[2].weight
    torch.testing.assert_close(new["0.weight"], torch.cat([w0, m @ w0]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(new["0.bias"], torch.cat([net[0].bias, m @ net[0].bias]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(new["2.weight"], torch.cat([w2, w2 @ m.T], 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [cnn, resnet])
def test_copies_leave_the_function_as_it_is(make) -> None:
    net = make()
    groups = channel_groups(net, IMAGE)
    widths = {i: g.size + 4 for i, g in enumerate(groups) if not g.fixed}
    start = ligo_start(groups, widths, dtype=torch.float64)
    new = ligo(groups, widths)(**start).apply(net.state_dict(), {})
    torch.testing.assert_close(with_state(net, new)(IMAGE), net(IMAGE), rtol=1e-9, atol=1e-9)
    shapes = net2wider(groups, widths).apply(net.state_dict(), {})
    assert {k: x.shape for k, x in new.items()} == {k: x.shape for k, x in shapes.items()}


def test_under_a_layer_norm() -> None:
    hidden = {i: 2 * g.size for i, g in enumerate(BLOCKS) if i == 0 or "fc1" in g.axes[0].name}
    new = ligo(BLOCKS, hidden)(**ligo_start(BLOCKS, hidden, dtype=torch.float64)).apply(VIT.state_dict(), {})
    torch.testing.assert_close(with_state(VIT, new)(IMAGE), VIT(IMAGE), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layers", [stack_layers, interlace_layers])
def test_depth(layers) -> None:
    src, deep = VIT.state_dict(), vit(1, hidden=13, depth=4)
    hidden = {f"blocks.{i}.fc1.weight": 13 for i in range(2)}
    start = ligo_start(BLOCKS, hidden, depths=[layers(2, 4)], dtype=torch.float64)
    grow = ligo(BLOCKS, hidden, layers=["blocks"])(**start)
    plan = transfer(src, deep, grow)
    wanted = layers(2, 4).argmax(1).tolist()
    for j, i in enumerate(wanted):
        torch.testing.assert_close(deep.blocks[j].qkv.weight.detach(), src[f"blocks.{i}.qkv.weight"])
    assert plan.made["blocks.3.fc1.weight"] == tt.Made(
        ("blocks.0.fc1.weight", "blocks.1.fc1.weight"),
        "axis 0: channels 10 -> 13, by a growth matrix; layer 3 of 4 out of 2, by a growth matrix",
    )


def test_depth_mixes_layers() -> None:
    src, (d,) = VIT.state_dict(), matrices(1, (3, 2))
    new = ligo(BLOCKS, layers="blocks")(depth0=d).apply(src, {})
    wanted = d[2, 0] * src["blocks.0.fc1.bias"] + d[2, 1] * src["blocks.1.fc1.bias"]
    torch.testing.assert_close(new["blocks.2.fc1.bias"], wanted, rtol=1e-9, atol=1e-9)


def test_integers_come_from_the_layer_at_the_same_place() -> None:
    src = {f"layers.{i}.{k}": x for i in range(2) for k, x in nn.BatchNorm1d(2).state_dict().items()}
    src["layers.1.num_batches_tracked"] = torch.tensor(7)
    new = ligo([], layers="layers")(depth0=stack_layers(2, 4)).apply(src, {})
    assert [int(new[f"layers.{j}.num_batches_tracked"]) for j in range(4)] == [0, 7, 0, 7]


def test_tied_weights_stay_one() -> None:
    rows = torch.arange(3)[:, None]
    tied = [tt.weights.Group((tt.weights.Axis("up", 0, rows), tt.weights.Axis("down", 0, rows)))]
    w = torch.randn(3, 2)
    new = ligo(tied, {0: 4})(width0=torch.randn(4, 3)).apply({"up": w, "down": w}, {})
    assert new["up"] is new["down"]


def test_growth_is_learned_in_a_step() -> None:
    torch.manual_seed(0)
    small, large = (nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, 3)) for n in (5, 9))
    x = torch.randn(64, 4)
    y = (x @ torch.randn(4, 3)).argmax(1)
    groups = channel_groups(small, x)
    start = ligo_start(groups, {"0.weight": 9}, noise=0.03)
    grow = ligo(groups, {"0.weight": 9})
    net = tt.reparam(tt.functional(large), tt.as_reparam(grow, small.state_dict(), **start))
    step = tt.step(
        {"net": net},
        tt.optim.adam(0.05),
        trainable=("net",),
        task=tt.term(nn.functional.cross_entropy, "net(source)", "source.y"),
    )
    batch = {"source": {"x": x, "y": y}}
    state, losses = step.init(batch, seed=0), []
    before = dict(state.trainable["net"])
    for _ in range(40):
        state, logs = step(state, batch)
        losses.append(float(logs["task"].detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert (
        abs(losses[0] - float(nn.functional.cross_entropy(small(x), y).detach())) < 0.1
    )  # it starts near the small one
    assert set(before) == {"width0", "into0"}
    assert all(bool((state.trainable["net"][name] != x).any()) for name, x in before.items())


def test_the_gradient_is_that_of_differences() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    groups = channel_groups(net, x)
    widths = {"0.weight": 6, "2.weight": 7}
    grow, start = ligo(groups, widths), ligo_start(groups, widths, noise=0.2, dtype=torch.float64)

    def value(*growth: Tensor) -> Tensor:
        new = grow(**dict(zip(start, growth, strict=True))).apply(net.state_dict(), {})
        return functional_call(net, new, x).square().mean()

    assert torch.autograd.gradcheck(value, [x.clone().requires_grad_() for x in start.values()])


ONE = torch.ones(9, 6)


@pytest.mark.parametrize(
    ("growth", "layers", "message"),
    [
        ({}, (), "ligo: there is no 'width0'; want a matrix for each of width0"),
        ({"width0": ONE, "wide0": ONE}, (), "'wide0' names no growth matrix; did you mean 'width0'"),
        ({"width0": ONE, "width2": ONE}, (), "'width2' names no growth matrix"),
        ({"width0": ONE, "depth0": ONE}, (), "'depth0' names no growth matrix"),
        ({"width0": torch.ones(9, 5)}, (), r"'width0' must be \(9, 6\), got \(9, 5\) float32"),
        ({"width0": ONE, "into0": torch.ones(8, 6)}, (), r"'into0' must be \(9, 6\), got \(8, 6\) float32"),
        ({"width0": ONE}, ("blocks",), "there is no 'depth0'; want a matrix for each of width0, depth0"),
        ({"width0": ONE, "depth0": ONE[0]}, "blocks", r"'depth0' must be \(new, old\), got \(6,\) float32"),
    ],
)
def test_mistakes_are_named(growth: dict, layers: tuple, message: str) -> None:
    with pytest.raises(TransferError, match=message):
        ligo(GROUPS, {"conv1.weight": 9}, layers=layers)(**growth)
    with pytest.raises(TransferError, match=r"ligo: group 1 .* is fixed"):
        ligo(GROUPS, {1: 4})


@pytest.mark.parametrize(
    ("stack", "old", "message"),
    [
        ("block", 2, "ligo: the source has no layers 'block.0'; there are: blocks.0.fc1.bias"),
        ("blocks", 3, r"'blocks' has layers \[0, 1\], and its matrix is for 3"),
    ],
)
def test_another_network_is_refused(stack: str, old: int, message: str) -> None:
    with pytest.raises(TransferError, match=message):
        ligo(BLOCKS, layers=stack)(depth0=torch.ones(4, old)).apply(VIT.state_dict(), {})


def test_layers_that_differ_are_refused() -> None:
    src = {"b.0.w": torch.ones(2), "b.1.w": torch.ones(3)}
    with pytest.raises(TransferError, match="layers 0 and 1 of 'b' differ in 'w', and cannot be mixed"):
        ligo([], layers="b")(depth0=torch.ones(3, 2)).apply(src, {})
