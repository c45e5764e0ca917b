"""Low-rank changes, added to the weights that they change."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["merge_lora"]

_OURS = ("lora_a", "lora_b")
_WRAPPER, _BASE = "base_model.model.", "base_layer"  # PEFT's
# {module}.lora_A.weight in an adapter's file, {module}.lora_A.{adapter}.weight in a module's state dict.
_PEFT = re.compile(r"(?:(?P<module>.+)\.)?(?P<kind>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_PEFT_TABLE = re.compile(r"(?:(?P<module>.+)\.)?(?P<kind>lora_embedding_[AB])(?:\.(?P<adapter>[^.]+))?")
_OTHER = re.compile(r"(?:.+\.)?lora_(?!a$|b$)\w*(?:\..+)?")


class _Half(NamedTuple):
    """One factor: the weight that it changes, which factor it is, whether of a table, and whose."""

    weight: str
    first: bool
    table: bool = False
    adapter: str = ""


def merge_lora(*, alpha: float | Tensor | Mapping[str, float | Tensor] | None = None) -> WeightMap:
    r"""Add low-rank changes to the weights that they change, so that a plain net has the tuned one's answers.

    .. math:: W' = W + \frac{\alpha}{r} B A

    The factors are found by their names: f"{weight}.lora_a" and f"{weight}.lora_b", as `tt.adapters.lora` has them,
    or PEFT's f"{module}.lora_A.weight" and f"{module}.lora_B.weight", with or without an adapter's name, beside
    f"{module}.base_layer.weight" or f"{module}.weight"; for embeddings f"{module}.lora_embedding_A". What PEFT puts
    around a net's names is taken off: "base_model.model." and ".base_layer".

    Args:
        alpha: α, as it was in training; None is the rank r, which is the length of A's first axis. A mapping has one
            for each weight, under the weight's name in the result. For rsLoRA give √r times as much.

    Returns:
        A `WeightMap` from base and factors in one flat dict to plain weights.

    Raises:
        TransferError: at use for a source without factors, one factor without the other or without its weight, two
            adapters on one weight, shapes that do not go together (a Conv1D of Hugging Face lies the other way round:
            see `permute_layout`), parts of other methods such as DoRA's magnitudes, an alpha for no weight, and two
            tensors that would get one name.

    Example:
        >>> import torch, ttransfer as tt
        >>> base, adapt = {"fc.weight": torch.zeros(3, 4)}, tt.adapters.lora("fc.*", rank=2, alpha=6.0)
        >>> delta = {"fc.weight.lora_a": torch.ones(2, 4), "fc.weight.lora_b": torch.ones(3, 2)}
        >>> merged = tt.weights.merge_lora(alpha=6.0).apply({**base, **delta}, {})
        >>> list(merged), torch.equal(merged["fc.weight"], adapt.apply(base, delta)["fc.weight"])
        (['fc.weight'], True)

    Checked against: `tt.adapters.lora`, and PEFT's merge_and_unload.

    References:
        Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen.
        LoRA: Low-Rank Adaptation of Large Language Models. 2021.
    """

    def routes(src: Tensors, like: Tensors) -> Routes:
        halves = {name: half for name in src if (half := _half(name)) is not None}
        plain: dict[str, str] = {}
        for name in src:
            if name in halves:
                continue
            if new := plain.get(_plain(name)):
                raise TransferError(f"merge_lora: both {new!r} and {name!r} would become {_plain(name)!r}")
            plain[_plain(name)] = name
        pairs = _pairs(halves, plain)
        given = alpha if isinstance(alpha, Mapping) else {}
        if stray := [name for name in given if name not in pairs]:
            raise TransferError(f"merge_lora: alpha for {stray[0]!r}, which nothing changes{nearest(stray[0], pairs)}")
        made = {new: taken(name) for new, name in plain.items()}
        for name, (a, b, table) in pairs.items():
            base, rank = plain[name], src[a].shape[0] if src[a].ndim else 0
            _fits(src, base, a, b, table)
            one = given.get(name, rank) if isinstance(alpha, Mapping) else rank if alpha is None else alpha
            make = _adder(one / rank, table)
            made[name] = Route((base, a, b), make, f"low-rank change of rank {rank} added")
        return Routes(made)

    return routed(routes)


def _half(name: str) -> _Half | None:
    """Read the name of a factor; None for other tensors.

    Raises:
        TransferError: for what belongs to a factor and cannot be added.
    """
    inner = name.removeprefix(_WRAPPER)
    rest, _, leaf = inner.rpartition(".")
    if leaf in _OURS and rest:
        return _Half(rest, leaf == _OURS[0])
    found = _PEFT.fullmatch(inner) or _PEFT_TABLE.fullmatch(inner)
    if found is not None:
        module, kind, adapter = found["module"], found["kind"], found["adapter"] or ""
        return _Half(f"{module}.weight" if module else "weight", kind[-1] == "A", "embedding" in kind, adapter)
    if _OTHER.fullmatch(name):
        raise TransferError(f"merge_lora: {name!r} is no factor of a low-rank change; what it does is not merged here")
    return None


def _plain(name: str) -> str:
    """What PEFT puts around a name, taken off."""
    parts = name.removeprefix(_WRAPPER).split(".")
    return ".".join(part for part in parts if part != _BASE)


def _pairs(halves: Mapping[str, _Half], plain: Mapping[str, str]) -> dict[str, tuple[str, str, bool]]:
    if not halves:
        raise TransferError("merge_lora: the source has no factors: no name ends in lora_a, lora_A.weight or the like")
    firsts: dict[str, str] = {}
    seconds: dict[str, str] = {}
    for name, half in halves.items():
        side = firsts if half.first else seconds
        if other := side.get(half.weight):
            raise TransferError(
                f"merge_lora: two adapters change {half.weight!r}, {other!r} and {name!r}; drop one with "
                "tt.weights.drop"
            )
        if half.weight not in plain:
            raise TransferError(f"merge_lora: {name!r} changes no tensor of the source{nearest(half.weight, plain)}")
        side[half.weight] = name
    for here, there in ((firsts, seconds), (seconds, firsts)):
        if alone := [name for name in here if name not in there]:
            raise TransferError(f"merge_lora: {here[alone[0]]!r} is one factor, and the other is not there")
    for name, a in firsts.items():
        if halves[a][2:] != halves[seconds[name]][2:]:
            raise TransferError(f"merge_lora: {a!r} and {seconds[name]!r} are of two adapters")
    return {name: (a, seconds[name], halves[a].table) for name, a in firsts.items()}


def _fits(src: Tensors, base: str, a: str, b: str, table: bool) -> None:
    weight, first, second = src[base], src[a], src[b]
    fits = weight.ndim >= 2 and min(first.ndim, second.ndim) >= 2 and second[0].numel() == first.shape[0] > 0
    if fits:
        change = (second.shape[0], first[0].numel())
        whole = (weight.shape[0], weight[0].numel()) if not table else (weight.shape[1], weight.shape[0])
        fits = change == whole
    if not fits:
        raise TransferError(
            f"merge_lora: {b!r} {shown(second)} times {a!r} {shown(first)} is no change of {base!r} {shown(weight)}"
        )


def _adder(scale: float | Tensor, table: bool) -> Callable[..., Tensor]:
    def add(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        change = scale * (b.flatten(1) @ a.flatten(1))
        change = change.T if table else change
        return weight + change.reshape(weight.shape).to(weight.dtype)

    return add
