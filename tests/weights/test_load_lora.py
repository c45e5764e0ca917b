"""Adapters from folders: written by hand in PEFT's format, and by PEFT."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.weights import load_lora, merge_lora

W = "base_model.model."
# As PEFT 0.21 writes it for a plain LoRA.
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": {"base_model_class": "Net", "parent_library": "net"},
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 6,
    "lora_bias": False,
    "lora_dropout": 0.1,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 2,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["fc", "body"],
    "target_parameters": None,
    "task_type": None,
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def drawn(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes}


FILE = drawn(
    (f"{W}body.0.fc.lora_A.weight", (2, 4)),
    (f"{W}body.0.fc.lora_B.weight", (5, 2)),
    (f"{W}fc.lora_A.weight", (2, 5)),
    (f"{W}fc.lora_B.weight", (3, 2)),
)
BASE = drawn(("body.0.fc.weight", (5, 4)), ("fc.weight", (3, 5)), ("fc.bias", (3,)))


def written(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    save_file(FILE if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def test_a_folder_written_by_hand(tmp_path: Path) -> None:
    tensors, alpha = load_lora(written(tmp_path))
    assert list(tensors) == [name.removeprefix(W) for name in sorted(FILE)]
    assert alpha == {"body.0.fc.weight": 6.0, "fc.weight": 6.0}
    tuned = merge_lora(alpha=alpha).apply({**BASE, **tensors}, {})
    assert list(tuned) == list(BASE)
    change = 3 * FILE[f"{W}fc.lora_B.weight"] @ FILE[f"{W}fc.lora_A.weight"]
    torch.testing.assert_close(tuned["fc.weight"], BASE["fc.weight"] + change, rtol=0, atol=1e-12)


def test_pickles_are_read_too(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(FILE, tmp_path / "adapter_model.bin")
    tensors, _ = load_lora(str(tmp_path))
    assert all(torch.equal(tensors[name.removeprefix(W)], x) for name, x in FILE.items())


@pytest.mark.parametrize(
    ("patterns", "alpha"),
    [
        ({"alpha_pattern": {"fc": 10}}, (10.0, 10.0)),
        ({"alpha_pattern": {"body.*fc": 10}}, (10.0, 6.0)),
        ({"alpha_pattern": {"^fc": 10}}, (6.0, 10.0)),
        ({"alpha_pattern": {"body.0": 10, "0.fc": 11, "fc": 12}}, (11.0, 12.0)),
        ({"use_rslora": True}, (6 * 2**0.5, 6 * 2**0.5)),
        ({"use_rslora": True, "r": 8, "rank_pattern": {"fc": 2}}, (6 * 2**0.5, 6 * 2**0.5)),
    ],
)
def test_alpha(patterns: dict[str, Any], alpha: tuple[float, float], tmp_path: Path) -> None:
    assert load_lora(written(tmp_path, **patterns))[1] == pytest.approx(dict(zip(BASE, alpha, strict=False)))


def test_what_was_trained_whole(tmp_path: Path) -> None:
    more = drawn(
        (f"{W}score.weight", (3, 5)),
        (f"{W}body.0.fc.base_layer.bias", (5,)),
        (f"{W}norm.original_module.bias", (5,)),
        (f"{W}norm.modules_to_save.bias", (5,)),
    )
    # "classifier" is what PEFT adds for a net that might have one.
    tensors, _ = load_lora(written(tmp_path, FILE | more, modules_to_save=["classifier", "score"], bias="all"))
    whole = {name: x for name, x in tensors.items() if "lora" not in name}
    assert sorted(whole) == ["body.0.fc.bias", "norm.bias", "score.weight"]
    assert torch.equal(whole["norm.bias"], more[f"{W}norm.modules_to_save.bias"])


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        ({"peft_type": "IA3"}, {}, "is of the kind 'IA3'; wanted 'LORA', or DoRA"),
        ({"lora_bias": True}, {}, "has 'lora_bias': True, which is no sum of base and factors; merge it in PEFT"),
        ({"use_qalora": True}, {}, "has 'use_qalora': True, which is no sum"),
        ({"a_new_kind": {"a": 1}}, {}, "has 'a_new_kind': {'a': 1}, which is no sum"),
        ({"layer_replication": [[0, 4], [2, 5]]}, {}, "has 'layer_replication'"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "began as 'pissa_niter_4', which changes the base itself"),
        ({"init_lora_weights": "olora"}, {}, "began as 'olora'"),
        ({"fan_in_fan_out": True, "use_dora": True}, {}, "DoRA over weights that lie the other way round"),
        ({"use_dora": True}, {}, "is of DoRA, and has no lora_magnitude_vector"),
        ({"r": 4}, {}, r"the factor A of 'body.0.fc' is \(2, 4\) float64, and its rank in 'adapter_config.json' is 4"),
        (
            {"lora_alpha": None},
            {},
            "wanted a number for 'lora_alpha' of 'body.0.fc' in 'adapter_.*, got None",
        ),
        ({"alpha_pattern": {"fc": "x"}}, {}, "wanted a number for 'lora_alpha' of 'body.0.fc' .*, got 'x'"),
        ({"alpha_pattern": {"fc(": 1}}, {}, r"'alpha_pattern' has 'fc\(', no regular expression"),
        ({"rank_pattern": [1]}, {}, r"wanted a mapping for 'rank_pattern', got \[int\]"),
        ({"modules_to_save": ["score"]}, {}, r"'modules_to_save' has \['score'\], of which no tensor is in it"),
        ({}, {f"{W}fc.lora_B.bias": (3,)}, "'fc.lora_B.bias' is no factor of a low-rank change"),
        ({}, {f"{W}e.token_adapter.trainable_tokens_delta": (3,)}, "'e.token_adapter.* is no factor"),
        ({}, {"fc.lora_A.weight": (2, 5)}, "'fc.lora_A.weight' does not begin with 'base_model.model.'"),
    ],
)
def test_what_cannot_be_merged(
    config: dict[str, Any], more: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TransferError, match=f"load_lora: '.*' ?.*{message}"):
        load_lora(written(tmp_path, FILE | drawn(*more.items()), **config))


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"is no folder; wanted one with 'adapter_config.json' and 'adapter_model"):
        load_lora(tmp_path / "nowhere")
    (tmp_path / "adapter_confg.json").write_text("{}")
    with pytest.raises(TransferError, match=r"has no 'adapter_config.json'; did you mean 'adapter_confg.json'"):
        load_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(TransferError, match=r"has no 'adapter_model.safetensors'; there are: adapter_con"):
        load_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(TransferError, match=r"'adapter_config.json' cannot be read: it is a list, no object"):
        load_lora(tmp_path)
    written(tmp_path, {f"{W}fc.weight": torch.ones(2)})
    with pytest.raises(TransferError, match=r"no factor is in it, as 'base_model.model.\{module\}.lora_A.weight' is"):
        load_lora(tmp_path)


class Net(nn.Module):
    """A table, a convolution, and linear layers of torch's or Hugging Face's kind."""

    def __init__(self, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(7, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.body = nn.Sequential(OrderedDict(fc=linear(6, 6), up=linear(6, 8)))
        self.norm, self.score = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(self.table(x).mT).mT
        return self.score(self.norm(self.body(hidden).tanh()).mean(1))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["table", "conv", "fc", "up"], "modules_to_save": ["score"], "bias": "all"},
        {"target_modules": ["fc", "up"], "use_rslora": True, "bias": "lora_only"},
        {
            "target_modules": ["table", "fc", "up"],
            "rank_pattern": {"body.fc": 3},
            "alpha_pattern": {"^body.up": 1, "fc": 5},
            "use_rslora": True,
            "init_lora_weights": "gaussian",
        },
        {"target_modules": ["table", "conv", "fc", "up"], "use_dora": True},
        {"target_modules": ["fc", "up"], "init_lora_weights": "orthogonal"},
        {"target_modules": ["fc"], "init_lora_weights": "mica"},
        {"target_modules": ["table", "fc", "up"], "modules_to_save": ["norm"], "turned": True},
    ],
)
def test_as_peft_merges_what_it_wrote(options: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    linear: Any = nn.Linear
    if options.get("turned"):
        conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
        linear = lambda n, m: conv1d(m, n)  # noqa: E731
    torch.manual_seed(0)
    net = Net(linear)
    config = peft.LoraConfig(r=2, lora_alpha=6, **{key: x for key, x in options.items() if key != "turned"})
    tuned = peft.get_peft_model(copy.deepcopy(net), config)
    with torch.no_grad():
        for name, x in tuned.named_parameters():
            if x.requires_grad or "lora_" in name:
                x.add_(torch.randn_like(x))
    words = torch.arange(7)[None]
    logits = tuned.eval()(words).detach()
    tuned.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] == ("turned" in options)

    tensors, alpha = load_lora(tmp_path)
    got = merge_lora(alpha=alpha).apply({**net.state_dict(), **tensors}, {})
    wanted = tuned.merge_and_unload().state_dict()
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        torch.testing.assert_close(got[name], x, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    tt.weights.transfer(got, net, tt.weights.match_by_name())
    torch.testing.assert_close(net.eval()(words), logits, rtol=1e-4, atol=1e-4)
