"""Wrong adapters, each beside its right twin."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.testing.mutants._pair import Pair
from ttransfer.adapters import linear, mlp
from ttransfer.core._maps import Adapter
from ttransfer.core._types import Params

Init = Callable[[torch.Generator, Tensor], Params]
Start = Callable[..., Tensor]


def example(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def drawn(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    bound = 1 / math.sqrt(shape[-1])
    weight = torch.empty(shape, dtype=like.dtype, device=generator.device)
    return weight.uniform_(-bound, bound, generator=generator)


def zeros(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=generator.device)


def ones(generator: torch.Generator, like: Tensor, *shape: int) -> Tensor:
    return torch.ones(shape, dtype=like.dtype, device=generator.device)


# A bottleneck with a residual connection, x + U gelu(D x).


def bottleneck(down: Start, up: Start) -> Adapter:
    def init(generator: torch.Generator, like: Tensor) -> Params:
        d = like.shape[-1]
        return {"down": down(generator, like, 2, d), "up": up(generator, like, d, 2)}

    return Adapter(init, lambda p, x: x + F.linear(F.gelu(F.linear(x, p["down"])), p["up"]))


# A gated branch, x + g tanh(W x), with g = 0 at the start.


def gated(weight: Start) -> Adapter:
    def init(generator: torch.Generator, like: Tensor) -> Params:
        d = like.shape[-1]
        return {"weight": weight(generator, like, d, d), "gate": zeros(generator, like, d)}

    return Adapter(init, lambda p, x: x + p["gate"] * F.linear(x, p["weight"]).tanh())


# AdaptFormer: a branch at a tenth beside the identity.


def branch_init(generator: torch.Generator, like: Tensor) -> Params:
    d = like.shape[-1]
    return {"down": drawn(generator, like, 3, d), "up": drawn(generator, like, d, 3)}


def branch(params: Params, x: Tensor) -> Tensor:
    return x + 0.1 * F.linear(F.linear(x, params["down"]).tanh(), params["up"])


def branch_alone(params: Params, x: Tensor) -> Tensor:
    return 0.1 * F.linear(F.linear(x, params["down"]).tanh(), params["up"])


def branch_slowly(params: Params, x: Tensor) -> Tensor:
    return torch.stack([row + 0.1 * params["up"] @ (params["down"] @ row).tanh() for row in x])


# Scale and shift of every feature.


def scale_init(generator: torch.Generator, like: Tensor) -> Params:
    d = like.shape[-1]
    return {"scale": ones(generator, like, d), "shift": zeros(generator, like, d)}


def scale(params: Params, x: Tensor) -> Tensor:
    return x * params["scale"] + params["shift"]


def scale_made_anew(params: Params, x: Tensor) -> Tensor:
    scale, shift = torch.ones_like(params["scale"]), torch.zeros_like(params["shift"])
    return x * scale + shift


# What `init` draws from.


def linear_by_module(generator: torch.Generator, like: Tensor) -> Params:
    layer = nn.Linear(like.shape[-1], 3, dtype=torch.promote_types(like.dtype, torch.float32))
    return {"weight": layer.weight.detach(), "bias": layer.bias.detach()}


def mlp_by_own_seed(generator: torch.Generator, like: Tensor) -> Params:
    return mlp(5, out=2).init(torch.Generator().manual_seed(0), like)


def glu_init(generator: torch.Generator, like: Tensor) -> Params:
    return {name: drawn(generator, like, 3, like.shape[-1]) for name in ("value", "gate")}


def glu_init_of_one(generator: torch.Generator, like: Tensor) -> Params:
    return dict.fromkeys(("value", "gate"), drawn(generator, like, 3, like.shape[-1]))


def glu(params: Params, x: Tensor) -> Tensor:
    return F.linear(x, params["value"]) * F.linear(x, params["gate"]).sigmoid()


def shift_init(generator: torch.Generator, like: Tensor) -> Params:
    return {"shift": zeros(generator, like, like.shape[-1])}


def shift_init_by_data(generator: torch.Generator, like: Tensor) -> Params:
    return {"shift": -like.mean(tuple(range(like.ndim - 1)))}


def shift(params: Params, x: Tensor) -> Tensor:
    return x + params["shift"]


def shift_in_place(params: Params, x: Tensor) -> Tensor:
    x += params["shift"]
    return x


# Maps (n, c, h, w).


def channel_init(generator: torch.Generator, like: Tensor) -> Params:
    return {"scale": ones(generator, like, like.shape[1])}


def channel(params: Params, x: Tensor) -> Tensor:
    return x * params["scale"][:, None, None]


def channel_on_width(params: Params, x: Tensor) -> Tensor:
    return x * params["scale"]


def channel_slowly(params: Params, x: Tensor) -> Tensor:
    return torch.stack([params["scale"][c] * x[:, c] for c in range(x.shape[1])], 1)


def mix_init(generator: torch.Generator, like: Tensor) -> Params:
    return {"weight": zeros(generator, like, like.shape[1], like.shape[1])}


def mix(params: Params, x: Tensor) -> Tensor:
    tokens = x.flatten(2).mT
    return x + F.linear(tokens, params["weight"]).mT.reshape(x.shape)


def mix_reshaped(params: Params, x: Tensor) -> Tensor:
    tokens = x.reshape(x.shape[0], -1, x.shape[1])
    return x + F.linear(tokens, params["weight"]).mT.reshape(x.shape)


def mix_slowly(params: Params, x: Tensor) -> Tensor:
    return x + F.conv2d(x, params["weight"][:, :, None, None])


# Normalisation.


def norm_init(generator: torch.Generator, like: Tensor) -> Params:
    return {"weight": ones(generator, like, like.shape[-1])}


def norm(params: Params, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return params["weight"] * centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def norm_over_batch(params: Params, x: Tensor) -> Tensor:
    centred = x - x.mean(0, keepdim=True)
    return params["weight"] * centred * (centred.square().mean(0, keepdim=True) + 1e-5).rsqrt()


def rms(params: Params, x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return (params["weight"] * wide).to(x.dtype)


def rms_in_single(params: Params, x: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return (params["weight"] * wide).to(x.dtype)


# Tokens (n, t, d).


def prompt_init(generator: torch.Generator, like: Tensor) -> Params:
    return {"prompt": drawn(generator, like, 2, like.shape[-1])}


def prompt(params: Params, x: Tensor) -> Tensor:
    return torch.cat([params["prompt"].expand(x.shape[0], -1, -1), x], 1)


def prompt_over_tokens(params: Params, x: Tensor) -> Tensor:
    return torch.cat([params["prompt"].expand(x.shape[0], -1, -1), x[:, 2:]], 1)


def prompt_slowly(params: Params, x: Tensor) -> Tensor:
    return torch.stack([torch.stack([*params["prompt"], *tokens]) for tokens in x])


def dropped(params: Params, x: Tensor) -> Tensor:
    return x + F.linear(F.dropout(F.linear(x, params["down"]).tanh(), 0.1, training=False), params["up"])


def dropped_always(params: Params, x: Tensor) -> Tensor:
    return x + F.linear(F.dropout(F.linear(x, params["down"]).tanh(), 0.1), params["up"])


def pair(
    name: str, right: Adapter, wrong: Init | Callable[[Params, Tensor], Tensor] | Adapter, why: str, x: Tensor, **known
) -> Pair:
    if not isinstance(wrong, Adapter):
        wrong = Adapter(right.init, wrong)
    return Pair(name, "adapter", right, wrong, why, x, known.get("tags", {}), known.get("reference"))


IDENTITY = {"identity": True}
ROWS = {"rows_apart": True}
VECTORS, TOKENS = example(4, 6), example(2, 5, 4)

PAIRS: tuple[Pair, ...] = (
    pair("bottleneck-starts-off-the-identity", bottleneck(drawn, zeros), bottleneck(drawn, drawn),
         "ZhiJian's Adapter draws both projections (Xavier), so that the net's output jumps at the start.",
         VECTORS, tags=IDENTITY),
    pair("gate-and-weight-both-zero", gated(drawn), gated(zeros),
         "Zero is right for one factor; with both at zero each waits for the other and neither ever moves.",
         VECTORS, tags=IDENTITY),
    pair("residual-dropped", Adapter(branch_init, branch), branch_alone,
         "A parallel adapter pasted in series: the x + is in the caller's code in one place and here in another.",
         VECTORS, reference=branch_slowly),
    pair("scale-made-in-apply", Adapter(scale_init, scale), scale_made_anew,
         "ZhiJian's SSF makes its Parameters inside forward: the optimizer trains others that nothing reads.",
         TOKENS, tags=IDENTITY),
    pair("init-from-the-global-generator", linear(3), Adapter(linear_by_module, linear(3).apply),
         "nn.Linear is the shortest way to an initial weight, and draws from torch's global generator.", VECTORS),
    pair("init-with-a-seed-of-its-own", mlp(5, out=2), Adapter(mlp_by_own_seed, mlp(5, out=2).apply),
         "Made reproducible while debugging and left so: all members of an ensemble start alike.", VECTORS),
    pair("layers-share-one-tensor", Adapter(glu_init, glu), Adapter(glu_init_of_one, glu),
         "dict.fromkeys evaluates its value once.", VECTORS),
    pair("init-reads-the-features", Adapter(shift_init, shift), Adapter(shift_init_by_data, shift),
         "ActNorm starts from the first batch; here init gets a shape, on the meta device.", VECTORS),
    pair("adds-in-place", Adapter(shift_init, shift), shift_in_place,
         "x += b looks like x = x + b, and changes the backbone's feature for everybody who taps it.",
         example(4, 6), tags={**IDENTITY, **ROWS}),
    pair("scale-on-the-width", Adapter(channel_init, channel), channel_on_width,
         "LayerScale written for channels last, on a map with channels first; square maps hide it.",
         example(3, 4, 4, 4), tags=IDENTITY, reference=channel_slowly),
    pair("map-reshaped-to-tokens", Adapter(mix_init, mix), mix_reshaped,
         "reshape(n, h * w, c) has the shape of flatten(2).mT and other numbers in it.",
         example(2, 3, 4, 2), tags=IDENTITY, reference=mix_slowly),
    pair("norm-over-the-batch", Adapter(norm_init, norm), norm_over_batch,
         "The axis of a batch norm in a layer norm: a row's result depends on the rows beside it.",
         example(4, 3), tags=ROWS, reference=lambda p, x: F.layer_norm(x, x.shape[-1:], p["weight"])),
    pair("norm-in-single-precision", Adapter(norm_init, rms), rms_in_single,
         "LLaMA's RMSNorm casts with .float(): wider for bfloat16, narrower for float64.", TOKENS),
    pair("prompt-over-the-first-tokens", Adapter(prompt_init, prompt), prompt_over_tokens,
         "ZhiJian's VPT-deep replaces the prompts of the layer before; in the first layer there are none.",
         TOKENS, reference=prompt_slowly),
    pair("dropout-always-on", Adapter(branch_init, dropped), dropped_always,
         "F.dropout has training=True as its default, unlike nn.Dropout in eval mode.", VECTORS),
)  # fmt: skip
