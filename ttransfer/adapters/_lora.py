"""Low-rank adaptation of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, nearest
from ttransfer.core._maps import Reparam
from ttransfer.core._tree import filter
from ttransfer.core._types import Params

_A, _B = ".lora_a", ".lora_b"


def lora(pattern: str, *, rank: int = 8, alpha: float | Tensor | None = None) -> Reparam:
    r"""Train a low-rank change of the matching weights, and leave the weights themselves.

    .. math:: W' = W + \frac{\alpha}{r} B A, \qquad B \in R^{out \times r}, \; A \in R^{r \times rest}

    B starts at 0, so that nothing changes at the start; A starts uniform in ±1/√rest. A convolution's weight
    (out, in, h, w) counts as the matrix (out, in·h·w).

    Args:
        pattern: a regular expression for the whole name, such as ".*qkv.weight"; of the parameters that it
            matches, those with at least two axes are adapted.
        rank: r >= 1.
        alpha: α; None takes the rank, so that the change is BA itself.

    Returns:
        A `Reparam` whose parameters are f"{name}.lora_a" (r, rest) and f"{name}.lora_b" (out, r), in float32,
        or float64 where the weight is.

    Raises:
        TransferError: for a rank below 1; at init, if the pattern matches no weight, with the nearest names;
            at apply, for parameters that belong to no weight.

    Example:
        >>> import torch, ttransfer as tt
        >>> base = {"fc.weight": torch.ones(3, 4), "fc.bias": torch.ones(3)}
        >>> adapt = tt.adapters.lora("fc.*", rank=2)
        >>> delta = adapt.init(torch.Generator().manual_seed(0), base)
        >>> {name: tuple(p.shape) for name, p in delta.items()}
        {'fc.weight.lora_a': (2, 4), 'fc.weight.lora_b': (3, 2)}
        >>> torch.equal(adapt.apply(base, delta)["fc.weight"], base["fc.weight"])
        True

    References:
        Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen.
        LoRA: Low-Rank Adaptation of Large Language Models. 2021.
    """
    if rank < 1:
        raise TransferError(f"lora: wanted a rank of at least 1, got {rank}")
    scale = 1.0 if alpha is None else alpha / rank

    def init(generator: torch.Generator, params: Params) -> Params:
        delta: Params = {}
        for name, weight in _targets(pattern, params).items():
            dtype = torch.promote_types(weight.dtype, torch.float32)
            a = torch.empty(rank, weight[0].numel(), dtype=dtype, device=generator.device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            delta[name + _A] = a.to(weight.device)
            delta[name + _B] = torch.zeros(weight.shape[0], rank, dtype=dtype, device=weight.device)
        return delta

    def apply(base: Params, delta: Params) -> Params:
        changed: Params = {}
        for key, a in delta.items():
            name = key.removesuffix(_A)
            if name == key:
                continue
            if name not in base:
                raise TransferError(f"lora: {key!r} belongs to no parameter{nearest(name, base)}")
            change = scale * (delta[name + _B] @ a)
            changed[name] = base[name] + change.reshape(base[name].shape).to(base[name].dtype)
        return {**base, **changed}

    return Reparam(init, apply)


def _targets(pattern: str, params: Params) -> Params:
    matched = filter(params, pattern)
    targets = {name: p for name, p in matched.items() if p.ndim >= 2 and p.is_floating_point()}
    if not targets:
        weights = [name for name, p in params.items() if p.ndim >= 2]
        first = next(iter(matched))
        raise TransferError(
            f"lora: pattern {pattern!r} matches {len(matched)} parameters, none with two axes "
            f"(the first is {first!r} {tuple(matched[first].shape)}){nearest(first, weights)}"
        )
    return targets
