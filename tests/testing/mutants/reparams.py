"""Wrong reparametrisations, each beside its right twin."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.testing.mutants._pair import Pair
from ttransfer.adapters import lora
from ttransfer.core._maps import Reparam
from ttransfer.core._types import Params

RANK, ALPHA = 2, 8.0


def example(dtype: torch.dtype = torch.float32) -> Params:
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (4, 3, 2, 2), "fc.weight": (3, 4), "fc.bias": (3,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def weights(params: Params) -> Params:
    return {name: p for name, p in params.items() if name.endswith(".weight")}


def wide(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


# LoRA: W + (alpha / r) B A.

LORA = lora(".*weight", rank=RANK, alpha=ALPHA)


def lora_init_of_both(generator: torch.Generator, params: Params) -> Params:
    delta = LORA.init(generator, params)
    for name in [name for name in delta if name.endswith(".lora_b")]:
        delta[name] = torch.empty_like(delta[name]).uniform_(-0.1, 0.1, generator=generator)
    return delta


def low_rank(new: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Reparam:
    def apply(base: Params, delta: Params) -> Params:
        changed = {n: new(w, delta[n + ".lora_a"], delta[n + ".lora_b"]) for n, w in weights(base).items()}
        return {**base, **changed}

    return Reparam(LORA.init, apply)


def unscaled(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return w + (b @ a).reshape(w.shape).to(w.dtype)


def instead(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (ALPHA / RANK * (b @ a)).reshape(w.shape).to(w.dtype)


def detached(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return w + (ALPHA / RANK * (b @ a)).detach().reshape(w.shape).to(w.dtype)


def transposed(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return w + (ALPHA / RANK * (a.mT @ b.mT)).reshape(w.shape).to(w.dtype)


def promoted(w: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return w + (ALPHA / RANK * (b @ a)).reshape(w.shape)


def lora_slowly(base: Params, delta: Params) -> Params:
    new = dict(base)
    for name, w in weights(base).items():
        a, b = delta[name + ".lora_a"], delta[name + ".lora_b"]
        change = sum(torch.outer(b[:, i], a[i]) for i in range(RANK)) * ALPHA / RANK
        new[name] = w + change.unflatten(1, w.shape[1:]).to(w.dtype)
    return new


# A prune mask that is learned: 1 where the score is positive, the sigmoid's slope on the way back.


def score_init(generator: torch.Generator, params: Params) -> Params:
    return {n + ".score": torch.ones_like(w, dtype=wide(w)) for n, w in weights(params).items()}


def prune(base: Params, delta: Params) -> Params:
    def mask(score: Tensor) -> Tensor:
        soft = score.sigmoid()
        return soft + ((score > 0).to(soft.dtype) - soft).detach()

    return {**base, **{n: w * mask(delta[n + ".score"]).to(w.dtype) for n, w in weights(base).items()}}


def prune_by_step(base: Params, delta: Params) -> Params:
    def mask(score: Tensor) -> Tensor:
        return (score > 0).to(score.dtype)

    return {**base, **{n: w * mask(delta[n + ".score"]).to(w.dtype) for n, w in weights(base).items()}}


# A soft mask beside which the base trains too.


def soft_prune(base: Params, delta: Params) -> Params:
    return {**base, **{n: w * delta[n + ".score"].sigmoid().to(w.dtype) for n, w in weights(base).items()}}


def soft_prune_of_constants(base: Params, delta: Params) -> Params:
    return {**base, **{n: w.detach() * delta[n + ".score"].sigmoid().to(w.dtype) for n, w in weights(base).items()}}


# LSQ: quantisation to four bits with a learned step.


def quant_init(generator: torch.Generator, params: Params) -> Params:
    steps = {n: 2 / 7**0.5 * w.to(wide(w)).abs().mean().clamp_min(1e-6) for n, w in weights(params).items()}
    return {n + ".step": step for n, step in steps.items()}


def quant(base: Params, delta: Params) -> Params:
    def level(x: Tensor) -> Tensor:
        x = x.clamp(-8, 7)
        return x + (x.round() - x).detach()

    steps = {n: delta[n + ".step"] for n in weights(base)}
    return {**base, **{n: (step * level(base[n] / step)).to(base[n].dtype) for n, step in steps.items()}}


def quant_by_round(base: Params, delta: Params) -> Params:
    def level(x: Tensor) -> Tensor:
        return x.clamp(-8, 7).round()

    steps = {n: delta[n + ".step"] for n in weights(base)}
    return {**base, **{n: (step * level(base[n] / step)).to(base[n].dtype) for n, step in steps.items()}}


# IA3: one factor for each output.


def ia3_init(generator: torch.Generator, params: Params) -> Params:
    return {n + ".ia3": torch.ones_like(w.flatten(1)[:, 0], dtype=wide(w)) for n, w in weights(params).items()}


def ia3(base: Params, delta: Params) -> Params:
    flat = {n: (w.flatten(1) * delta[n + ".ia3"][:, None]).to(w.dtype) for n, w in weights(base).items()}
    return {**base, **{n: w.reshape(base[n].shape) for n, w in flat.items()}}


def ia3_alone(base: Params, delta: Params) -> Params:
    flat = {n: (w.flatten(1) * delta[n + ".ia3"][:, None]).to(w.dtype) for n, w in weights(base).items()}
    return {n: w.reshape(base[n].shape) for n, w in flat.items()}


def ia3_slowly(base: Params, delta: Params) -> Params:
    scaled = {n: torch.stack([f * row for f, row in zip(delta[n + ".ia3"], w, strict=True)]) for n, w in base.items()
              if n in weights(base)}  # fmt: skip
    return {**base, **scaled}


# A difference for every parameter, and for the biases alone.


def diff_init(generator: torch.Generator, params: Params) -> Params:
    return {n + ".diff": torch.zeros_like(p, dtype=wide(p)) for n, p in params.items()}


def diff(base: Params, delta: Params) -> Params:
    return {n: (p + delta[n + ".diff"]).to(p.dtype) for n, p in base.items()}


def diff_and_own(base: Params, delta: Params) -> Params:
    return {**delta, **{n: (p + delta[n + ".diff"]).to(p.dtype) for n, p in base.items()}}


def bias_init(generator: torch.Generator, params: Params) -> Params:
    return {n + ".shift": torch.zeros_like(p, dtype=wide(p)) for n, p in params.items() if n.endswith("bias")}


def bias(base: Params, delta: Params) -> Params:
    return {n: p + delta[n + ".shift"].to(p.dtype) if n + ".shift" in delta else p for n, p in base.items()}


def bias_in_place(base: Params, delta: Params) -> Params:
    return {n: p.add_(delta[n + ".shift"].to(p.dtype)) if n + ".shift" in delta else p for n, p in base.items()}


# DoRA of one layer: the norm of each output's weights, and their direction.


def dora(axis: int) -> Reparam:
    adapt = lora("fc.weight", rank=RANK)

    def init(generator: torch.Generator, params: Params) -> Params:
        w = params["fc.weight"]
        return {**adapt.init(generator, params), "fc.weight.size": w.to(wide(w)).norm(dim=axis, keepdim=True)}

    def apply(base: Params, delta: Params) -> Params:
        change = delta["fc.weight.lora_b"] @ delta["fc.weight.lora_a"]
        towards = F.normalize(base["fc.weight"] + change, dim=axis)
        return {**base, "fc.weight": (delta["fc.weight.size"] * towards).to(base["fc.weight"].dtype)}

    return Reparam(init, apply)


def dora_slowly(base: Params, delta: Params) -> Params:
    moved = base["fc.weight"] + delta["fc.weight.lora_b"] @ delta["fc.weight.lora_a"]
    rows = [size * row / row.square().sum().sqrt() for size, row in zip(delta["fc.weight.size"], moved, strict=True)]
    return {**base, "fc.weight": torch.stack(rows)}


# OFT: a rotation of the outputs, by Cayley's map of a skew matrix.


def oft_init(generator: torch.Generator, params: Params) -> Params:
    n = params["fc.weight"].shape[0]
    return {"fc.weight.q": params["fc.weight"].new_zeros(n, n, dtype=wide(params["fc.weight"]))}


def rotated(w: Tensor, skew: Tensor) -> Tensor:
    one = torch.eye(skew.shape[0], dtype=skew.dtype, device=skew.device)
    return (torch.linalg.solve(one + skew, one - skew) @ w.to(skew.dtype)).to(w.dtype)


def oft(base: Params, delta: Params) -> Params:
    q = delta["fc.weight.q"]
    return {**base, "fc.weight": rotated(base["fc.weight"], (q - q.mT) / 2)}


def oft_of_any(base: Params, delta: Params) -> Params:
    q = delta["fc.weight.q"]
    return {**base, "fc.weight": rotated(base["fc.weight"], q / 2)}


def oft_slowly(base: Params, delta: Params) -> Params:
    skew = (delta["fc.weight.q"] - delta["fc.weight.q"].T) / 2
    one = torch.diag(torch.ones_like(skew[0]))
    return {**base, "fc.weight": (one - skew) @ torch.linalg.inv(one + skew) @ base["fc.weight"]}


STRAIGHT = "the gradient goes straight through a threshold, as if it were not there"


def pair(name: str, right: Reparam, wrong: Reparam, why: str, identity: bool = True, **known) -> Pair:
    given = known.get("example", example())
    excused = known.get("expected_failed_checks", {})
    return Pair(
        name,
        "reparam",
        right,
        wrong,
        why,
        given,
        {"identity": identity},
        known.get("reference"),
        expected_failed_checks=excused,
    )


PAIRS: tuple[Pair, ...] = (
    pair("lora-both-factors-random", LORA, Reparam(lora_init_of_both, LORA.apply),
         "Both factors drawn as a linear layer's weight: the net changes before the first step."),
    pair("lora-scale-dropped", LORA, low_rank(unscaled),
         "ZhiJian's LoRA has no alpha / rank: learning rates from elsewhere do not carry over.", reference=lora_slowly),
    pair("lora-replaces-the-weight", LORA, low_rank(instead),
         "The change is returned where the changed weight was meant."),
    pair("lora-change-detached", LORA, low_rank(detached),
         "A detach meant for the base covers the sum: nothing trains, and nothing says so."),
    pair("lora-transposed-before-reshape", LORA, low_rank(transposed),
         "A^T B^T, as for x @ W, fits a reshape to any weight's shape.", reference=lora_slowly),
    pair("lora-widens-half-weights", LORA, low_rank(promoted),
         "float32 factors make a bfloat16 weight float32, and the layer refuses its input.",
         example=example(torch.bfloat16)),
    pair("mask-without-gradient", Reparam(score_init, prune), Reparam(score_init, prune_by_step),
         "A comparison has no gradient: the scores stay as they were drawn.",
         expected_failed_checks={"gradcheck": STRAIGHT}),
    pair("mask-cuts-the-base", Reparam(score_init, soft_prune, True),
         Reparam(score_init, soft_prune_of_constants, True),
         "Copied from a map whose base is frozen, into one whose base trains.", identity=False),
    pair("rounding-without-straight-through", Reparam(quant_init, quant, True),
         Reparam(quant_init, quant_by_round, True),
         "round() has gradient 0 everywhere, so that quantisation-aware training trains nothing.", identity=False,
         expected_failed_checks={"gradcheck": STRAIGHT, "gradcheck-input": STRAIGHT}),
    pair("names-lost", Reparam(ia3_init, ia3), Reparam(ia3_init, ia3_alone),
         "Returns what it changed, and leaves the biases to somebody else.", reference=ia3_slowly),
    pair("names-added", Reparam(diff_init, diff), Reparam(diff_init, diff_and_own),
         "Hands its own parameters on as if they were the net's."),
    pair("base-shifted-in-place", Reparam(bias_init, bias), Reparam(bias_init, bias_in_place),
         "As merging does in module code: the base moves at every forward."),
    pair("dora-norm-of-columns", dora(1), dora(0),
         "The paper writes W as (in, out) and norms its columns; torch's weight is (out, in).", reference=dora_slowly),
    pair("oft-of-a-matrix-that-is-not-skew", Reparam(oft_init, oft), Reparam(oft_init, oft_of_any),
         "Cayley's map gives a rotation of skew matrices only; at the start, 0, both are the identity.",
         reference=oft_slowly),
)  # fmt: skip
