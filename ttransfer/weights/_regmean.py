"""RegMean: linear layers that answer their members' inputs as the members did, in the sense of least squares."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core import _tree as tree
from ttransfer.core._maps import WeightMap
from ttransfer.core._types import Params
from ttransfer.weights._batch_statistics import batches_of
from ttransfer.weights._merging import Number, alike, given_for, mean_of, party, real, rest, single, wide
from ttransfer.weights._numbers import want_number
from ttransfer.weights._pool import MARK, want_checkpoint
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["input_grams", "regmean"]


def regmean(grams: Tensors, *, alpha: Number = 0.9, ridge: Number = 1e-6) -> WeightMap:
    r"""Merge linear layers and convolutions by regression on what each checkpoint's layer was given.

    .. math:: W = \Big(\sum_i W_i \tilde G_i\Big) \Big(\sum_i \tilde G_i\Big)^{-1}, \qquad
        \tilde G_i = \alpha G_i + (1 - \alpha) \operatorname{diag}(G_i), \qquad G_i = X_i^\top X_i / n_i

    which for alpha 1 minimises :math:`\sum_i \lVert X_i W^\top - X_i W_i^\top \rVert^2 / n_i`. A convolution is linear
    in its patches. All else, biases too, is averaged, and integer tensors are those of the first in the pool. Where
    dtypes differ the result has one that holds all.

    Tied weights stay one tensor: a table of embeddings that is the head too is what the head's inputs make of it, for a
    table is looked up in and multiplies nothing.

    Args:
        grams: a pool of (inputs, inputs) matrices under the names of weights: ``pool(a=input_grams(...), b=...)``.
        alpha: how much of the off-diagonal to keep, 0 to 1; the paper's 0.9 helps with few inputs.
        ridge: is added to the diagonal, as a fraction of its mean: an input that no checkpoint ever saw has its weights
            averaged. 0 is the formula as it stands, for which the sum of the matrices must have an inverse.

    Returns:
        A `WeightMap` from a pool to one checkpoint.

    Raises:
        TransferError: for another `alpha` or `ridge`; at use, for no Gram matrices, one that is missing, has another
            shape or belongs to no tensor, two for one tensor, checkpoints that differ in names or shapes, or a sum
            without an inverse (of which torch itself complains in a compiled graph).

    Example:
        >>> import torch, ttransfer as tt
        >>> both = tt.weights.pool(a={"w": torch.zeros(1, 2)}, b={"w": torch.ones(1, 2)})
        >>> seen = tt.weights.pool(a={"w": torch.diag(torch.tensor([1.0, 3.0]))}, b={"w": torch.eye(2)})
        >>> tt.weights.regmean(seen, ridge=0.0).apply(both, {})["w"]
        tensor([[0.5000, 0.2500]])

    References:
        Xisen Jin, Xiang Ren, Daniel Preotiuc-Pietro, Pengxiang Cheng. Dataless Knowledge Fusion by Merging Weights of
        Language Models. 2023.
    """
    want_checkpoint("regmean", grams)
    want_number("regmean", "alpha", alpha)
    want_number("regmean", "ridge", ridge)
    if not isinstance(alpha, Tensor) and not 0 <= alpha <= 1:
        raise TransferError(f"regmean: alpha must be from 0 to 1, got {alpha!r}")
    if not isinstance(ridge, Tensor) and not ridge >= 0:
        raise TransferError(f"regmean: ridge must be at least 0, got {ridge!r}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("regmean", src)
        if not grams:
            raise TransferError("regmean: no Gram matrices, without which it is an average; input_grams makes them")
        have = given_for("regmean", "Gram matrix", grams, src, who)
        made: dict[str, Route] = {}
        unused = rest(src, who)
        for name in who.tensors:
            sources = who.of(name)
            if not real(src[sources[0]]):
                made[name] = taken(sources[0])
                unused.update(dict.fromkeys(sources[1:], f"integers are those of {who.names[0]!r}"))
                continue
            # What a linear layer is tied to, such as a table of embeddings, is one tensor with it.
            by = have.get(name)
            if by is None:
                made[name] = alike(src, sources, mean_of, f"mean of {len(sources)}")
                continue
            for source in by:
                _check(source, src, grams)
            made[name] = alike(src, sources, _regression(by, grams, alpha, ridge), "regression on the inputs")
        if left := [name for name in grams if name not in src]:
            raise TransferError(f"regmean: the Gram matrix {left[0]!r} belongs to no tensor{nearest(left[0], src)}")
        return Routes(made, unused=unused)

    return routed(routes)


def _check(name: str, src: Tensors, grams: Tensors) -> None:
    if name not in grams:
        raise TransferError(
            f"regmean: there is no Gram matrix for {name!r}, though another has one{nearest(name, grams)}"
        )
    x, gram = src[name], grams[name]
    inputs = x[:1].numel()
    if x.ndim < 2 or gram.shape != (inputs, inputs):
        raise TransferError(f"regmean: the Gram matrix for {name!r} {tuple(x.shape)} is {shown(gram)}, wanted "
                            f"({inputs}, {inputs}) for a weight of two or more dimensions")  # fmt: skip


def _regression(names: tuple[str, ...], grams: Tensors, alpha: Number, ridge: Number) -> Callable[..., Tensor]:
    def make(*weights: Tensor) -> Tensor:
        dtype, shape = wide(weights[0]), weights[0].shape
        given = [grams[name].to(device=weights[0].device, dtype=dtype) for name in names]
        # One scale for all, or the checkpoint with the larger inputs would be drawn less to the mean.
        size = torch.stack([g.diagonal().mean() for g in given]).mean()
        size = torch.where(size > 0, size, torch.ones_like(size))
        keep, add = single(alpha, given[0]), single(ridge, given[0])
        kept = [keep * g + torch.diag((1 - keep) * g.diagonal() + add * size) for g in given]
        rows = [w.reshape(shape[0], -1).to(dtype) for w in weights]
        right = torch.stack([w @ g for w, g in zip(rows, kept, strict=True)]).sum(0)
        # The matrices are symmetric, so that W G = R is G W^T = R^T.
        new = _solved(names[0], torch.stack(kept).sum(0), right.mT).mT
        return new.reshape(shape).to(weights[0].dtype)

    return make


def _solved(name: str, total: Tensor, right: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.linalg.solve(total, right)
    try:
        return torch.linalg.solve(total, right)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise TransferError(
            f"regmean: the Gram matrices for {name.partition(MARK)[2]!r} have no inverse together, for the inputs span "
            "too little; give a ridge above 0, which averages the weights there"
        ) from error


def input_grams(module: nn.Module, batches: Iterable[Any]) -> Params:
    r"""Run a module on batches, and return :math:`X^\top X / n` for what each linear layer and convolution was given.

    The module is copied and runs in eval mode, so that nothing of it changes. Tied weights have one matrix under all of
    their names, the sum over the layers that multiply by them. Grouped convolutions are left out: they have one matrix
    for each group, and `regmean` averages them.

    Args:
        module: one of the checkpoints' net, with its weights.
        batches: its inputs: a tensor, or a tuple for more than one argument; a tensor in place of a list of them is
            one batch.

    Returns:
        Name of the weight -> (inputs, inputs), inputs counting a patch's entries for a convolution. n counts the
        examples, as in the authors' code: every position that a layer sees of an example adds to the sum.

    Raises:
        TransferError: if there are no batches, or no such layer has run.

    Example:
        >>> import torch, ttransfer as tt
        >>> tt.weights.input_grams(torch.nn.Linear(2, 3), [torch.tensor([[1.0, 2.0], [3.0, 0.0]])])
        {'weight': tensor([[5., 1.],
                [1., 2.]])}

    References:
        Xisen Jin, Xiang Ren, Daniel Preotiuc-Pietro, Pengxiang Cheng. Dataless Knowledge Fusion by Merging Weights of
        Language Models. 2023.
    """
    net = copy.deepcopy(module).eval()
    tied = _tied(net)
    total: Params = {}

    def watch(name: str, layer: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = _patches(layer, inputs[0].detach())
            gram = rows.mT @ rows
            total[name] = total[name] + gram if name in total else gram

        return hook

    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and getattr(layer, "groups", 1) == 1:
            own = f"{name}.weight".lstrip(".")
            layer.register_forward_pre_hook(watch(tied.get(own, (own,))[0], layer))
    count = 0
    with torch.no_grad():
        for batch in batches_of("input_grams", batches):
            inputs = batch if isinstance(batch, tuple) else (batch,)
            net(*inputs)
            count += len(tree.leaves(inputs)[0])
    if not count or not total:
        raise TransferError("input_grams: no linear layer or convolution has run; give batches of inputs")
    mean = {name: x / count for name, x in total.items()}
    return {name: x for first, x in mean.items() for name in tied.get(first, (first,))}


def _tied(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Of each parameter all names."""
    found: dict[int, list[str]] = {}
    for name, x in net.named_parameters(remove_duplicate=False):
        found.setdefault(id(x), []).append(name)
    return {name: tuple(names) for names in found.values() for name in names}


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies by its rows of weights, one row for each place: (places, inputs)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    dims = len(layer.kernel_size)
    x = x if x.ndim == dims + 2 else x[None]
    pad = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x, pad, mode=mode)
    for i, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        # Unfolding reaches from a patch's first entry to its last, of which a dilated kernel sees every so many.
        x = x.unfold(2 + i, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # (n, channels, *places, *kernel)
    return x.movedim(1, 1 + dims).reshape(-1, x.shape[1] * x.shape[2 + dims :].numel())
