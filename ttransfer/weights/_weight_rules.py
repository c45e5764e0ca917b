"""How channels go through operations with weights, and through attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer.weights._rules import join, reduced
from ttransfer.weights._tracing import Operation, Rule, Seen
from ttransfer.weights._variables import CONSTANT, POSITION, compact, varying

__all__ = ["WEIGHT_RULES"]


def _through(op: Operation, seen: Seen, axis: int, into: Tensor | None, out: Tensor | None, bias: Any) -> Tensor:
    """A weight's input axis and output axis at one axis of an activation; returns the result's labels."""
    axis %= len(seen.shape)
    channels = op.match(seen, axis, into)
    if out is None:
        raise op.refuse("is given a weight that is computed, not a parameter or buffer")
    variables = op.trace.variables
    _bias(op, bias, out)
    if not channels:  # a weight along positions: what else varies goes through
        variables.pin(out)
        return torch.where(seen.labels == CONSTANT, POSITION, seen.labels).narrow(axis, 0, 1)
    return out.reshape(-1, *(1,) * (len(seen.shape) - axis - 1)).expand(*(1,) * axis, *(-1,) * (len(seen.shape) - axis))


def linear(op: Operation, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    into, out = op.trace.axis(weight, -1, reads=True), op.trace.axis(weight, 0)
    op.give(_through(op, op.trace.see(input), -1, into, out, bias))


def convolution(
    op: Operation,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    _convolve(op, input, weight, bias, groups, transposed=False)


def transposed_convolution(
    op: Operation,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> None:
    _convolve(op, input, weight, bias, groups, transposed=True)


def _convolve(op: Operation, input: Tensor, weight: Tensor, bias: Any, groups: int, *, transposed: bool) -> None:
    seen, variables = op.trace.see(input), op.trace.variables
    at = input.ndim - weight.ndim + 1  # a convolution also takes one example without a batch
    if groups == 1:
        axes = (0, 1) if transposed else (1, 0)
        into, out = op.trace.axis(weight, axes[0], reads=True), op.trace.axis(weight, axes[1])
        labels = _through(op, seen, at, into, out, bias)
        if labels.shape[at] == 1 and labels.numel() > 1:  # it mixes places along which channels run
            variables.pin(labels)
            labels = torch.full_like(labels, POSITION)
        op.give(labels)
        return
    each = input.shape[at] // groups
    many = op.out.shape[at] // groups
    if transposed or each > 1:
        op.give(_grouped(op, seen, at, weight, bias, groups, each, many, transposed=transposed))
        return
    # Each channel has filters of its own, which are one with it.
    out = op.trace.axis(weight, 0)
    if not op.match(seen._replace(labels=_repeated(seen, at, many)), at, out):
        variables.pin(seen.labels)
    assert out is not None  # else there was no match
    _bias(op, bias, out)
    op.give(out.reshape(-1, *(1,) * (input.ndim - at - 1)).expand(*(1,) * at, *(-1,) * (input.ndim - at)))


def _grouped(
    op: Operation, seen: Seen, at: int, weight: Any, bias: Any, groups: int, each: int, many: int, *, transposed: bool
) -> Tensor:
    """Groups share the axis of the weight that counts within a group: places in it are one, in all groups."""
    variables = op.trace.variables
    rows, columns = op.trace.axis(weight, 0, reads=transposed), op.trace.axis(weight, 1, reads=not transposed)
    if rows is None or columns is None:
        raise op.refuse("is given a weight that is computed, not a parameter or buffer")
    if transposed and each == 1:
        # Each channel has filters of its own, which are one with it; the axis that counts them is no channels'.
        op.trace.reads.discard((op.trace.named(weight) or "", 0))
        op.match(seen, at, rows)
        variables.pin(columns)
        out = rows.repeat_interleave(many)
    elif transposed:
        variables.same(rows.reshape(groups, each), rows[:each])
        op.match(seen, at, rows)
        out = columns.repeat(groups)
    else:
        variables.same(rows.reshape(groups, many), rows[:many])
        op.match(seen, at, columns.repeat(groups))
        out = rows
    out = variables.of(out)
    _bias(op, bias, out)
    rest = len(seen.shape) - at - 1
    return out.reshape(-1, *(1,) * rest).expand(*(1,) * at, *(-1,) * (rest + 1))


def _repeated(seen: Seen, at: int, many: int) -> Tensor:
    labels = seen.labels
    return labels if labels.shape[at] == 1 else labels.repeat_interleave(many, dim=at)


def _bias(op: Operation, bias: Any, out: Tensor) -> None:
    if isinstance(bias, Tensor):
        op.match(Seen(out, out.shape), 0, op.vector(bias))


def embedding(op: Operation, input: Tensor, weight: Tensor, *more: Any, **options: Any) -> None:
    rows, columns = op.trace.axis(weight, 0), op.trace.axis(weight, 1)
    if rows is None or columns is None:
        raise op.refuse("is given a weight that is computed, not a parameter or buffer")
    op.trace.variables.pin(rows)
    op.give(columns.expand(*(1,) * input.ndim, -1))


def prelu(op: Operation, input: Tensor, weight: Tensor) -> None:
    seen = op.trace.see(input)
    if weight.numel() > 1:
        op.match(seen, 1, op.vector(weight))
    op.trace.touch([seen.labels])
    op.give(seen.labels)


def matmul(op: Operation, input: Tensor, other: Tensor) -> None:
    trace = op.trace
    if trace.named(other) is not None and other.ndim == 2:
        into, out = trace.axis(other, 0, reads=True), trace.axis(other, 1)
        op.give(_through(op, trace.see(input), -1, into, out, None))
    elif trace.named(input) is not None and input.ndim == 2 and other.ndim > 1:
        into, out = trace.axis(input, 1, reads=True), trace.axis(input, 0)
        op.give(_through(op, trace.see(other), -2, into, out, None))
    elif input.ndim < 2 or other.ndim < 2:
        raise op.refuse("is given a vector")
    else:
        op.give(_product(op, trace.see(input), trace.see(other)).labels)


def addmm(op: Operation, input: Tensor, mat1: Tensor, mat2: Tensor) -> None:
    into, out = op.trace.axis(mat2, 0, reads=True), op.trace.axis(mat2, 1)
    op.give(_through(op, op.trace.see(mat1), -1, into, out, input))


def _product(op: Operation, a: Seen, b: Seen) -> Seen:
    """Two activations multiplied, over the last axis of one and the last but one of the other."""
    ndim = max(len(a.shape), len(b.shape))
    a, b = (_aligned(x, ndim) for x in (a, b))
    shape = torch.Size([*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]])
    last, inner = ndim - 1, ndim - 2
    sums = a.labels.shape[last] > 1, b.labels.shape[inner] > 1
    if any(sums) and not all(sums):
        # Along it one has channels and the other has none: it sees each where it stands.
        (side,) = (x.labels for x, has in zip((a, b), sums, strict=True) if has)
        op.trace.variables.pin(side)
        a, b = (Seen(compact(op.trace.variables.of(x.labels)), x.shape) for x in (a, b))
    elif all(sums):
        # (..., rows, 1, m) beside (..., 1, columns, m): what is multiplied is one, and the sum is of all m.
        both = join(op, Seen(a.labels.unsqueeze(-2), torch.Size([*a.shape[:-1], 1, a.shape[-1]])), _columns(b))
        return Seen(compact(reduced(op, both.labels, (ndim,)).squeeze(-1)), shape)
    rows, columns = a.labels.shape[inner] > 1, b.labels.shape[last] > 1
    if rows and columns:
        raise op.refuse("makes a table of channels by channels")
    if rows:
        return Seen(_weighted(op, a, b), shape)
    if columns:
        return Seen(_weighted(op, b, a), shape)
    one, other = (Seen(x.labels[..., :1, :1], torch.Size([*x.shape[:-2], 1, 1])) for x in (a, b))
    return Seen(join(op, one, other).labels, shape)


def _columns(b: Seen) -> Seen:
    return Seen(
        b.labels.transpose(-1, -2).unsqueeze(-3),
        torch.Size([*b.shape[:-2], 1, b.shape[-1], b.shape[-2]]),
    )


def _aligned(seen: Seen, ndim: int) -> Seen:
    more = (1,) * (ndim - len(seen.shape))
    return Seen(seen.labels.reshape(*more, *seen.labels.shape), torch.Size([*more, *seen.shape]))


def _weighted(op: Operation, values: Seen, weights: Seen) -> Tensor:
    """Channels summed over positions, with weights that are those of a head, say: they are part of that head."""
    labels, heads = values.labels, weights.labels[..., :1, :1]
    alike = bool((heads == CONSTANT).all())
    for at in varying(labels):
        # Weights that differ along an axis of channels without being anybody's are those of a place.
        if at < len(values.shape) - 2 and weights.shape[at] > 1 and heads.shape[at] == 1 and not alike:
            places = op.trace.variables.fresh(weights.shape[at])
            op.trace.held.append(places)
            new = places.reshape(-1, *(1,) * (len(values.shape) - at - 1))
            op.trace.nest(labels, new)
    op.trace.nest(labels, heads)
    op.trace.touch([labels])
    return labels


def attention(
    op: Operation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    if enable_gqa:
        raise op.refuse("has heads that share keys, which is not supported")
    q, k, v = (op.trace.see(x) for x in (query, key, value))
    turned = Seen(k.labels.transpose(-1, -2), torch.Size([*k.shape[:-2], k.shape[-1], k.shape[-2]]))
    scores = _product(op, q, turned)
    if attn_mask is not None:
        scores = join(op, scores, op.trace.see(attn_mask))
    op.give(_product(op, scores, v).labels)


def multi_head_attention(
    op: Operation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    **options: Any,
) -> None:
    trace, variables = op.trace, op.trace.variables
    if in_proj_weight is None or bias_k is not None or bias_v is not None:
        raise op.refuse("with separate projections or biases of its own for keys is not supported")
    into, rows = trace.axis(in_proj_weight, 1, reads=True), trace.axis(in_proj_weight, 0)
    if into is None or rows is None:
        raise op.refuse("is given a weight that is computed, not a parameter or buffer")
    for x in (query, key, value):
        op.match(trace.see(x), -1, into)
    _bias(op, in_proj_bias, rows)
    q, k, v = rows.reshape(3, num_heads, -1)
    variables.same(q, k)
    heads = reduced(op, variables.of(q), (1,))
    trace.nest(v, heads)
    trace.touch([v])
    columns, out = trace.axis(out_proj_weight, 1, reads=True), trace.axis(out_proj_weight, 0)
    labels = _through(op, Seen(v.reshape(-1), torch.Size([v.numel()])), 0, columns, out, out_proj_bias)
    trace.give(op.out[0], labels.expand(*(1,) * (query.ndim - 1), -1))
    if op.out[1] is not None:
        trace.position(op.out[1])


_CONVOLUTIONS = {f"conv{n}d": convolution for n in (1, 2, 3)}
_TRANSPOSED = {f"conv_transpose{n}d": transposed_convolution for n in (1, 2, 3)}

WEIGHT_RULES: dict[str, Rule] = {
    "linear": linear,
    **_CONVOLUTIONS,
    **_TRANSPOSED,
    "embedding": embedding,
    "prelu": prelu,
    **dict.fromkeys(("matmul", "bmm"), matmul),
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": multi_head_attention,
}
