"""Merging by Fisher information: each entry counts as much as its checkpoint is sure of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core import _tree as tree
from ttransfer.core._maps import WeightMap
from ttransfer.core._types import Params, Tree
from ttransfer.weights._batch_statistics import batches_of
from ttransfer.weights._merging import Numbers, alike, given_for, mean_of, named, numbers, party, real, rest, wide
from ttransfer.weights._numbers import python_number, want_numbers
from ttransfer.weights._pool import MARK, want_checkpoint
from ttransfer.weights._routes import Route, Routes, Tensors, routed, taken

__all__ = ["empirical_fisher", "fisher", "fisher_diagonal"]


def fisher(fishers: Tensors, *, weights: Numbers | None = None, floor: float = 1e-6) -> WeightMap:
    r"""Average checkpoints entry by entry, by the diagonals of their Fisher information.

    .. math:: \theta = \sum_i \lambda_i F_i \theta_i \Big/ \sum_i \lambda_i F_i

    The maximum of the product of Gaussian posteriors, one around each checkpoint. Tensors without a Fisher, such as
    running means and variances, are averaged by `weights` alone; integer tensors are those of the first in the pool.
    Tied weights stay one tensor: a Fisher under one of their names is for all of them.

    Args:
        fishers: a pool of the checkpoints' diagonals, under the same names: ``pool(a=fisher_diagonal(...), b=...)``.
            A tensor has one in all of the checkpoints or in none.
        weights: lambda, as for `tt.weights.average`; None is 1 for all.
        floor: the least that an entry counts, as in the authors' code: what no checkpoint is sure of is averaged.

    Returns:
        A `WeightMap` from a pool to one checkpoint.

    Raises:
        TransferError: for a `floor` below 0; at use, for a Fisher that is missing, has another shape or belongs to no
            tensor, two for one tensor, and as `tt.weights.average` does.

    Example:
        >>> import torch, ttransfer as tt
        >>> both = tt.weights.pool(a={"w": torch.zeros(2)}, b={"w": torch.ones(2)})
        >>> sure = tt.weights.pool(a={"w": torch.tensor([1.0, 0.0])}, b={"w": torch.tensor([3.0, 0.0])})
        >>> tt.weights.fisher(sure).apply(both, {})["w"]
        tensor([0.7500, 0.5000])

    References:
        Michael Matena, Colin Raffel. Merging Models with Fisher-Weighted Averaging. 2022.
    """
    want_checkpoint("fisher", fishers)
    if weights is not None:
        want_numbers("fisher", "weights", weights)
    python_number("fisher", "floor", floor)
    if not floor >= 0:
        raise TransferError(f"fisher: floor must be at least 0, got {floor!r}")

    def routes(src: Tensors, like: Tensors) -> Routes:
        who = party("fisher", src, names=named(weights))
        made: dict[str, Route] = {}
        unused = rest(src, who)
        have = given_for("fisher", "Fisher", fishers, src, who)
        for name in who.tensors:
            sources = who.of(name)
            if not real(src[sources[0]]):
                made[name] = taken(sources[0])
                unused.update(dict.fromkeys(sources[1:], f"integers are those of {who.names[0]!r}"))
            elif name not in have:
                mean = "mean: without a Fisher"
                made[name] = alike(src, sources, lambda *x: _weighed(x, weights, who.names), mean)
            else:
                by = have[name]
                for source in by:
                    _check(source, src, fishers)

                def make(*x: Tensor, by: tuple[str, ...] = by) -> Tensor:
                    sure = [fishers[source].to(device=x[0].device, dtype=wide(x[0])) for source in by]
                    return _weighed(x, weights, who.names, [f.clamp(min=floor) for f in sure])

                made[name] = alike(src, sources, make, f"mean of {len(sources)} by Fisher information")
        known = {name.partition(MARK)[0] for name in src}
        for member in dict.fromkeys(name.partition(MARK)[0] for name in fishers):
            if member not in known:
                raise TransferError(
                    f"fisher: the Fishers of {member!r} belong to no checkpoint{nearest(member, known)}"
                )
        those = [name for name in fishers if name.partition(MARK)[0] in who.names]
        if left := [name for name in those if name not in src or not real(src[name])]:
            raise TransferError(f"fisher: the Fisher {left[0]!r} belongs to no tensor{nearest(left[0], src)}")
        return Routes(made, unused=unused)

    return routed(routes)


def _check(name: str, src: Tensors, fishers: Tensors) -> None:
    if name not in fishers:
        raise TransferError(f"fisher: there is no Fisher for {name!r}, though another has one{nearest(name, fishers)}")
    if fishers[name].shape != src[name].shape:
        raise TransferError(
            f"fisher: the Fisher for {name!r} is {shown(fishers[name])}, wanted {tuple(src[name].shape)}"
        )


def _weighed(
    x: tuple[Tensor, ...], weights: Numbers | None, names: tuple[str, ...], by: list[Tensor] | None = None
) -> Tensor:
    if weights is None and by is None:
        return mean_of(*x)
    dtype = wide(x[0])
    ones = x[0].new_ones(len(names), dtype=dtype)
    factors = (ones if weights is None else numbers("fisher", weights, names, ones)).unbind()
    counts = list(factors) if by is None else [w * f for w, f in zip(factors, by, strict=True)]
    top = sum((c * each.to(dtype) for c, each in zip(counts, x, strict=True)), torch.zeros_like(x[0], dtype=dtype))
    return (top / torch.stack(counts).sum(0)).to(x[0].dtype)


def fisher_diagonal(
    logits: Callable[[Params, Tensor], Tensor], params: Params, batches: Iterable[Tensor], *, chunk: int | None = None
) -> Params:
    r"""Estimate the diagonal of a classifier's Fisher information, over inputs and its own guesses of their labels.

    .. math:: F = \frac1n \sum_x \sum_y p_\theta(y \mid x)\, \big(\nabla_\theta \log p_\theta(y \mid x)\big)^2

    The sum over classes is whole, as in the paper; no labels are needed. For very many classes, or other losses, see
    `empirical_fisher`.

    Args:
        logits: (params, inputs) -> (rows, classes); rows must not depend on each other, so batch norm is in eval mode:
            ``lambda p, x: net.apply(p, buffers, x).value``.
        params: where to take it.
        batches: inputs, rows first; they are counted by rows.
        chunk: how many gradients, one for each row and class, are held at once; None holds all of a batch.

    Returns:
        name -> the diagonal, of its parameter's shape and dtype.

    Raises:
        TransferError: if there are no rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> scores = lambda p, x: torch.stack([p["w"] * x, -p["w"] * x], 1)
        >>> tt.weights.fisher_diagonal(scores, {"w": torch.zeros(())}, [torch.tensor([1.0, 3.0])])
        {'w': tensor(5.)}

    References:
        Michael Matena, Colin Raffel. Merging Models with Fisher-Weighted Averaging. 2022.
    """

    def one(p: Params, row: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        guess = torch.log_softmax(logits(p, row[None])[0], 0)
        chosen = guess.gather(0, label[None])[0]
        return chosen, chosen.detach().exp()

    def squares(x: Tensor) -> Params:
        classes = logits(params, x[:1]).shape[1]
        label = torch.arange(classes, device=x.device)
        of = torch.func.grad(one, has_aux=True)
        rows = x.repeat_interleave(classes, 0)
        run = torch.func.vmap(lambda row, y: _weighted(*of(params, row, y)), (0, 0), chunk_size=chunk)
        return {name: each.sum(0) for name, each in run(rows, label.repeat(len(x))).items()}

    return _mean_over_rows("fisher_diagonal", squares, batches)


def _weighted(grads: Params, p: Tensor) -> Params:
    return {name: p * grad.square() for name, grad in grads.items()}


def empirical_fisher(
    loss: Callable[[Params, Tree], Tensor], params: Params, batches: Iterable[Tree], *, chunk: int | None = None
) -> Params:
    r"""Average the squared gradients of single examples, which is a Fisher information with the labels that are given.

    .. math:: F = \frac1n \sum_{x, y} \big(\nabla_\theta\, \ell(\theta, x, y)\big)^2

    Args:
        loss: (params, one example without its leading dimension) -> 0-d negative log-likelihood.
        params: where to take it.
        batches: tensors, or dicts or tuples of tensors, rows first; they are counted by rows. One tensor or one dict is
            a batch.
        chunk: how many gradients are held at once; None holds all of a batch.

    Returns:
        name -> the mean square, of its parameter's shape and dtype.

    Raises:
        TransferError: if there are no rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> error = lambda p, example: (p["w"] * example["x"] - example["y"]).square() / 2
        >>> data = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([1.0, 0.0])}
        >>> tt.weights.empirical_fisher(error, {"w": torch.tensor(1.0)}, [data])
        {'w': tensor(8.)}

    References:
        Frederik Kunstner, Lukas Balles, Philipp Hennig. Limitations of the Empirical Fisher Approximation for Natural
        Gradient Descent. 2019.
    """

    def squares(batch: Tree) -> Params:
        run = torch.func.vmap(lambda example: torch.func.grad(loss)(params, example), chunk_size=chunk)
        return {name: grad.square().sum(0) for name, grad in run(batch).items()}

    return _mean_over_rows("empirical_fisher", squares, batches)


def _mean_over_rows(whose: str, squares: Callable[[Tree], Params], batches: Iterable[Tree]) -> Params:
    total: Params = {}
    count = 0
    for batch in batches_of(whose, batches):
        rows = _rows(batch)
        if rows:
            count += rows
            for name, x in squares(batch).items():
                total[name] = total[name] + x if name in total else x
    if not count:
        raise TransferError(f"{whose}: the batches have no rows")
    return {name: (x / count).detach() for name, x in total.items()}


def _rows(batch: Tree) -> int:
    leaves = tree.leaves(batch)
    return len(leaves[0]) if leaves else 0
