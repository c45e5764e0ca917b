"""Low-rank changes, added to the weights that they change."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._numbers import want_number
from ttransfer.weights._routes import Route, Routes, Tensors, routed, spelt, taken

__all__ = ["merge_lora"]

_OURS = ("lora_a", "lora_b")
_WRAPPER, _BASE = "base_model.model.", "base_layer"  # PEFT's
# {module}.lora_A.weight in an adapter's file, {module}.lora_A.{adapter}.weight in a module's state dict.
_PEFT = re.compile(r"(?:(?P<module>.+)\.)?(?P<kind>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_PEFT_TABLE = re.compile(r"(?:(?P<module>.+)\.)?(?P<kind>lora_embedding_[AB])(?:\.(?P<adapter>[^.]+))?")
# PEFT's, without ".weight" in an adapter's file and in older versions; and that of DoRA's authors.
_MAGNITUDE = re.compile(
    r"(?:(?P<module>.+)\.)?(?:lora_magnitude_vector|weight_m_wdecomp)(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"
)
_OTHER = re.compile(r"(?:.+\.)?lora_(?!a$|b$)\w*(?:\..+)?")


class _Half(NamedTuple):
    """One factor: the weight that it changes, which factor it is, whether of a table, and whose."""

    weight: str
    first: bool
    table: bool = False
    adapter: str = ""


class _Pair(NamedTuple):
    """What changes one weight: the names of the factors, whether of a table, and DoRA's lengths."""

    a: str
    b: str
    table: bool
    magnitude: str = ""


def merge_lora(*, alpha: float | Tensor | Mapping[str, float | Tensor] | None = None) -> WeightMap:
    r"""Add low-rank changes to the weights that they change, so that a plain net has the tuned one's answers.

    .. math:: W' = W + \frac{\alpha}{r} B A, \qquad \text{DoRA: } W' = m\, \frac{W + \frac{\alpha}{r} B A}
        {\lVert W + \frac{\alpha}{r} B A \rVert}

    The factors are found by their names: f"{weight}.lora_a" and f"{weight}.lora_b", as `tt.adapters.lora` has them,
    or PEFT's f"{module}.lora_A.weight" and f"{module}.lora_B.weight", with or without an adapter's name, beside
    f"{module}.base_layer.weight" or f"{module}.weight"; for embeddings f"{module}.lora_embedding_A". What PEFT puts
    around a net's names is taken off: "base_model.model." and ".base_layer".

    Where there is f"{module}.lora_magnitude_vector" too (f"{module}.weight_m_wdecomp" in its authors' code), it is
    DoRA's m, one length for each output of a linear layer or convolution, and for each column of an embedding's table;
    the norm is over all other axes. What is 0 stays so.

    Args:
        alpha: α, as it was in training; None is the rank r, which is the length of A's first axis. A mapping has one
            for each weight, under the weight's name in the result. For rsLoRA give √r times as much.

    Returns:
        A `WeightMap` from base and factors in one flat dict to plain weights.

    Raises:
        TransferError: at use for a source without factors, one factor without the other or without its weight, two
            adapters on one weight, shapes that do not go together (a Conv1D of Hugging Face lies the other way round:
            see `permute_layout`), weights that are quantised, parts of other methods, an alpha for no weight, and two
            tensors that would get one name.

    Example:
        >>> import torch, ttransfer as tt
        >>> base, adapt = {"fc.weight": torch.zeros(3, 4)}, tt.adapters.lora("fc.*", rank=2, alpha=6.0)
        >>> delta = {"fc.weight.lora_a": torch.ones(2, 4), "fc.weight.lora_b": torch.ones(3, 2)}
        >>> merged = tt.weights.merge_lora(alpha=6.0).apply({**base, **delta}, {})
        >>> list(merged), torch.equal(merged["fc.weight"], adapt.apply(base, delta)["fc.weight"])
        (['fc.weight'], True)

    Checked against: `tt.adapters.lora`, and PEFT's merge_and_unload, with DoRA and without.

    References:
        Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen.
        LoRA: Low-Rank Adaptation of Large Language Models. 2021.

        Shih-Yang Liu, Chien-Yi Wang, Hongxu Yin, Pavlo Molchanov, Yu-Chiang Frank Wang, Kwang-Ting Cheng, Min-Hung
        Chen. DoRA: Weight-Decomposed Low-Rank Adaptation. 2024. (The columns of the paper are what one output takes,
        rows of torch's weights, in the authors' code and in PEFT.)
    """
    for each in alpha.values() if isinstance(alpha, Mapping) else () if alpha is None else (alpha,):
        want_number("merge_lora", "alpha", each)

    def routes(src: Tensors, like: Tensors) -> Routes:
        lengths: dict[str, _Half] = {}
        halves: dict[str, _Half] = {}
        plain: dict[str, str] = {}
        for name in src:
            length = _magnitude(name)
            half = None if length is not None else _half(name)
            if length is not None:
                lengths[name] = length
            elif half is not None:
                halves[name] = half
            elif _plain(name) in plain:
                new = _plain(name)
                raise TransferError(f"merge_lora: both {plain[new]!r} and {name!r} would become {new!r}")
            else:
                plain[_plain(name)] = name
        pairs = _with_lengths(_pairs(halves, plain), halves, lengths)
        given = alpha if isinstance(alpha, Mapping) else {}
        if stray := [name for name in given if name not in pairs]:
            raise TransferError(f"merge_lora: alpha for {stray[0]!r}, which nothing changes{nearest(stray[0], pairs)}")
        made = {new: taken(name) for new, name in plain.items()}
        for name, pair in pairs.items():
            base, rank = plain[name], src[pair.a].shape[0] if src[pair.a].ndim else 0
            _fits(src, base, pair)
            one = given.get(name, rank) if isinstance(alpha, Mapping) else rank if alpha is None else alpha
            # A tensor's value is not read: it may be traced.
            how = f"low-rank change added, times {'alpha' if isinstance(one, Tensor) else spelt(one)}/{rank}"
            if pair.magnitude:
                how = f"{how}, then each {'column' if pair.table else 'output'} of the length that DoRA gives it"
            sources = (base, pair.a, pair.b, *((pair.magnitude,) if pair.magnitude else ()))
            made[name] = Route(sources, _adder(one / rank, pair.table), how)
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


def _magnitude(name: str) -> _Half | None:
    """Read the name of DoRA's lengths; None for other tensors."""
    found = _MAGNITUDE.fullmatch(name.removeprefix(_WRAPPER))
    if found is None:
        return None
    module = found["module"]
    return _Half(f"{module}.weight" if module else "weight", False, adapter=found["adapter"] or "")


def _plain(name: str) -> str:
    """What PEFT puts around a name, taken off."""
    parts = name.removeprefix(_WRAPPER).split(".")
    return ".".join(part for part in parts if part != _BASE)


def _pairs(halves: Mapping[str, _Half], plain: Mapping[str, str]) -> dict[str, _Pair]:
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
        first, second = halves[a], halves[seconds[name]]
        if first.table != second.table or first.adapter != second.adapter:
            raise TransferError(f"merge_lora: {a!r} and {seconds[name]!r} are of two adapters")
    return {name: _Pair(a, seconds[name], halves[a].table) for name, a in firsts.items()}


def _with_lengths(
    pairs: dict[str, _Pair], halves: Mapping[str, _Half], lengths: Mapping[str, _Half]
) -> dict[str, _Pair]:
    pairs = dict(pairs)
    for name, half in lengths.items():
        pair = pairs.get(half.weight)
        if pair is None:
            raise TransferError(
                f"merge_lora: {name!r} is the length of {half.weight!r}, which no factors change"
                f"{nearest(half.weight, pairs)}"
            )
        if pair.magnitude:
            raise TransferError(
                f"merge_lora: two adapters change {half.weight!r}, {pair.magnitude!r} and {name!r}; drop one with "
                "tt.weights.drop"
            )
        if half.adapter != halves[pair.a].adapter:
            raise TransferError(f"merge_lora: {pair.a!r} and {name!r} are of two adapters")
        pairs[half.weight] = pair._replace(magnitude=name)
    return pairs


def _fits(src: Tensors, base: str, pair: _Pair) -> None:
    a, b, table, magnitude = pair
    weight, first, second = src[base], src[a], src[b]
    for name in (base, a, b, *((magnitude,) if magnitude else ())):
        # One byte is no number that a change can be added to, a float8 neither: it has a scale somewhere else.
        if not src[name].is_floating_point() or src[name].element_size() < 2:
            raise TransferError(
                f"merge_lora: {name!r} is {shown(src[name])}, which is quantised or no weight: a change added to it "
                "would be rounded away; dequantise it first"
            )
    fits = weight.ndim >= 2 and min(first.ndim, second.ndim) >= 2 and second[0].numel() == first.shape[0] > 0
    if fits:
        change = (second.shape[0], first[0].numel())
        whole = (weight.shape[0], weight[0].numel()) if not table else (weight.shape[1], weight.shape[0])
        fits = change == whole
    if not fits:
        raise TransferError(
            f"merge_lora: {b!r} {shown(second)} times {a!r} {shown(first)} is no change of {base!r} {shown(weight)}"
        )

    if magnitude:
        length, wanted = src[magnitude], weight.shape[1 if table else 0]
        if length.numel() != wanted or length.shape.count(1) < length.ndim - 1:
            raise TransferError(
                f"merge_lora: {magnitude!r} {shown(length)} wanted {wanted} lengths for {base!r} {shown(weight)}"
            )


def _adder(scale: float | Tensor, table: bool) -> Callable[..., Tensor]:
    def add(weight: Tensor, a: Tensor, b: Tensor, length: Tensor | None = None) -> Tensor:
        change = scale * (b.flatten(1) @ a.flatten(1))
        change = (change.T if table else change).reshape(weight.shape)
        if length is None:
            return weight + change.to(weight.dtype)
        # The norm of half a million squares wants more than sixteen bits.
        dtype = torch.promote_types(torch.promote_types(weight.dtype, change.dtype), torch.float32)
        new = weight.to(dtype) + change.to(dtype)
        own = 1 if table else 0
        square = new.square().sum([axis for axis in range(new.ndim) if axis != own], keepdim=True)
        some = square > 0
        factor = length.to(dtype).reshape(square.shape) * torch.where(some, square, torch.ones_like(square)).rsqrt()
        return (factor * new).to(weight.dtype)

    return add
