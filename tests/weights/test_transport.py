"""Channels written in terms of others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import Axis, Group, channel_groups, permute_channels, transport_channels


def net(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(1, width, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 5), nn.Linear(5, 2)
    ).double()


def groups_of(width: int) -> tuple[Group, ...]:
    return channel_groups(net(width), torch.ones(1, 1, 3, 3, dtype=torch.float64))


FREE = [i for i, group in enumerate(groups_of(3)) if not group.fixed]
CONV = next(i for i in FREE if groups_of(3)[i].size == 3)
P = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]], dtype=torch.float64)


def slow(src: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, layer by layer."""
    new = dict(src)
    new["0.weight"] = torch.einsum("ji,iabc->jabc", P, src["0.weight"])
    for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        new[name] = P @ src[name]
    new["4.weight"] = torch.einsum("ji,oik->ojk", P, src["4.weight"].reshape(5, 3, 4)).reshape(5, 16)
    return new


TRIALS = (
    weight_map_trial(
        transport_channels(groups_of(3), {CONV: P}, groups_of(4)),
        net(3).state_dict(),
        net(4).state_dict(),
        reference=slow,
        examples=4,
        name="transport",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_a_permutation_is_one_case() -> None:
    src, groups = net(3).state_dict(), groups_of(3)
    orders = {i: torch.randperm(groups[i].size, generator=torch.Generator().manual_seed(i)) for i in FREE}
    matrices = {i: torch.eye(len(order), dtype=torch.float64)[order] for i, order in orders.items()}
    wanted = permute_channels(groups, orders).apply(src, {})
    found = transport_channels(groups, matrices).apply(src, {})
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, rtol=0, atol=1e-12)


def test_pairs_become_one_and_the_function_stays() -> None:
    """Six channels in three equal pairs: with the sum kept where they are read, three do the same."""
    small = net(3)
    double = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)
    wide = transport_channels(groups_of(3), {CONV: double}, groups_of(6), reads={CONV: double / 2}).apply(
        small.state_dict(), {}
    )
    large = net(6).eval()
    large.load_state_dict(wide)
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(large(x), small.eval()(x), rtol=0, atol=1e-12)
    half = double.T / 2
    back = transport_channels(groups_of(6), {CONV: half}, groups_of(3), reads={CONV: 2 * half}).apply(wide, {})
    for name, value in small.state_dict().items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=1e-12)


def test_groups_that_share_an_axis() -> None:
    """Concatenated channels: those of one group are carried over, the others move along."""

    def shared(first: int) -> tuple[Group, ...]:
        left, right = torch.arange(first)[:, None], first + torch.arange(2)[:, None]
        return (
            Group((Axis("a", 0, left), Axis("w", 1, left, first + 2, reads=True))),
            Group((Axis("b", 0, right - first), Axis("w", 1, right, first + 2, reads=True))),
        )

    src = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([4.0, 5.0]), "w": torch.arange(10.0).reshape(2, 5)}
    matrix = torch.tensor([[0.5, 0.5, 0.0]])
    new = transport_channels(shared(3), {0: matrix}, shared(1)).apply(src, {})
    assert new["a"].tolist() == [1.5]
    assert new["b"] is src["b"]
    assert new["w"].tolist() == [[0.5, 3.0, 4.0], [5.5, 8.0, 9.0]]
    partly = (Group((Axis("w", 1, torch.arange(2)[:, None], 5),)),)
    swapped = transport_channels(partly, {0: torch.eye(2).flip(0)}).apply(src, {})
    assert swapped["w"].tolist() == [[1.0, 0.0, 2.0, 3.0, 4.0], [6.0, 5.0, 7.0, 8.0, 9.0]]


def test_matrices_are_learned_through() -> None:
    src, three, four = net(3).state_dict(), groups_of(3), groups_of(4)

    def value(matrix: Tensor) -> Tensor:
        new = transport_channels(three, {CONV: matrix}, four).apply(src, {})
        return new["0.weight"].sin().sum() + new["4.weight"].cos().sum()

    slope = torch.func.grad(value)(P)
    step = torch.zeros_like(P)
    step[1, 2] = 1e-6
    assert abs((value(P + step) - value(P - step)).item() / 2e-6 - slope[1, 2].item()) < 1e-7


def test_plan_and_refusals() -> None:
    three, four, src = groups_of(3), groups_of(4), net(3).state_dict()
    plan = transport_channels(three, {CONV: P}, four).plan(src, net(4).state_dict())
    assert plan.made["4.weight"].how == "axis 1 carried over, 12 -> 16"
    assert not plan.mismatched
    with pytest.raises(TransferError, match=r"the matrix of group \d is \(4, 3\) float64, wanted \(3, 3\)"):
        transport_channels(three, {CONV: P})
    fixed = next(i for i, group in enumerate(three) if group.fixed)
    for wrong in (fixed, 99):
        with pytest.raises(TransferError, match=rf"there is no free group {wrong} of {len(three)} to carry over"):
            transport_channels(three, {wrong: P})
    with pytest.raises(TransferError, match="one net has 4 groups of channels, the other 1"):
        transport_channels(three[:4], {}, four[:1])
    with pytest.raises(TransferError, match=r"group 0 of the one net, .*, does not go with"):
        transport_channels(three, {}, four[1:] + four[:1])
    with pytest.raises(TransferError, match=r"the source has no '0\.weight'"):
        transport_channels(three, {CONV: P}, four).apply({}, {})
    overlapping = (Group((Axis("w", 0, torch.arange(2)[:, None]),)), Group((Axis("w", 0, torch.arange(2)[:, None]),)))
    with pytest.raises(TransferError, match="of the groups of 'w' two that overlap are to be carried over"):
        transport_channels(overlapping, {0: torch.eye(2), 1: torch.eye(2)})
    shorter = (Group((Axis("w", 0, torch.arange(1)[:, None], 4),)),)
    with pytest.raises(TransferError, match="axis 0 of 'w' changes, and some of it is in no group"):
        transport_channels((Group((Axis("w", 0, torch.arange(2)[:, None], 5),)),), {0: torch.ones(1, 2)}, shorter)
