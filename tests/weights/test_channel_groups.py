"""Channel groups of networks of many kinds: interchangeable, as another package has them, or refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.support.channel_nets import IMAGE, NETS, cnn, moved, vit
from ttransfer._errors import TransferError
from ttransfer.weights import Group, channel_groups, permute_channels

Keys = set[tuple[str, int]]


def makes(group: Group) -> Keys:
    return {(axis.name, axis.axis) for axis in group.axes}


def shuffled(net: nn.Module, groups: tuple[Group, ...], x: Any, seed: int = 1) -> list[float]:
    """How far the output is from what it was, for each free group in random order, and for all."""
    g = torch.Generator().manual_seed(seed)
    orders = {i: torch.randperm(group.size, generator=g) for i, group in enumerate(groups) if not group.fixed}
    wanted = net(x).detach()
    found = []
    for some in (*({i: order} for i, order in orders.items()), orders):
        new = permute_channels(groups, some).apply(net.state_dict(), {})
        assert any(not torch.equal(new[k], v) for k, v in net.state_dict().items()) or len(some) == 1
        # The state dict has a tied weight twice.
        found.append(float((functional_call(net, new, (x,), tie_weights=False).detach() - wanted).abs().max()))
    return found


@pytest.mark.parametrize("name", NETS)
def test_free_groups_are_interchangeable(name: str) -> None:
    make, x = NETS[name]
    torch.manual_seed(0)
    net = moved(make())
    groups = channel_groups(net, x)
    assert sum(not group.fixed and group.size > 1 for group in groups) >= 2
    assert max(shuffled(net, groups, x)) < 1e-9


@pytest.mark.parametrize("name", NETS)
def test_no_entry_is_left_out(name: str) -> None:
    make, x = NETS[name]
    net = moved(make())
    covered: dict[tuple[str, int], set[int]] = {}
    for group in channel_groups(net, x):
        for axis in group.axes:
            assert axis.index.shape[0] == group.size
            assert axis.index.dtype == torch.int64
            assert axis.length == net.state_dict()[axis.name].shape[axis.axis]
            covered.setdefault((axis.name, axis.axis), set()).update(axis.index.reshape(-1).tolist())
    for key, entries in covered.items():
        assert entries == set(range(net.state_dict()[key[0]].shape[key[1]])), key
    missing = set(net.state_dict()) - {name for name, _ in covered}
    assert {name.rpartition(".")[2] for name in missing} <= {"num_batches_tracked"}


def test_the_module_is_left_alone() -> None:
    net = cnn().train().float()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    channel_groups(net, IMAGE.float())
    assert net.training
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert not net._forward_hooks
    assert not net.conv1._forward_pre_hooks


def test_a_flattened_map_has_an_entry_for_each_position() -> None:
    groups = channel_groups(cnn(), IMAGE)
    (axis,) = (axis for group in groups for axis in group.axes if axis.name == "hidden.weight" and axis.axis == 1)
    assert axis.index.tolist() == torch.arange(32).reshape(8, 4).tolist()
    assert axis.reads


def test_heads_their_dimensions_and_what_is_within_one() -> None:
    groups = [g for g in channel_groups(vit(), IMAGE) if ("blocks.0.qkv.weight", 0) in makes(g)]
    keys, values, heads = (g for g in groups if g.removable)
    assert (keys.size, keys.axes[0].index.shape, keys.mixed) == (4, (4, 6), ("scaled_dot_product_attention",))
    assert (values.size, values.axes[0].index.shape, values.mixed) == (4, (4, 3), ())
    assert values.axes[0].index[1].tolist() == [25, 29, 33]
    assert (heads.size, heads.axes[0].index.shape, heads.mixed) == (3, (3, 12), ())
    assert sorted(heads.axes[0].index[1].tolist()) == [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31]
    within = [g for g in groups if not g.removable]
    assert [g.size for g in within] == [4] * 6


def test_a_parameter_that_is_an_activation_counts() -> None:
    groups = channel_groups(vit(), IMAGE)
    stream = next(g for g in groups if ("pos", 2) in makes(g))
    assert {("cls", 2), ("patch.weight", 0), ("blocks.1.gamma", 0), ("blocks.1.fc2.weight", 0)} <= makes(stream)
    assert stream.mixed == ("layer_norm",)


def test_parts_with_different_fates_are_different_groups() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.a(x).split([5, 3], -1)
            return self.b(torch.cat([one.relu(), other.tanh()], -1))

    net = moved(Halves())
    groups = channel_groups(net, torch.zeros(1, 3, dtype=torch.float64))
    assert sorted(g.size for g in groups if not g.fixed) == [3, 5]
    assert max(shuffled(net, groups, torch.randn(4, 3, dtype=torch.float64))) < 1e-9


class Scaled(nn.Module):
    """What sees each channel where it stands."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.how == "ramp":
            x = x * torch.arange(6, dtype=x.dtype)
        elif self.how == "shift":
            x = x + x.roll(1, -1)
        elif self.how == "matrix":
            x = x @ torch.diag(torch.arange(6, dtype=x.dtype))
        elif self.how == "pairs":
            x = (x.unflatten(-1, (3, 2)) * torch.tensor([1.0, 2.0], dtype=x.dtype)).flatten(-2)
        return self.b(x)


@pytest.mark.parametrize(("how", "sizes"), [("ramp", []), ("matrix", []), ("shift", [1]), ("pairs", [])])
def test_what_depends_on_the_place_is_not_free(how: str, sizes: list[int]) -> None:
    groups = channel_groups(Scaled(how), torch.zeros(2, 3))
    assert [g.size for g in groups if not g.fixed] == sizes


class Odd(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner, self.out = how, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if self.how == "cumsum":
            x = x.cumsum(-1)
        elif self.how == "weight":
            x = nn.functional.linear(x, self.inner.weight * 2)
        elif self.how == "table":
            x = (x[..., None] @ x[:, None]).sum(1)
        elif self.how == "numpy":
            # Of the zeros that the example gives, torch does not see that they were turned round.
            x = x + torch.tensor(x.detach().numpy()[:, ::-1].copy())
        return self.out(x)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cumsum", r"channel_groups: 'cumsum' in 'body' has no rule by which channels are followed through it"),
        ("weight", r"channel_groups: 'linear' in 'body' is given a weight that is computed"),
        ("table", r"channel_groups: 'matmul' in 'body' makes a table of channels by channels"),
        ("numpy", r"group \d+ \(4 channels of .*\) is not interchangeable"),
    ],
)
def test_what_cannot_be_followed_is_refused(how: str, message: str) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(3, 4), Odd(how)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.head(x))

    net = Whole()
    for x in (net.head.bias, net.body.inner.bias):
        torch.nn.init.zeros_(x)
    with pytest.raises(TransferError, match=message):
        channel_groups(net, torch.zeros(2, 3))


def timm_model(name: str, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=5, **options)


SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "mobilenetv2_050": {},
    "convnext_atto": {},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "regnety_002": {},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 3},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
}


@pytest.mark.parametrize("name", SMALL)
def test_models_of_timm(name: str) -> None:
    net = timm_model(name, **SMALL[name]).double().eval()
    size = SMALL[name].get("img_size", 32)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    groups = channel_groups(net, x)
    g = torch.Generator().manual_seed(1)
    orders = {i: torch.randperm(group.size, generator=g) for i, group in enumerate(groups) if not group.fixed}
    assert len(orders) > 5
    new = permute_channels(groups, orders).apply(net.state_dict(), {})
    torch.testing.assert_close(functional_call(net, new, (x,)), net(x), rtol=1e-9, atol=1e-9)


def of_torch_pruning(net: nn.Module, x: Tensor) -> set[frozenset[tuple[str, int]]]:
    """Its groups, as the weights' axes that each has."""
    pruning = pytest.importorskip("torch_pruning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = pruning.DependencyGraph().build_dependency(net, example_inputs=x)
        every = list(graph.get_all_groups([net.get_classifier()], [nn.Conv2d, nn.Linear]))  # pyright: ignore[reportAttributeAccessIssue]
    names = {module: name for name, module in net.named_modules()}
    found = set()
    for group in every:
        pairs = {(names.get(dep.target.module), dep.handler.__name__) for dep, _ in group}
        # A depthwise convolution's input channels are those of its weight's first axis.
        axes = {(f"{n}.weight", int("in_channels" in how and "depthwise" not in how)) for n, how in pairs if n}
        found.add(frozenset(axis for axis in axes if axis[0] in net.state_dict()))
    return found


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050"])
def test_groups_are_those_of_torch_pruning(name: str) -> None:
    pytest.importorskip("torch_pruning")
    net, x = timm_model(name).eval(), torch.randn(1, 3, 32, 32)
    ours = {frozenset(k for k in makes(g) if k[0].endswith(".weight")) for g in channel_groups(net, x) if g.removable}
    assert ours == of_torch_pruning(net, x)


class Auxiliary(nn.Module):
    """A head beside the head, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.aux, self.b = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.register_buffer("scale", torch.ones(()))  # has no channels

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        return (self.b(x), self.aux(x)) if self.training else self.b(x)


def test_what_did_not_run_is_refused_or_allowed_by_name() -> None:
    net, x = Auxiliary(), torch.zeros(1, 4)
    message = (
        r"channel_groups: 2 of 7 tensors did not run, so that nothing is known of their channels: 'aux.weight', "
        r"'aux.bias'; give inputs on which they run in eval mode, .* with allow="
    )
    with pytest.raises(TransferError, match=message):
        channel_groups(net, x)
    with pytest.raises(TransferError, match=r"1 of 7 tensors did not run, .*: 'aux.bias';"):
        channel_groups(net, x, allow="aux.weight")
    with pytest.raises(TransferError, match=r"allow='aux.bais' matches nothing that did not run; did you mean 'aux"):
        channel_groups(net, x, allow=[r"aux\..*", "aux.bais"])
    groups = channel_groups(net, x, allow=r"aux\..*")
    assert not {axis.name for group in groups for axis in group.axes} & {"aux.weight", "aux.bias"}
    plan = permute_channels(groups, {"a.weight": torch.arange(8).flip(0)}).plan(net.state_dict(), {})
    assert {name: one.why for name, one in plan.made.items() if one.why} == dict.fromkeys(
        ("aux.weight", "aux.bias"), "of no group"
    )


def test_tied_weights_run_under_either_name() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    net.also = nn.Identity()
    net.also.weight = net[2].weight

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.also, self.net = net.also, net

        def forward(self, x: Tensor) -> Tensor:
            return self.net[2](self.net[1](self.net[0](x)))

    assert channel_groups(Whole(), torch.zeros(1, 3))


def test_heads_of_torchvision_that_run_in_training_alone_are_named() -> None:
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.resnet18(num_classes=4)
    net.aux = torchvision.models.googlenet(aux_logits=True, init_weights=False, num_classes=3).aux1
    with pytest.raises(
        TransferError, match=r"\d+ of \d+ tensors did not run, .*: 'aux.conv.conv.weight', .* and \d+ more"
    ):
        channel_groups(net, torch.randn(1, 3, 32, 32))
    assert channel_groups(net, torch.randn(1, 3, 32, 32), allow="aux.*")


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (Auxiliary(), (), r"channel_groups: Auxiliary does not run on \[\]: TypeError: .* missing 1 required"),
        (Auxiliary(), (torch.zeros(1, 5),), r"Auxiliary does not run on \[\(1, 5\) float32\]: RuntimeError: .*mat1"),
        (Auxiliary().state_dict(), (torch.zeros(1, 4),), "channel_groups: wanted a module, and inputs for it, got Ord"),
    ],
)
def test_what_does_not_run_is_named(module: Any, inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TransferError, match=message):
        channel_groups(module, *inputs)
