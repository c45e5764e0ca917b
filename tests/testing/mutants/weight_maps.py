"""Wrong weight maps, each beside its right twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.testing.mutants._pair import Pair
from ttransfer.core._maps import Made, Plan, WeightMap
from ttransfer.core._types import Params
from ttransfer.weights import match, rename

Tensors = Mapping[str, Tensor]
Names = Callable[[Tensors, Tensors], dict[str, str]]


def example(**shapes: tuple[int, ...]) -> Params:
    """Draw tensors; two underscores stand for a dot."""
    generator = torch.Generator().manual_seed(len(shapes))
    return {name.replace("__", "."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def plan_of(copied: dict[str, str], src: Tensors, like: Tensors) -> Plan:
    used = set(copied.values())
    made = {name: Made((source,)) for name, source in copied.items()}
    missing = tuple(n for n in like if n not in copied)
    return Plan(made, missing=missing, unused=dict.fromkeys((n for n in src if n not in used), ""))


def mapped(names: Names, change: Callable[[str, Tensor, Tensor], Tensor] = lambda name, old, like: old) -> WeightMap:
    """Fill each target from the source that `names` gives it, changed; others stay as they are."""

    def apply(src: Tensors, like: Tensors) -> Params:
        via = names(src, like)
        return {n: change(n, src[via[n]], like[n]) if n in via else like[n] for n in like}

    return WeightMap(apply, lambda src, like: plan_of(names(src, like), src, like))


def same(src: Tensors, like: Tensors) -> dict[str, str]:
    return {name: name for name in like if name in src}


# What does not fit, or is not wanted.


def fitting(src: Tensors, like: Tensors) -> dict[str, str]:
    return {name: name for name in like if name in src and src[name].shape == like[name].shape}


def plan_without_the_rest(src: Tensors, like: Tensors) -> Plan:
    return plan_of(fitting(src, like), src, like)._replace(missing=())


def no_counters(src: Tensors, like: Tensors) -> dict[str, str]:
    return {name: via for name, via in same(src, like).items() if not name.endswith("num_batches_tracked")}


def body(src: Tensors, like: Tensors) -> Params:
    return {name: old for name, old in src.items() if not name.startswith("head.")}


def body_by_pop(src: Any, like: Tensors) -> Params:
    for name in [name for name in src if name.startswith("head.")]:
        src.pop(name)
    return dict(src)


def body_plan(src: Tensors, like: Tensors) -> Plan:
    return plan_of({name: name for name in body(src, like)}, src, like)


def changed_ones(src: Tensors, like: Tensors) -> Plan:
    return plan_of({name: name for name in same(src, like) if not torch.equal(src[name], like[name])}, src, like)


def head_drawn(src: Tensors, like: Tensors) -> Params:
    return {name: src[name] if name in src else 0.02 * torch.randn_like(like[name]) for name in like}


# Names.


def by_position(src: Tensors, like: Tensors) -> dict[str, str]:
    return dict(zip(like, src, strict=False))


def all_of(names: Callable[[str], str]) -> WeightMap:
    """Give every source tensor another name."""

    def plan(src: Tensors, like: Tensors) -> Plan:
        return plan_of({names(old): old for old in src}, src, like)

    return WeightMap(lambda src, like: {names(old): tensor for old, tensor in src.items()}, plan)


def renamed_to_float(src: Tensors, like: Tensors) -> Params:
    return {name: tensor.float() for name, tensor in rename({"backbone": "net"}).apply(src, like).items()}


# Values.


def towards(name: str, old: Tensor, like: Tensor) -> Tensor:
    return torch.lerp(like, old, 0.3)


@torch.no_grad()
def towards_without_grad(name: str, old: Tensor, like: Tensor) -> Tensor:
    return torch.lerp(like, old, 0.3)


def turned(name: str, old: Tensor, like: Tensor) -> Tensor:
    return old.mT if old.ndim == 2 and old.shape != like.shape else old


def turned_if_it_fits(name: str, old: Tensor, like: Tensor) -> Tensor:
    return old.mT if old.ndim == 2 and old.mT.shape == like.shape else old


def grey(name: str, old: Tensor, like: Tensor) -> Tensor:
    return old.sum(1, keepdim=True) if name == "conv1.weight" else old


def grey_by_mean(name: str, old: Tensor, like: Tensor) -> Tensor:
    return old.mean(1, keepdim=True) if name == "conv1.weight" else old


def grey_slowly(src: Tensors, like: Tensors) -> Params:
    return {**src, "conv1.weight": torch.stack([sum(filters.unbind()) for filters in src["conv1.weight"]])[:, None]}


def inflated(name: str, old: Tensor, like: Tensor) -> Tensor:
    if old.ndim != 4:
        return old
    frames = like.shape[2]
    return (old / frames)[:, :, None].repeat(1, 1, frames, 1, 1)


def inflated_in_place(name: str, old: Tensor, like: Tensor) -> Tensor:
    if old.ndim != 4:
        return old
    frames = like.shape[2]
    return old.div_(frames)[:, :, None].repeat(1, 1, frames, 1, 1)


def size_of(tokens: Tensor) -> int:
    return round((tokens.shape[1] - 1) ** 0.5)


def stretch(n: int, tokens: Tensor) -> Tensor:
    """Weights (n, old n) of linear interpolation between the centres of cells."""
    old = torch.arange(size_of(tokens), dtype=tokens.dtype, device=tokens.device)
    new = torch.arange(n, dtype=tokens.dtype, device=tokens.device)
    at = ((new + 0.5) * (len(old) / n) - 0.5).clamp(0, len(old) - 1)
    return (1 - (at[:, None] - old).abs()).clamp_min(0)


def resized(name: str, old: Tensor, like: Tensor) -> Tensor:
    if name != "pos_embed" or old.shape == like.shape:
        return old
    grid, by = old[:, 1:].mT.unflatten(2, (size_of(old), -1)), stretch(size_of(like), old)
    return torch.cat([old[:, :1], (by @ grid @ by.mT).flatten(2).mT], 1)


def resized_as_it_lies(name: str, old: Tensor, like: Tensor) -> Tensor:
    if name != "pos_embed" or old.shape == like.shape:
        return old
    grid, by = old[:, 1:].reshape(len(old), -1, size_of(old), size_of(old)), stretch(size_of(like), old)
    return torch.cat([old[:, :1], (by @ grid @ by.mT).flatten(2).mT], 1)


def resized_slowly(src: Tensors, like: Tensors) -> Params:
    old, n = src["pos_embed"], size_of(like["pos_embed"])
    grid = torch.stack([row.mT.reshape(old.shape[2], size_of(old), size_of(old)) for row in old[:, 1:]])
    grid = F.interpolate(grid, (n, n), mode="bilinear", align_corners=False)
    return {**src, "pos_embed": torch.cat([old[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)}


def pair(name: str, right: WeightMap, wrong: WeightMap, why: str, src: Params, like: Params, reference=None) -> Pair:
    return Pair(name, "weight_map", right, wrong, why, (src, like), reference=reference)


NET = {"body__weight": (3, 2), "body__bias": (3,)}
COUNTED = {
    "backbone.weight": example(w=(3, 2))["w"],
    "backbone.running_mean": example(w=(3,))["w"],
    "backbone.num_batches_tracked": torch.tensor(70),
}
COUNTED_LIKE = {name.replace("backbone", "net"): torch.zeros_like(tensor) for name, tensor in COUNTED.items()}

PAIRS: tuple[Pair, ...] = (
    pair("mismatch-skipped-silently", match(allow="fc.*"), WeightMap(mapped(fitting).apply, plan_without_the_rest),
         "e2eAIOK and ZhiJian copy what fits and do not say what did not, a typing error included.",
         example(**NET, fc__weight=(7, 3)), example(**NET, fc__weight=(2, 3))),
    pair("plan-promises-what-is-left-out", mapped(no_counters), WeightMap(mapped(no_counters).apply, mapped(same).plan),
         "A filter was added to apply (num_batches_tracked, as e2eAIOK skips it) and the plan forgotten.",
         {name.replace("backbone", "net"): tensor for name, tensor in COUNTED.items()}, COUNTED_LIKE),
    pair("old-head-popped-from-the-source", WeightMap(body, body_plan), WeightMap(body_by_pop, body_plan),
         "As in many a checkpoint filter: the second net that is filled from the same dict finds no head.",
         example(**NET, head__weight=(7, 3)), example(**NET)),
    pair("plan-looks-at-values", mapped(same), WeightMap(mapped(same).apply, changed_ones),
         "A plan that lists real changes only reads the tensors, and a dry run has none.",
         example(**NET), example(body__bias=(3,), body__weight=(3, 2), head=(1,))),
    pair("new-head-drawn-in-apply", mapped(same), WeightMap(head_drawn, mapped(same).plan),
         "A new head is drawn where it is missed: from the global generator, differently at every call.",
         example(**NET), example(**NET, head__weight=(2, 3))),
    pair("paired-by-position", mapped(same), mapped(by_position),
         "zip(source.values(), target.values()), as when the names differ; it works until somebody sorts them.",
         example(q__weight=(3, 3), k__weight=(3, 3), v__weight=(3, 3)),
         example(k__weight=(3, 3), v__weight=(3, 3), q__weight=(3, 3))),
    pair("prefix-stripped-everywhere", rename({"module.net": "net"}), all_of(lambda name: name.replace("module.", "")),
         "str.replace also hits a submodule called module; two tensors get one name and the last wins.",
         example(module__net__weight=(3, 2), module__net__module__weight=(3, 2)),
         example(net__weight=(3, 2), net__module__weight=(3, 2))),
    pair("counters-made-float", rename({"backbone": "net"}),
         WeightMap(renamed_to_float, rename({"backbone": "net"}).plan),
         ".float() on a whole checkpoint, for half weights: counters and float64 tensors go with them.",
         COUNTED, COUNTED_LIKE),
    pair("interpolated-without-gradient", mapped(same, towards), mapped(same, towards_without_grad),
         "WiSE-FT is written for evaluation; as a map that is learned through, no_grad makes it a constant.",
         example(**NET), example(body__bias=(3,), body__weight=(3, 2))),
    pair("square-matrix-transposed", mapped(same, turned), mapped(same, turned_if_it_fits),
         "Asks whether the transpose fits before whether the tensor does: square weights are turned.",
         example(a__weight=(3, 3), b__weight=(2, 3), bias=(3,)),
         example(a__weight=(3, 3), b__weight=(3, 2), bias=(3,))),
    pair("input-channels-averaged", mapped(same, grey), mapped(same, grey_by_mean),
         "A grey picture stands for three equal channels, so that the filters add up (timm); mean divides by 3.",
         example(conv1__weight=(4, 3, 2, 2), conv1__bias=(4,)), example(conv1__weight=(4, 1, 2, 2), conv1__bias=(4,)),
         grey_slowly),
    pair("inflated-in-place", mapped(same, inflated), mapped(same, inflated_in_place),
         "I3D's division by the number of frames, done on the checkpoint: each further use divides again.",
         example(conv__weight=(4, 3, 2, 2), bias=(4,)), example(conv__weight=(4, 3, 5, 2, 2), bias=(4,))),
    pair("position-grid-not-permuted", mapped(same, resized), mapped(same, resized_as_it_lies),
         "reshape(1, d, h, w) of tokens (1, h * w, d): the shape is right, the axes are mixed.",
         example(pos_embed=(1, 10, 4)), example(pos_embed=(1, 26, 4)), resized_slowly),
)  # fmt: skip
