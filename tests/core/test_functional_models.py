"""Models of timm and torchvision, in float64: gradients against autograd, taps against hooks that clone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision.models as tvm
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

import ttransfer as tt
from tests.support.compare import worst
from ttransfer.core._paths import Tap


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=4, drop_rate=0.0, drop_path_rate=0.0, **options)


SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2}
TV_SWIN: dict[str, Any] = {"patch_size": [2, 2], "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm resnet10t": of_timm("resnet10t"),
    "timm vit": of_timm("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3),
    "timm swin": of_timm("swin_tiny_patch4_window7_224", window_size=4, **SWIN),
    "timm convnext_atto": of_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "timm mobilenetv3": of_timm("mobilenetv3_small_050"),
    "timm efficientnet": of_timm("efficientnet_lite0"),
    "torchvision resnet18": lambda: tvm.ResNet(tvm.resnet.BasicBlock, [2, 2, 2, 2], num_classes=4, width_per_group=64),
    "torchvision mobilenet_v3": lambda: tvm.mobilenet_v3_small(num_classes=4, dropout=0.0, width_mult=0.5),
    "torchvision vit": lambda: tvm.VisionTransformer(num_classes=4, hidden_dim=16, mlp_dim=32, **VIT),
    "torchvision swin": lambda: tvm.SwinTransformer(
        num_classes=4, window_size=[4, 4], stochastic_depth_prob=0.0, **TV_SWIN
    ),
}
Y = torch.tensor([0, 3, 1])


def images(n: int = 3, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double()


def facts(module: nn.Module) -> Any:
    tensors = {name: (id(x), x.data_ptr(), x._version) for name, x in module.state_dict(keep_vars=True).items()}
    flags = {name: (m.training, [*m._forward_hooks], [*m._forward_pre_hooks]) for name, m in module.named_modules()}
    return tensors, flags


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradients_equal_autograd(name: str, mode: str) -> None:
    """Value, gradients, buffers; the module, the caller's tensors and random state are left alone."""
    module, x = build(name), images()
    before, values = facts(module), copy.deepcopy(module.state_dict())
    net = tt.functional(module, mode=mode)
    params, buffers = net.init(torch.Generator())
    given = [t._version for t in (*params.values(), *buffers.values(), x)]
    rng = torch.get_rng_state()

    def loss(params: tt.Params) -> tuple[Tensor, tt.Out]:
        out = net.apply(params, buffers, x)
        return F.cross_entropy(out.value, Y), out

    grads, out = grad(loss, has_aux=True)(params)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [t._version for t in (*params.values(), *buffers.values(), x)] == given
    assert facts(module) == before
    assert worst(dict(module.state_dict()), dict(values)) == 0.0

    twin = build(name).train(mode == "train")
    value = twin(x.clone())
    F.cross_entropy(value, Y).backward()
    assert worst(out.value, value.detach()) < 1e-9
    assert worst(grads, {n: p.grad for n, p in twin.named_parameters()}) < 1e-9
    assert worst(out.buffers, dict(twin.named_buffers())) < 1e-12
    assert max(g.abs().max().item() for g in grads.values()) > 1e-3
    if mode == "train" and any("running_mean" in n for n in buffers):
        assert worst(out.buffers, buffers) > 1e-3


def hooked(module: nn.Module, names: list[str], cloned: bool) -> dict[str, list[Tensor]]:
    """Note what the modules give, in the order of their calls."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    for name in names:

        def note(_: nn.Module, __: Any, out: Tensor, name: str = name) -> None:
            seen[name].append(out.clone() if cloned else out)

        module.get_submodule(name).register_forward_hook(note)
    return seen


BEFORE_RELU = ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.downsample.1", "layer3.1.bn2", "layer4.1.bn1"]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_taps_before_an_inplace_relu_are_the_true_ones(mode: str) -> None:
    """torchvision's resnet18 writes its ReLUs and its sums into the tensors that are tapped."""
    x = images()
    taps = [*(Tap(name) for name in BEFORE_RELU), Tap("layer1.0.relu", False, 0), Tap("layer1.0.relu", False, 1)]
    taps += [Tap("layer1.0", True), Tap("fc", True)]
    net = tt.functional(build("torchvision resnet18"), mode=mode)
    apply = net.bind(taps, mode == "train")
    found = apply(*net.init(torch.Generator()), x).taps

    names = [*BEFORE_RELU, "layer1.0.relu", "maxpool", "avgpool"]
    module = build("torchvision resnet18").train(mode == "train")
    true = hooked(module, names, cloned=True)
    module(x)
    assert all(worst(found[name], true[name][0].detach()) < 1e-9 for name in BEFORE_RELU)
    for call in (0, 1):
        assert worst(found[f"layer1.0.relu@{call}"], true["layer1.0.relu"][call].detach()) < 1e-9
    assert worst(found["layer1.0:in"], true["maxpool"][0].detach()) < 1e-9
    assert worst(found["fc:in"], true["avgpool"][0].detach().flatten(1)) < 1e-9

    # A hook that does not clone is wrong, so the comparison can fail.
    module = build("torchvision resnet18").train(mode == "train")
    wrong = hooked(module, ["layer1.0.bn1"], cloned=False)
    module(x)
    assert worst(wrong["layer1.0.bn1"][0].detach(), true["layer1.0.bn1"][0].detach()) > 0.5


def test_gradients_through_taps_before_an_inplace_relu() -> None:
    x = images()
    net = tt.functional(build("torchvision resnet18"), mode="train")
    apply = net.bind([Tap("layer1.0.bn1"), Tap("layer2.0.downsample.1"), Tap("fc", True)], True)
    params, buffers = net.init(torch.Generator())

    def objective(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return a.sin().mean() + b.square().mean() + c.exp().mean()

    got = grad(lambda p: objective(*apply(p, buffers, x).taps.values()))(params)
    module = build("torchvision resnet18").train()
    true = hooked(module, ["layer1.0.bn1", "layer2.0.downsample.1", "avgpool"], cloned=True)
    module(x)
    objective(*(values[0] for values in true.values())).backward()
    expected = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in module.named_parameters()}
    assert worst(got, expected) < 1e-9
    assert got["layer1.0.conv1.weight"].abs().max() > 1e-6


def test_a_module_called_twice_needs_a_number() -> None:
    net = tt.functional(build("torchvision resnet18"))
    with pytest.raises(tt.TransferError, match=r"'layer1.0.relu': the module is called 2 times .* 'layer1.0.relu@1'"):
        net.bind([Tap("layer1.0.relu")])(*net.init(torch.Generator()), images())


def test_taps_of_a_transformer() -> None:
    """Inputs and outputs of blocks and of the attention inside, timm's ViT."""
    module, x = build("timm vit").eval(), images()
    net = tt.functional(module)
    apply = net.bind([Tap("blocks.0"), Tap("blocks.1", True), Tap("blocks.1.attn.proj", True), Tap("norm", True)])
    found = apply(*net.init(torch.Generator()), x).taps
    true = hooked(module, ["blocks.0", "blocks.1", "blocks.1.attn.norm"], cloned=True)
    module(x)
    assert worst(found["blocks.0"], found["blocks.1:in"]) == 0.0
    assert worst(found["blocks.0"], true["blocks.0"][0].detach()) < 1e-9
    assert worst(found["norm:in"], true["blocks.1"][0].detach()) < 1e-9
    assert worst(found["blocks.1.attn.proj:in"], true["blocks.1.attn.norm"][0].detach()) < 1e-9


# With few and small images batch normalisation divides by next to nothing, and rounding is all there is.
@pytest.mark.parametrize(
    ("name", "n", "size"), [("timm convnext_atto", 3, 32), ("timm swin", 3, 32), ("timm resnet10t", 8, 64)]
)
def test_bfloat16_gradients_of_many_members(name: str, n: int, size: int) -> None:
    """vmap(grad) of models with BatchNorm and LayerNorm under autocast, against member by member."""
    net = tt.functional(build(name).float(), mode="train", precision="bfloat16")
    params, buffers = net.init(torch.Generator())
    x, y = images(n, size).float(), torch.arange(n) % 4

    def loss(params: tt.Params, buffers: tt.Params) -> tuple[Tensor, Tensor]:
        value = net.apply(params, buffers, x).value
        return F.cross_entropy(value.float(), y), value

    two = tt.tree.map(lambda p: torch.stack([p, 1.01 * p]) if p.is_floating_point() else torch.stack([p, p]), params)
    grads, values = torch.func.vmap(grad(loss, has_aux=True))(two, tt.tree.map(lambda b: torch.stack([b, b]), buffers))
    assert values.dtype == torch.bfloat16
    assert {g.dtype for g in grads.values()} == {torch.float32}
    for i in range(2):
        own, _ = grad(loss, has_aux=True)({n: p[i] for n, p in two.items()}, buffers)
        member = {n: g[i] for n, g in grads.items()}
        flat = [torch.cat([g.flatten() for g in one.values()]) for one in (member, own)]
        assert F.cosine_similarity(*flat, dim=0) > 0.99
        assert 0.99 < flat[0].norm() / flat[1].norm() < 1.01
