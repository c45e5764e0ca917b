"""Stochastic normalisation against torch's batch normalisation, channel by channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import conv, images
from tests.support.sharded import cut, spread
from ttransfer._errors import TransferError
from ttransfer.adapters._stochnorm import stochnorm

KINDS = {
    "2-D": (nn.BatchNorm1d, (6, 5)),
    "4-D": (nn.BatchNorm2d, (6, 5, 3, 3)),
    "5-D": (nn.BatchNorm3d, (4, 5, 2, 2, 2)),
}
kinds = pytest.mark.parametrize(("kind", "shape"), KINDS.values(), ids=KINDS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def norm(kind: Any, **more: Any) -> Any:
    made = kind(5, **more).double()
    made.running_mean, made.running_var = drawn(5, seed=1), drawn(5, seed=2).square() + 0.5
    if made.affine:
        made.weight, made.bias = nn.Parameter(drawn(5, seed=3)), nn.Parameter(drawn(5, seed=4))
    return made


@kinds
@pytest.mark.parametrize("more", [{}, {"affine": False}, {"momentum": None}, {"eps": 0.1}], ids=str)
def test_at_1_it_is_batch_normalisation(kind: Any, shape: tuple[int, ...], more: Any) -> None:
    theirs, x = norm(kind, **more), drawn(*shape)
    ours = stochnorm(theirs, p=1.0)
    by = drawn(*shape, seed=9)
    for _ in range(2):
        left, right = ours(x), theirs(x)
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    slopes = [torch.autograd.grad((net(y) * by).sum(), [y, *net.parameters()]) for net, y in ((ours, a), (theirs, b))]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-10, atol=1e-12)


@kinds
def test_at_0_the_running_statistics_normalise_and_move(kind: Any, shape: tuple[int, ...]) -> None:
    theirs, x = norm(kind), drawn(*shape)
    ours = stochnorm(theirs, p=0.0)
    expected = F.batch_norm(x, theirs.running_mean, theirs.running_var, theirs.weight, theirs.bias, eps=theirs.eps)
    torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-12)
    theirs(x)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=1e-10, atol=1e-12)


def test_each_channel_is_one_or_the_other_for_all_rows() -> None:
    theirs, x = norm(nn.BatchNorm2d), drawn(6, 5, 3, 3)
    by_batch, by_running = (stochnorm(theirs, p=p)(x) for p in (1.0, 0.0))
    torch.manual_seed(0)
    taken = []
    for _ in range(200):
        got = stochnorm(theirs, p=0.3)(x)
        ones = torch.stack([torch.isclose(got[:, c], by_batch[:, c]).all() for c in range(5)])
        others = torch.stack([torch.isclose(got[:, c], by_running[:, c]).all() for c in range(5)])
        assert bool((ones ^ others).all())
        taken.append(ones)
    # 1000 draws: three standard deviations are 0.044.
    assert torch.stack(taken).double().mean().item() == pytest.approx(0.3, abs=0.044)


def test_the_module_is_left_alone_and_names_stay() -> None:
    net = conv(0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    copy = stochnorm(net)
    copy(drawn(4, 1, 6, 6))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert type(net.bn) is nn.BatchNorm2d
    assert list(copy.state_dict()) == list(before)
    assert list(dict(copy.named_parameters())) == list(dict(net.named_parameters()))


def test_a_module_of_two_names_stays_one() -> None:
    bn = nn.BatchNorm1d(3)
    net = stochnorm(nn.Sequential(bn, nn.ReLU(), bn))
    assert isinstance(net, nn.Sequential)
    assert net[0] is net[2]


def step_of(p: float | None, seed: int = 0) -> Any:
    net = conv(seed) if p is None else stochnorm(conv(seed), p=p)
    return tt.step(
        {"net": tt.functional(net)},
        tt.optim.sgd(0.1),
        trainable=("net",),
        task=tt.term(F.cross_entropy, "net(source)", "source.y"),
    )


def test_in_a_step_at_1_it_is_batch_normalisation() -> None:
    batch = {"source": images(0)["source"]}
    states = []
    for p in (None, 1.0):
        step = step_of(p)
        state = step.init(batch)
        for _ in range(3):
            state, _ = step(state, batch)
        states.append(state)
    torch.testing.assert_close(states[0].trainable, states[1].trainable, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(states[0].buffers, states[1].buffers, rtol=1e-9, atol=1e-11)


def test_in_a_step_the_draw_follows_from_the_state() -> None:
    batch, step = {"source": images(0)["source"]}, step_of(0.5)
    state = step.init(batch)
    one, two = step(state, batch), step(state, batch)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    losses = {step(step.init(batch, seed), batch)[1]["loss"].item() for seed in range(6)}
    assert len(losses) > 1
    torch.compiler.reset()
    compiled = tt.compile(step, backend="aot_eager")
    torch.testing.assert_close(compiled(state, batch), one, rtol=1e-9, atol=1e-11)


def test_members_draw_for_themselves() -> None:
    net = tt.functional(stochnorm(conv(0)))
    params, buffers = net.init(torch.Generator().manual_seed(0))
    x = images(0)["source"]["x"]
    bound = net.bind(training=True)

    def loss(p: Any, keys: Tensor) -> Tensor:
        return bound(p, buffers, x, keys=keys).value.square().sum()

    keys = torch.arange(8 * len(x)).view(8, -1)
    slopes = torch.func.vmap(grad(loss), (None, 0))(params, keys)
    alone = [grad(loss)(params, k) for k in keys]
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, torch.stack([a[name] for a in alone]), rtol=1e-9, atol=1e-11)
    assert len({round(float(v), 6) for v in slopes["fc.weight"].flatten(1).norm(dim=1)}) > 1


def test_ranks_end_with_one_state() -> None:
    batches = [{"source": images(seed)["source"]} for seed in (0, 1)]
    first, second = spread(step_of(0.5), batches, [cut(batch, 2) for batch in batches])
    assert all(worst(one, two) == 0 for one, two in zip(first, second, strict=True))


def test_frozen_statistics() -> None:
    net = tt.functional(stochnorm(conv(0)))
    params, buffers = net.init(torch.Generator().manual_seed(0))
    x = images(0)["source"]["x"]
    out = net.bind(training=True, batch_statistics=False)(params, buffers, x, keys=torch.arange(len(x)))
    torch.testing.assert_close(out.value, conv(0).eval()(x))
    torch.testing.assert_close(out.buffers, buffers)


def test_bfloat16() -> None:
    net, x = stochnorm(nn.BatchNorm2d(5), p=1.0).bfloat16(), drawn(6, 5, 3, 3).bfloat16()
    assert net(x).dtype == torch.bfloat16
    torch.testing.assert_close(net(x).float(), nn.BatchNorm2d(5)(x.float()), rtol=2e-2, atol=2e-2)


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"stochnorm: wanted a probability p from 0 to 1, got 1.5"):
        stochnorm(nn.BatchNorm1d(3), p=1.5)
    with pytest.raises(TransferError, match=r"stochnorm: Linear has no batch normalisation with running statistics"):
        stochnorm(nn.Linear(2, 2))
    with pytest.raises(TransferError, match=r"stochnorm: Sequential has no batch normalisation"):
        stochnorm(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))
    with pytest.raises(TransferError, match=r"stochnorm: wanted more than one value per channel .* got \(1, 3\)"):
        stochnorm(nn.BatchNorm1d(3))(torch.ones(1, 3))
