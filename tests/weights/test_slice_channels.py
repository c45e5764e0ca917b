"""Narrower networks."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.support.channel_nets import IMAGE, cnn, resnet, vit, with_state
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import channel_groups, net2wider, slice_channels, transfer

NET = cnn()
GROUPS = channel_groups(NET, IMAGE)
SMALL = cnn(1, 4, 5)
KEEP = {"conv1.weight": [0, 2, 3, 5], "conv2.weight": torch.tensor([7, 1, 2, 3, 4])}

TRIALS = (
    weight_map_trial(
        slice_channels(GROUPS, KEEP), NET.state_dict(), SMALL.state_dict(), verbatim=False, examples=4, name="slice"
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check) -> None:
    check()


def test_slices_by_hand() -> None:
    src = NET.state_dict()
    new = slice_channels(GROUPS, KEEP).apply(src, {})
    rows, columns = torch.tensor([1, 2, 3, 4, 7]), torch.tensor([0, 2, 3, 5])
    assert torch.equal(new["conv2.weight"], src["conv2.weight"][rows][:, columns])
    assert torch.equal(new["bn1.running_var"], src["bn1.running_var"][columns])
    assert torch.equal(new["hidden.weight"], src["hidden.weight"].unflatten(1, (8, 4))[:, rows].flatten(1))
    assert new["head.weight"] is src["head.weight"]
    plan = slice_channels(GROUPS, KEEP).plan(src, SMALL.state_dict())
    assert plan.made["conv2.weight"].how == "axis 0: channels 8 -> 5; axis 1: channels 6 -> 4"
    assert not plan.mismatched
    assert not plan.missing


def test_the_student_is_the_teacher_with_channels_that_are_zero() -> None:
    small = copy.deepcopy(SMALL)
    transfer(NET.state_dict(), small, slice_channels(GROUPS, KEEP))
    zeroed = {name: x.clone() for name, x in NET.state_dict().items()}
    for bn, kept in (("bn1", KEEP["conv1.weight"]), ("bn2", KEEP["conv2.weight"])):
        gone = torch.tensor(sorted({*range(len(zeroed[f"{bn}.bias"]))} - {*map(int, kept)}))
        zeroed[f"{bn}.weight"][gone] = 0
        zeroed[f"{bn}.bias"][gone] = 0
    torch.testing.assert_close(small(IMAGE), functional_call(NET, zeroed, IMAGE), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [cnn, resnet])
def test_wider_and_back(make) -> None:
    net: nn.Module = make()
    groups = channel_groups(net, IMAGE)
    widths = {i: g.size + 3 for i, g in enumerate(groups) if not g.fixed}
    wide = net2wider(groups, widths, seed=1).apply(net.state_dict(), {})
    # The wide net has the same groups with more channels, the old ones first: what reads them was divided.
    grown = channel_groups(with_state(net, wide), IMAGE)
    keep = {i: list(range(groups[i].size)) for i in widths}
    back = slice_channels(grown, keep).apply(wide, {})
    assert {k: x.shape for k, x in back.items()} == {k: x.shape for k, x in net.state_dict().items()}
    reads = {a.name for g in groups if not g.fixed for a in g.axes if a.reads}
    for name, x in net.state_dict().items():
        assert name in reads or torch.equal(back[name], x), name


def test_heads_and_their_dimensions() -> None:
    net = vit()
    groups = channel_groups(net, IMAGE)
    block = [i for i, g in enumerate(groups) if g.removable and g.axes[0].name.startswith("blocks.0.qkv")]
    (heads,) = (i for i in block if groups[i].size == 3)
    src = net.state_dict()
    new = slice_channels(groups, {heads: [0, 2]}).apply(src, {})
    wanted = src["blocks.0.qkv.weight"].reshape(3, 3, 4, 12)[:, [0, 2]].reshape(24, 12)
    assert torch.equal(new["blocks.0.qkv.weight"], wanted)
    assert torch.equal(new["blocks.0.proj.weight"], src["blocks.0.proj.weight"][:, [0, 1, 2, 3, 8, 9, 10, 11]])
    with pytest.raises(TransferError, match=r"slice_channels: groups overlap in 'blocks.0.proj.weight', as heads and"):
        slice_channels(groups, {i: [0] for i in block})
    (within, *_) = (i for i, g in enumerate(groups) if not g.removable and not g.fixed)
    with pytest.raises(TransferError, match=f"group {within}: its channels cannot be taken away alone"):
        slice_channels(groups, {within: [0]})


def test_the_same_as_torch_pruning() -> None:
    pruning = pytest.importorskip("torch_pruning")
    net = resnet()
    groups, gone = channel_groups(net, IMAGE), [1, 4]
    number = next(i for i, g in enumerate(groups) if g.axes[0].name == "expand.weight")
    theirs = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = pruning.DependencyGraph().build_dependency(theirs, example_inputs=IMAGE)
        graph.get_pruning_group(theirs.expand, pruning.prune_conv_out_channels, idxs=gone).prune()
    keep = [c for c in range(groups[number].size) if c not in gone]
    ours = slice_channels(groups, {number: keep}).apply(net.state_dict(), {})
    for name, x in theirs.state_dict().items():
        assert torch.equal(ours[name], x), name
    torch.testing.assert_close(functional_call(with_state(net, ours), {}, IMAGE), theirs(IMAGE), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({0: []}, "slice_channels: group 0 has 6 channels, got .* to keep; want some of them, each once, by number"),
        ({0: [0, 0, 1]}, r"group 0 has 6 channels, got \[0, 0, 1\] to keep"),
        ({0: [6]}, r"group 0 has 6 channels, got \[6\] to keep"),
        ({0: torch.ones(6, dtype=torch.bool)}, r"got \(6,\) bool to keep"),
        ({0: [True, False, False, False, False, False]}, r"got \[bool, .*\] to keep"),
        ({0: [0.5, 1.0]}, r"got \[float, float\] to keep"),
        ({0: 3}, "got int to keep"),
        ({9: [0]}, "there is no group 9 among 5"),
        ({1: [0]}, "group 1 .* is fixed"),
    ],
)
def test_mistakes_are_named(keep: dict, message: str) -> None:
    with pytest.raises(TransferError, match=message):
        slice_channels(GROUPS, keep)
