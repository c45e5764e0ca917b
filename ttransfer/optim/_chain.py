"""One update rule after another."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer.core._types import Optimizer, Tree
from ttransfer.optim._names import merge, pick

__all__ = ["chain"]


def chain(*optimizers: Optimizer, **named: Optimizer) -> Optimizer:
    """Hand the updates of each optimizer to the next as its gradients.

    Args:
        *optimizers: the first parts, in order; their numbers keep their names.
        **named: the parts that follow, in order; their numbers come under their names ("adam.lr").

    Returns:
        An optimizer with the numbers of all parts. Its state is a dict: place ("0", "1", ...) or name
        of a part -> the part's state.

    Raises:
        TransferError: if two parts have a number of one name.

    Example:
        >>> import ttransfer as tt
        >>> sorted(tt.optim.chain(tt.optim.clip_by_norm(1.0), tt.optim.sgd(0.1)).hyper)
        ['lr', 'max_norm', 'weight_decay']
        >>> sorted(tt.optim.chain(clip=tt.optim.clip_by_norm(1.0), sgd=tt.optim.sgd(0.1)).hyper)
        ['clip.max_norm', 'sgd.lr', 'sgd.weight_decay']

    References:
        DeepMind, The DeepMind JAX Ecosystem, 2020 (Optax).
    """
    parts = {str(i): ("", part) for i, part in enumerate(optimizers)}
    parts |= {name: (f"{name}.", part) for name, part in named.items()}
    cure = "name a part, chain(..., second=...), and its numbers come under 'second.'"

    def init(params: Tree) -> Tree:
        return {name: part.init(params) for name, (_, part) in parts.items()}

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        states: dict[str, Tree] = {}
        for name, (prefix, part) in parts.items():
            grads, states[name] = part.update(grads, state[name], params, pick(part, prefix, hyper))
        return grads, states

    return Optimizer(init, update, merge("chain", cure, parts))
