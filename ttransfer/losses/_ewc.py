"""Elastic weight consolidation: weights that an old task needs are held."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, nearest, shown
from ttransfer._numeric import wide
from ttransfer.losses._check import want_floats

__all__ = ["ewc", "fisher"]


@claims(coupled=False)
def ewc(params: Mapping[str, Tensor], start: Mapping[str, Tensor], information: Mapping[str, Tensor]) -> Tensor:
    r"""Distance from the starting point, each weight by its Fisher information.

    .. math:: \frac12 \sum_j F_j \, (w_j - w^0_j)^2

    The paper's λ is the weight of the term. Names without information, such as those of a new head, are free.

    Args:
        params: name -> weight, of any shapes.
        start: name -> weight after the old task; gets no gradient.
        information: name -> F, at least 0, of the weight's shape, as `fisher` gives it; gets no gradient.

    Returns:
        A scalar, at least 0, in nats: to second order, what the old task's mean log-likelihood has lost.

    Raises:
        TransferError: for no information, for integers, for a name that is missing, or for shapes that differ.

    Example:
        >>> import torch, ttransfer as tt
        >>> params, start = {"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([1.0, 1.0])}
        >>> tt.losses.ewc(params, start, {"w": torch.tensor([0.5, 0.0])}).item()
        1.0

    Checked against:
        A loop from the paper, and the divergence of a softmax to second order.

    Peers:
        Neither TLlib nor zhijian has it.

    References:
        James Kirkpatrick, Razvan Pascanu, Neil Rabinowitz, Joel Veness, Guillaume Desjardins, Andrei A. Rusu,
        Kieran Milan, John Quan, Tiago Ramalho, Agnieszka Grabska-Barwinska, Demis Hassabis, Claudia Clopath,
        Dharshan Kumaran, Raia Hadsell. Overcoming Catastrophic Forgetting in Neural Networks. 2017.
    """
    if not information:
        raise TransferError("ewc: wanted information on at least one weight, got none")
    parts = []
    for name, f in information.items():
        for given, where in ((params, "params"), (start, "start")):
            if name not in given:
                raise TransferError(f"ewc: information has {name!r}, {where} has not{nearest(name, given)}")
        w, old = params[name], start[name]
        want_floats("ewc", params=w, start=old, information=f)
        if not w.shape == old.shape == f.shape:
            raise TransferError(
                f"ewc: wanted one shape for {name!r}, got params {shown(w)}, start {shown(old)} "
                f"and information {shown(f)}"
            )
        w, old, f = wide(w, old.detach(), f.detach())
        parts.append((f * (w - old).square()).sum())
    total = torch.stack(parts).sum() / 2
    return total.to(functools.reduce(torch.promote_types, (params[name].dtype for name in information)))


def fisher(log_likelihood: Callable[..., Tensor], params: Mapping[str, Tensor], *samples: Tensor) -> dict[str, Tensor]:
    r"""The diagonal of the Fisher information, from the gradients of single samples.

    .. math:: F_j = \frac1n \sum_i \Bigl( \frac{\partial \log p(y_i \mid x_i, w)}{\partial w_j} \Bigr)^2

    With labels drawn from the net's own predictions this is an estimate of the Fisher information, as in the paper;
    with the data's labels it is the "empirical Fisher", which is near 0 where the net fits them. The gradients of all
    samples are in memory at once: for more, take the mean over batches.

    Args:
        log_likelihood: (params, x, y, ...) -> 0-d tensor, for one sample, without an axis of rows. Minus
            `cross_entropy` serves; `vmap` refuses to index by a label.
        params: name -> weight.
        *samples: tensors of n rows each, whose rows are x, y, ...

    Returns:
        Name -> F, of the weight's shape, at least 0; without a graph.

    Raises:
        TransferError: for no samples, or for different numbers of rows.

    Example:
        >>> import torch, ttransfer as tt
        >>> def log_likelihood(params, x):  # a Gaussian of mean w and variance 1
        ...     return -((x - params["w"]) ** 2).sum() / 2
        >>> tt.losses.fisher(log_likelihood, {"w": torch.tensor([0.0])}, torch.tensor([[1.0], [-3.0]]))
        {'w': tensor([5.])}

    References:
        James Kirkpatrick, Razvan Pascanu, Neil Rabinowitz, Joel Veness, Guillaume Desjardins, Andrei A. Rusu,
        Kieran Milan, John Quan, Tiago Ramalho, Agnieszka Grabska-Barwinska, Demis Hassabis, Claudia Clopath,
        Dharshan Kumaran, Raia Hadsell. Overcoming Catastrophic Forgetting in Neural Networks. 2017.
    """
    if not samples or any(x.ndim == 0 or x.shape[0] == 0 or x.shape[0] != samples[0].shape[0] for x in samples):
        raise TransferError(f"fisher: wanted samples of the same rows, got {', '.join(map(shown, samples)) or 'none'}")
    per_sample = torch.func.vmap(torch.func.grad(log_likelihood), (None, *(0 for _ in samples)))
    slopes = per_sample(dict(params), *samples)
    return {name: slope.detach().square().mean(0) for name, slope in slopes.items()}
