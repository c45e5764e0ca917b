"""Low-rank changes from the folder of an adapter."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._types import Params
from ttransfer.weights._json import decoded
from ttransfer.weights._load import load

__all__ = ["load_lora"]

_CONFIG, _TENSORS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_WRAPPER = "base_model.model."
_FACTOR = re.compile(r"(?:(?P<module>.+)\.)?(?P<kind>lora_(?:embedding_)?[AB])(?:\.weight)?")
_LENGTH = re.compile(r"(?:.+\.)?lora_magnitude_vector(?:\.weight)?")

# What changes nothing of how factors are added, whatever it says. All else must be off: a kind of adapter that is not
# known here has its own formula.
_HARMLESS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
# Ways to start that leave the base as it is; others (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) take something from it.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def load_lora(folder: str | os.PathLike[str]) -> tuple[Params, dict[str, float]]:
    r"""Read what PEFT's `save_pretrained` wrote of LoRA or DoRA, as `merge_lora` takes it. PEFT itself is not needed.

    .. math:: \alpha = \alpha_{\text{config}}, \qquad \text{rsLoRA: } \alpha = \sqrt{r}\, \alpha_{\text{config}}

    What the adapter trained whole, such as a new head ("modules_to_save"), biases and resized embeddings, is among the
    tensors under its own name, so that ``{**base, **tensors}`` has it in the place of the base's.

    Where the base's linear layers are Conv1D of Hugging Face, which lie the other way round ("fan_in_fan_out"), so do
    the factors that are returned.

    Args:
        folder: with adapter_config.json, and adapter_model.safetensors or adapter_model.bin.

    Returns:
        name -> tensor, without "base_model.model." and ".base_layer"; and name of a weight -> α, with
        "rank_pattern", "alpha_pattern" and rsLoRA reckoned in.

    Raises:
        TransferError: for a folder without these files, or with such as `load` refuses; for an adapter that is no LoRA,
            or a kind of it that is no sum of base and factors; for one that began by changing its base (PiSSA and the
            like: let PEFT convert it when it saves); for ranks that are not those of the config, and parts that the
            config has and the file has not.

    Example:
        >>> import json, pathlib, tempfile, torch, ttransfer as tt
        >>> from safetensors.torch import save_file
        >>> factors = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(3, 2)}
        >>> config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({f"base_model.model.fc.{k}": x for k, x in factors.items()},
        ...               f"{folder}/adapter_model.safetensors")
        ...     _ = pathlib.Path(folder, "adapter_config.json").write_text(json.dumps(config))
        ...     tensors, alpha = tt.weights.load_lora(folder)
        >>> alpha
        {'fc.weight': 6.0}
        >>> base = {"fc.weight": torch.zeros(3, 4)}
        >>> tt.weights.merge_lora(alpha=alpha).apply({**base, **tensors}, {})["fc.weight"][0]
        tensor([6., 6., 6., 6.])

    Checked against: PEFT's merge_and_unload.

    References:
        Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen.
        LoRA: Low-Rank Adaptation of Large Language Models. 2021.

        Damjan Kalajdzievski. A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA. 2023.
    """
    folder = Path(folder)
    where = f"load_lora: {str(folder)!r}"
    config = _config(folder, where)
    _check_kind(config, where)
    tensors = _plain(load(_file(folder, where), strip=()), where)
    alpha: dict[str, float] = {}
    turned = bool(config.get("fan_in_fan_out"))
    for name in list(tensors):
        found = _FACTOR.fullmatch(name)
        if found is None:
            continue
        module, kind = found["module"] or "", found["kind"]
        x = tensors[name]
        if kind.endswith("A"):
            alpha[f"{module}.weight" if module else "weight"] = _alpha(config, module, x, where)
        if turned and kind == "lora_A" and x.ndim == 2:
            other = name.replace("lora_A", "lora_B")
            if other in tensors:
                tensors[name], tensors[other] = tensors[other].T, x.T
    if not alpha:
        raise TransferError(f"{where}: no factor is in it, as '{_WRAPPER}{{module}}.lora_A.weight' is{_seen(tensors)}")
    _check_whole(config, tensors, where)
    return tensors, alpha


def _config(folder: Path, where: str) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise TransferError(f"{where} is no folder; wanted one with {_CONFIG!r} and {_TENSORS[0]!r}")
    path = folder / _CONFIG
    if not path.is_file():
        raise TransferError(f"{where} has no {_CONFIG!r}{nearest(_CONFIG, [one.name for one in folder.iterdir()])}")
    try:
        return decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TransferError(f"{where}: {_CONFIG!r} cannot be read: {error}") from error


def _file(folder: Path, where: str) -> Path:
    found = next((folder / name for name in _TENSORS if (folder / name).is_file()), None)
    if found is None:
        raise TransferError(f"{where} has no {_TENSORS[0]!r}{nearest(_TENSORS[0], [x.name for x in folder.iterdir()])}")
    return found


def _check_kind(config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not added as factors are."""
    if config.get("peft_type") != "LORA":
        raise TransferError(f"{where} is of the kind {config.get('peft_type')!r}; wanted 'LORA', or DoRA, which is too")
    for key, value in config.items():
        if value and key not in _HARMLESS:
            raise TransferError(
                f"{where} has {key!r}: {value!r}, which is no sum of base and factors; merge it in PEFT"
            )
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise TransferError(f"{where}: wanted a mapping for {key!r}, got {shown(config[key])}")
    start = config.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _STARTS:
        raise TransferError(
            f"{where} began as {start!r}, which changes the base itself: its factors fit no other; "
            "save it with path_initial_model_for_weight_conversion, or merge it in PEFT"
        )
    if config.get("fan_in_fan_out") and config.get("use_dora"):
        raise TransferError(f"{where}: DoRA over weights that lie the other way round is not merged here")


def _plain(file: Mapping[str, Tensor], where: str) -> Params:
    """What PEFT puts around names, taken off, and the copies that it keeps left out."""
    tensors: Params = {}
    kept: Params = {}
    for name, x in file.items():
        if not name.startswith(_WRAPPER):
            raise TransferError(f"{where}: {name!r} does not begin with {_WRAPPER!r}, as PEFT's names do")
        parts = [part for part in name.removeprefix(_WRAPPER).split(".") if part != "base_layer"]
        if "original_module" in parts:
            continue
        if "modules_to_save" in parts:
            kept[".".join(part for part in parts if part != "modules_to_save")] = x
        else:
            tensors[".".join(parts)] = x
    for name in tensors:
        known = _FACTOR.fullmatch(name) or _LENGTH.fullmatch(name)
        if not known and re.search(r"(?:^|\.)(?:lora_\w+|token_adapter|trainable_tokens_\w+)(?:\.|$)", name):
            raise TransferError(f"{where}: {name!r} is no factor of a low-rank change; merge it in PEFT")
    return {**kept, **tensors}


def _alpha(config: Mapping[str, Any], module: str, a: Tensor, where: str) -> float:
    rank = _number(config, "r", module, "rank_pattern", where)
    if not a.ndim or a.shape[0] != rank:
        raise TransferError(
            f"{where}: the factor A of {module!r} is {shown(a)}, and its rank in {_CONFIG!r} is {rank:g}"
        )
    alpha = _number(config, "lora_alpha", module, "alpha_pattern", where)
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _number(config: Mapping[str, Any], key: str, module: str, patterns: str, where: str) -> float:
    """The number of a module: that of the first pattern for the end of its name, or for all."""
    found: Any = config.get(key)
    for pattern, number in cast("dict[str, Any]", config.get(patterns) or {}).items():
        try:
            hit = re.match(rf"(?:.*\.)?(?:{pattern})$", module)
        except re.error as error:
            raise TransferError(f"{where}: {patterns!r} has {pattern!r}, no regular expression: {error}") from error
        if hit:
            found = number
            break
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        raise TransferError(f"{where}: wanted a number for {key!r} of {module!r} in {_CONFIG!r}, got {found!r}")
    return float(found)


def _check_whole(config: Mapping[str, Any], tensors: Params, where: str) -> None:
    """Refuse a file without what the config says is in it."""
    if config.get("use_dora") and not any(_LENGTH.fullmatch(name) for name in tensors):
        raise TransferError(f"{where} is of DoRA, and has no lora_magnitude_vector")
    whole = [name for name in tensors if not _FACTOR.fullmatch(name) and not _LENGTH.fullmatch(name)]
    # PEFT itself writes the usual names of heads, "classifier" and "score", of which a net has one.
    modules: list[str] = list(config.get("modules_to_save") or ())
    if modules and not any(f".{module}." in f".{name}" for module in modules for name in whole):
        raise TransferError(f"{where}: 'modules_to_save' has {modules}, of which no tensor is in it{_seen(whole)}")


def _seen(names: Any) -> str:
    return nearest("", list(names))
