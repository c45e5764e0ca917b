"""Keyed dropout inside models of timm, against their own modules and their own forwards."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.func import vmap

import ttransfer as tt
from tests.support.compare import worst
from ttransfer.core._keyed import row_keys, salt
from ttransfer.core._paths import Tap


def keys(n: int, *, seed: int = 0, step: int = 0, start: int = 0) -> Tensor:
    whole = torch.arange(start, start + n)
    return row_keys(torch.tensor(seed), torch.tensor(step), salt("net", 1, "source"), whole)


def vit(**rates: float) -> nn.Module:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **shape, **rates).double()


def test_a_vision_transformer_drops_what_its_masks_say() -> None:
    """timm's, with every rate: the masks are read off by taps and put into the user's own module."""
    model = vit(drop_rate=0.2, pos_drop_rate=0.2, proj_drop_rate=0.2, attn_drop_rate=0.3, drop_path_rate=0.5)
    net = tt.functional(model, mode="train")
    sites = [name for name, module in model.named_modules() if type(module).__name__ in ("Dropout", "DropPath")]
    assert {name.rsplit(".", 1)[-1] for name in sites} == {
        "pos_drop", "attn_drop", "proj_drop", "drop1", "drop2", "drop_path1", "drop_path2", "head_drop"
    }  # fmt: skip
    apply = net.bind([tap for name in sites for tap in (Tap(name), Tap(name, True))], True)
    params, buffers = net.init(torch.Generator())
    x, own = torch.randn(5, 3, 16, 16, dtype=torch.float64), keys(5)

    def loss(params: tt.Params) -> tuple[Tensor, dict[str, Tensor]]:
        out = apply(params, buffers, x, keys=own)
        return out.value.square().sum(), out.taps

    rng = torch.get_rng_state()
    grads, taps = torch.func.grad(loss, has_aux=True)(params)
    assert torch.equal(rng, torch.get_rng_state())
    model.eval()
    dropped: dict[str, bool] = {}
    for name in sites:
        # What was dropped before is 0 / 0, and stays dropped.
        mask = (taps[name] / taps[f"{name}:in"]).nan_to_num(0.0)
        dropped[name] = bool((mask == 0).any())
        model.get_submodule(name).register_forward_hook(lambda module, args, out, mask=mask: out * mask)
    for block in model.blocks:
        block.attn.fused_attn = False
    model(x).square().sum().backward()
    assert worst(grads, {name: p.grad for name, p in model.named_parameters()}) < 1e-9
    assert all(dropped.values()), dropped


def test_a_vision_transformer_in_every_mode() -> None:
    net = tt.functional(vit(drop_rate=0.2, attn_drop_rate=0.3, drop_path_rate=0.5), mode="train")
    params, buffers = net.init(torch.Generator())
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)

    def run(params: tt.Params, keys: Tensor) -> Tensor:
        return net.apply(params, buffers, x[: len(keys)], keys=keys).value

    eager = run(params, keys(4))
    assert worst(torch.compile(run, backend="aot_eager", fullgraph=True)(params, keys(4)), eager) < 1e-12
    stacked = vmap(run, in_dims=(None, 0))(params, torch.stack([keys(4), keys(4, seed=1)]))
    assert worst(stacked[0], eager) < 1e-12
    assert worst(stacked[1], run(params, keys(4, seed=1))) < 1e-12
    assert worst(net.apply(params, buffers, x[1:3], keys=keys(2, start=1)).value, eager[1:3]) < 1e-12


def test_windows_go_by_rows() -> None:
    """Swin attends within windows that are folded into the batch: a row's masks stay its own."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
    rates = {"drop_rate": 0.2, "attn_drop_rate": 0.3, "drop_path_rate": 0.5}
    model = timm.create_model("swin_tiny_patch4_window7_224", window_size=4, num_classes=3, **shape, **rates)
    net = tt.functional(model.double(), mode="train")
    params, buffers = net.init(torch.Generator())
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    rng = torch.get_rng_state()
    whole = net.apply(params, buffers, x, keys=keys(4)).value
    assert torch.equal(rng, torch.get_rng_state())
    assert worst(net.apply(params, buffers, x[1:3], keys=keys(2, start=1)).value, whole[1:3]) < 1e-12
    assert worst(net.apply(params, buffers, x, keys=keys(4, step=1)).value, whole) > 1e-3
