"""What is around a checkpoint."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.weights._wrappers import stripped, unwrapped

FLAT = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
OTHER = {"fc.weight": torch.zeros(2, 3)}
ADAM = {"state": {0: {"exp_avg": torch.ones(2, 3), "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
SCORES = {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}}


def read(tree: Any, of: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    said: list[str] = []
    return unwrapped("f", tree, of, said.append), said


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (FLAT, []),
        ({**FLAT, "epoch": 3}, ["f: left out 'epoch', no tensor"]),
        ({**FLAT, "bn._extra_state": {"amax": torch.ones(2)}}, ["f: left out 'bn._extra_state', no tensor"]),
        ({"state_dict": FLAT}, ["f: took 'state_dict'"]),
        ({"model_state_dict": FLAT, "loss": 0.5}, ["f: took 'model_state_dict', and not 'loss' beside it"]),
        ({"epoch": 3, "model": FLAT, "optimizer": ADAM}, ["f: took 'model', and not 'epoch', 'optimizer' beside it"]),
        (
            {"state_dict": FLAT, "callbacks": SCORES, "optimizer_states": [ADAM]},
            ["f: took 'state_dict', and not 'callbacks', 'optimizer_states' beside it"],
        ),
        ({"model": FLAT, "metrics": {"loss": torch.tensor(0.1)}}, ["f: took 'model', and not 'metrics' beside it"]),
        ({"model": FLAT, "rng_state": torch.ones(9)}, ["f: took 'model', and not 'rng_state' beside it"]),
        ({"model": FLAT, "muon": ADAM}, ["f: took 'model', and not 'muon' beside it"]),
        ({"model": FLAT, "state_dict": FLAT}, ["f: took 'model', and not 'state_dict' beside it"]),  # one dict
        ({"ckpt": {"model": FLAT, "step": 2}}, ["f: took 'ckpt/model', and not 'step' beside it"]),
    ],
)
def test_what_is_meant_is_found_and_told(tree: Any, said: list[str]) -> None:
    found, told = read(tree)
    assert list(found) == list(FLAT)
    assert told == said


TWO = {"epoch": 3, "state_dict": FLAT, "state_dict_ema": OTHER}


@pytest.mark.parametrize("of", ["state_dict_ema", "ema", "EMA"])
def test_averaged_weights_are_taken_when_asked_for(of: str) -> None:
    found, told = read(TWO, of)
    assert found["fc.weight"].sum() == 0
    assert told == ["f: took 'state_dict_ema', and not 'epoch', 'state_dict' beside it"]


@pytest.mark.parametrize(
    ("tree", "of", "why"),
    [
        (TWO, None, "f holds several checkpoints: 'state_dict' (2 tensors), 'state_dict_ema' (1 tensor); say which"),
        ({"G": FLAT, "D": OTHER}, None, "f holds several checkpoints: 'G' (2 tensors), 'D' (1 tensor); say which"),
        (
            {"model": FLAT, "centre": torch.ones(3)},
            None,
            "f holds several checkpoints: '' (1 tensor), 'model' (2",
        ),
        (TWO, "emma", "f holds no checkpoint 'emma'; there are: state_dict, state_dict_ema"),
        (TWO, "state_dict_em", "f holds no checkpoint 'state_dict_em'; did you mean 'state_dict_ema' or 'state_dict'?"),
        (
            TWO,
            "dict",
            "f holds several checkpoints called 'dict': 'state_dict' (2 tensors), 'state_dict_ema'",
        ),
        (TWO, "", "f holds no checkpoint ''; there are: state_dict, state_dict_ema"),
        (FLAT, "ema", "f holds one checkpoint, without a name: leave out of='ema'"),
        ({"epoch": 3}, None, "f holds no tensors under names"),
        ({3: torch.ones(2)}, None, "f holds no tensors under names"),
        ({}, None, "f holds no tensors under names"),
        (torch.ones(2), None, "f holds (2,) float32; wanted a dict of tensors"),
        ([FLAT], None, "f holds [dict]; wanted a dict of tensors"),
        ({"w": torch.ones(2, device="meta")}, None, "f: 'w' (2,) is meta, without values; wanted a dense tensor"),
        ({"w": torch.eye(2).to_sparse()}, None, "f: 'w' (2, 2) is torch.sparse_coo; wanted a dense tensor"),
    ],
)
def test_what_is_not_clear_is_asked(tree: Any, of: str | None, why: str) -> None:
    with pytest.raises(TransferError, match=re.escape(why)):
        read(tree, of)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused() -> None:
    x = torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.qint8)
    with pytest.raises(TransferError, match=re.escape("'w' (2,) is quantised; wanted a dense tensor")):
        read({"w": x})


def test_tensors_that_stand_beside_dicts_can_be_chosen() -> None:
    found, _ = read({"centre": torch.ones(3), "model": FLAT}, "")
    assert list(found) == ["centre"]


def test_scores_alone_are_a_checkpoint() -> None:
    assert list(read({"logit_scale": torch.tensor(1.0)})[0]) == ["logit_scale"]


def test_a_dict_in_itself_and_dicts_of_dicts_of_the_same() -> None:
    tree: dict[str, Any] = {"model": FLAT}
    tree["me"] = tree
    assert list(read(tree)[0]) == list(FLAT)
    node: dict[str, Any] = {"model": FLAT}
    for _ in range(30):  # 2^30 ways to the one checkpoint
        node = {"a": node, "b": node}
    assert list(read(node)[0]) == list(FLAT)


def test_parameters_and_what_requires_a_gradient_become_plain_and_tied_stays_tied() -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    tree = {
        "a": weight,
        "b": weight.detach(),
        "c": weight,
        "t": weight.detach().t(),
        "e": torch.empty(0),
        "f": torch.empty(0),
    }
    found, _ = read(tree)
    assert not any(isinstance(x, nn.Parameter) or x.requires_grad for x in found.values())
    assert found["a"] is found["b"] is found["c"]
    assert found["t"] is not found["a"]
    assert found["t"].data_ptr() == found["a"].data_ptr()
    assert found["e"] is not found["f"]


@pytest.mark.parametrize(
    ("names", "off", "left"),
    [
        (["module.a", "module.b"], "module.", ["a", "b"]),
        (["_orig_mod.module.a"], "_orig_mod.module.", ["a"]),
        (["module.module.a", "module.module.b"], "module.module.", ["a", "b"]),
        (["module.a", "n_averaged"], "", ["module.a", "n_averaged"]),
        (["module.a", "module."], "", ["module.a", "module."]),
        (["modules.a"], "", ["modules.a"]),
        ([], "", []),
    ],
)
def test_prefixes_that_all_have_are_taken_off(names: list[str], off: str, left: list[str]) -> None:
    said: list[str] = []
    found = stripped("f", {name: torch.ones(1) for name in names}, ("module.", "_orig_mod."), said.append)
    assert list(found) == left
    assert said == ([f"f: took {off!r} off {len(names)} name{'s' * (len(names) > 1)}"] if off else [])
    assert list(stripped("f", {name: torch.ones(1) for name in names}, (), said.append)) == names
