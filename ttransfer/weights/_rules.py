"""How channels go through operations without weights, and through normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ttransfer.weights._tracing import Mixing, Operation, Rule, Seen, tensors_in
from ttransfer.weights._variables import CONSTANT, POSITION, compact, varying

__all__ = ["RULES", "join", "reduced"]


def join(op: Operation, a: Seen, b: Seen) -> Seen:
    """Two operands number by number: what stands beside each other along an axis of channels is one channel."""
    ndim = max(len(a.shape), len(b.shape))
    (one, here), (other, there) = (_padded(x, ndim) for x in (a, b))
    shape = torch.broadcast_shapes(a.shape, b.shape)
    variables = op.trace.variables
    along, across = set(varying(one)), set(varying(other))
    if bool((one == CONSTANT).all()) or bool((other == CONSTANT).all()):
        return Seen(other if bool((one == CONSTANT).all()) else one, shape)
    only, others = along - across, across - along
    # An operand that is there once for all channels says nothing of them, if it is not a channel of another kind.
    once, others_once = all(here[d] == 1 for d in others), all(there[d] == 1 for d in only)
    if only and others and once and others_once:
        raise op.refuse("makes a table of channels by channels")
    if others and not only and once:
        if along:
            op.trace.nest(other, one)
        return Seen(other, shape)
    if only and not others and others_once:
        if across:
            op.trace.nest(one, other)
        return Seen(one, shape)
    if not along and not across:  # one channel, or places
        if bool((one > POSITION).all()) and bool((other > POSITION).all()):
            variables.same(one, other)
        return Seen(variables.of(torch.maximum(one, other)), shape)
    variables.same(one, other)
    one, other = variables.of(one), variables.of(other)
    return Seen(compact(torch.where(one == CONSTANT, other, one)), shape)


def _padded(seen: Seen, ndim: int) -> tuple[Tensor, tuple[int, ...]]:
    more = (1,) * (ndim - len(seen.shape))
    return seen.labels.reshape(*more, *seen.labels.shape), (*more, *seen.shape)


def elementwise(op: Operation, *args: Any, **options: Any) -> None:
    seen = [op.trace.see(x) for x in tensors_in((args, options))]
    result = seen[0]
    for other in seen[1:]:
        result = join(op, result, other)
    op.trace.touch([x.labels for x in seen])
    op.give(result.labels)


def unary(op: Operation, input: Tensor, *args: Any, **options: Any) -> None:
    elementwise(op, input)


def constant(op: Operation, *args: Any, **options: Any) -> None:
    """What has the operand's shape alone."""


def reduced(op: Operation, labels: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The labels of a sum over axes, which stay with size 1."""
    if any(labels.shape[axis] > 1 for axis in axes):
        return op.bundle(labels, axes)
    return labels


def reduction(op: Operation, input: Tensor, dim: Any = None, *more: Any, **options: Any) -> None:
    if isinstance(dim, Tensor):  # the larger of two
        elementwise(op, input, dim)
        return
    seen = op.trace.see(input)
    named = options.get("axis", dim)
    if named is None or (isinstance(named, (tuple, list)) and not named):
        axes = tuple(range(input.ndim))
    else:
        axes = tuple(d % input.ndim for d in (named if isinstance(named, (tuple, list)) else (named,)))
    labels = reduced(op, seen.labels, axes)
    for out in tensors_in(op.out):
        op.trace.give(out, labels if out.ndim == input.ndim else labels.squeeze(axes))


def norm(op: Operation, input: Tensor, p: Any = 2, dim: Any = None, *more: Any, **options: Any) -> None:
    reduction(op, input, dim)


_WHOLE = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"}


def shape(op: Operation, *args: Any, **options: Any) -> None:
    """What only moves numbers moves their labels."""
    trace = op.trace

    def labels_of(x: Any) -> Any:
        return trace.see(x).whole if isinstance(x, Tensor) else x

    if not args:
        args, options = (options.pop("tensors" if op.name in _WHOLE else "input"),), dict(options)
    first = tree_map(labels_of, args[0])  # what else there is are indices
    if op.name in ("view", "reshape", "view_as", "reshape_as"):  # of labels with size 1 there may be no view
        moved = first.reshape(op.out.shape)
    elif op.name in ("get T", "get mT"):
        moved = first.transpose(-1, -2)
    elif op.name in ("expand_as", "contiguous"):
        moved = first.expand(op.out.shape)
    else:
        moved = op.func(first, *args[1:], **options)
    for out, labels in zip(tensors_in(op.out), tensors_in(moved), strict=True):
        trace.give(out, labels)


def padding(op: Operation, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> None:
    seen = op.trace.see(input)
    count = len(pad) // 2
    axes = [input.ndim - 1 - i for i in range(count) if pad[2 * i] or pad[2 * i + 1]]
    labels = seen.labels
    if any(labels.shape[axis] > 1 for axis in axes):
        if mode != "constant":
            raise op.refuse(f"repeats channels, in mode {mode!r}")
        new = torch.nn.functional.pad(seen.whole, pad, value=CONSTANT)
        op.give(new)
        return
    op.give(labels)


def window(op: Operation, input: Tensor, *args: Any, **options: Any) -> None:
    """What looks at a neighbourhood in space, in each channel alike."""
    outs = tensors_in(op.out)
    seen = op.trace.see(input)
    labels = seen.labels
    space = range(2, input.ndim) if outs[0].ndim == input.ndim and input.ndim > 2 else range(1, input.ndim)
    if any(labels.shape[axis] > 1 for axis in space):
        if any(labels.shape[axis] > 1 for axis in range(input.ndim) if axis not in space):
            first = labels
            for axis in space:
                first = first.narrow(axis, 0, 1)
            op.trace.variables.same(labels, first)
            labels = op.trace.variables.of(first)
        else:  # channels along space: each sees its neighbours
            op.trace.variables.pin(labels)
            labels = torch.full_like(labels[(slice(0, 1),) * labels.ndim], POSITION)
    op.trace.touch([labels])
    for out in outs:
        op.trace.give(out, labels)


def batch_norm(
    op: Operation,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *more: Any,
    **options: Any,
) -> None:
    for x in (running_mean, running_var, weight, bias):
        if x is not None:
            op.match(op.trace.see(input), 1, op.vector(x))
    _normalised(op, op.trace.see(input))


def _normalised(op: Operation, seen: Seen) -> None:
    op.trace.touch([seen.labels])
    op.give(torch.where(seen.labels == CONSTANT, POSITION, seen.labels))  # a shift makes more of it than a constant


def layer_norm(
    op: Operation,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *more: Any,
    **options: Any,
) -> None:
    count = len(normalized_shape)
    for x in (weight, bias):
        if isinstance(x, Tensor):
            if count == 1:
                op.match(op.trace.see(input), -1, op.vector(x))
            else:
                join(op, op.trace.see(input), op.trace.see(x))
    seen = op.trace.see(input)
    op.mix(seen, tuple(range(-count, 0)))
    _normalised(op, seen)


def group_norm(
    op: Operation,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *more: Any,
    **options: Any,
) -> None:
    for x in (weight, bias):
        if x is not None:
            op.match(op.trace.see(input), 1, op.vector(x))
    seen = op.trace.see(input)
    if 1 < num_groups < input.shape[1] and seen.labels.shape[1] > 1:
        # Groups are of one size: places in them are one, in all groups.
        places = seen.labels.movedim(1, -1).unflatten(-1, (num_groups, -1))
        op.trace.variables.same(places, places[..., :1, :])
        seen = op.trace.see(input)
    if num_groups < input.shape[1] and seen.labels.shape[1] > 1:
        op.trace.touch([seen.labels], Mixing(op.name, False))
    _normalised(op, seen)


def along(op: Operation, input: Tensor, dim: Any = -1, *more: Any, **options: Any) -> None:
    """What is divided by something that is summed along an axis."""
    seen = op.trace.see(input)
    op.mix(seen, (-1 if dim is None else dim,))
    _normalised(op, seen)


def normalize(op: Operation, input: Tensor, p: Any = 2, dim: int = 1, *more: Any, **options: Any) -> None:
    along(op, input, dim)


def glu(op: Operation, input: Tensor, dim: int = -1) -> None:
    seen = op.trace.see(input)
    one, other = (Seen(compact(x), x.shape) for x in seen.whole.chunk(2, dim))
    op.trace.touch([one.labels])
    op.trace.touch([other.labels])
    op.give(join(op, one, other).labels)


def _each(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_ACTIVATIONS = """relu relu6 gelu silu elu selu celu mish sigmoid tanh softplus softsign hardswish hardsigmoid hardtanh
leaky_relu logsigmoid threshold tanhshrink hardshrink softshrink rrelu dropout dropout1d dropout2d dropout3d
alpha_dropout feature_alpha_dropout"""
_FUNCTIONS = """abs neg exp expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos erf sign nan_to_num round floor
ceil trunc clone detach to type type_as float double half bfloat16 long int bool cpu requires_grad logical_not isnan
isfinite positive"""
_OPERATORS = """add radd iadd sub rsub isub mul rmul imul multiply div rdiv idiv truediv rtruediv itruediv true_divide
floordiv floor_divide clamp clamp_min clamp_max clip pow rpow ipow maximum minimum fmax fmin where
masked_fill addcmul addcdiv lerp eq ne lt le gt ge logical_and logical_or and or xor mod fmod remainder atan2"""
_SHAPES = """view reshape view_as reshape_as permute transpose swapaxes swapdims movedim moveaxis flatten unflatten
squeeze unsqueeze expand expand_as broadcast_to chunk split split_with_sizes tensor_split unbind select narrow getitem
index_select take_along_dim gather cat concat concatenate stack hstack vstack dstack repeat tile repeat_interleave roll
flip rot90 t contiguous pixel_shuffle pixel_unshuffle channel_shuffle"""
_WINDOWS = """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices lp_pool1d lp_pool2d interpolate upsample"""

RULES: dict[str, Rule] = {
    **_each(unary, f"{_ACTIVATIONS} {_FUNCTIONS}"),
    **_each(elementwise, _OPERATORS),
    "get data": unary,
    **_each(
        constant, "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty"
    ),
    **_each(reduction, "mean sum nanmean amax amin max min var std var_mean std_mean logsumexp prod median all any"),
    **_each(norm, "norm vector_norm linalg_vector_norm"),
    **_each(shape, _SHAPES),
    **dict.fromkeys(("get T", "get mT"), shape),
    "pad": padding,
    **_each(window, _WINDOWS),
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "group_norm": group_norm,
    **_each(along, "softmax log_softmax softmin"),
    "normalize": normalize,
    "glu": glu,
}
