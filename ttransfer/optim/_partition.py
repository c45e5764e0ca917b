"""Different rules for different parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer._errors import TransferError, nearest
from ttransfer.core._types import Optimizer, Params, Tree
from ttransfer.optim._names import merge, pick

__all__ = ["masked", "partition"]


def partition(optimizers: Mapping[str, Optimizer], patterns: Mapping[str, str]) -> Optimizer:
    """Give each parameter to one of several optimizers, by its name.

    Names are dotted paths in the tree: "student.layer4.0.conv1.weight". Each optimizer sees its own
    parameters only, under these names.

    Args:
        optimizers: label -> optimizer.
        patterns: label -> regular expression for the whole name. The first that matches decides, so
            ``".*"`` at the end takes the rest.

    Returns:
        An optimizer with the numbers of all parts under their labels ("head.lr"). Its state is a
        dict: label -> the part's state.

    Raises:
        TransferError: if the labels of the two differ; at `init`, if a parameter matches no pattern
            or a pattern is the first match of no parameter.

    Example:
        >>> import torch, ttransfer as tt
        >>> opt = tt.optim.partition(
        ...     {"head": tt.optim.sgd(0.1), "body": tt.optim.sgd(0.01)},
        ...     {"head": r"student\\.fc\\..*", "body": ".*"},
        ... )
        >>> params = {"student": {"fc.bias": torch.ones(1), "conv.bias": torch.ones(1)}}
        >>> updates, state = opt.update(params, opt.init(params), params, tt.optim.hyper_at(opt))
        >>> updates
        {'student': {'fc.bias': tensor([-0.1000]), 'conv.bias': tensor([-0.0100])}}
        >>> sorted(opt.hyper)
        ['body.lr', 'body.weight_decay', 'head.lr', 'head.weight_decay']

    References:
        DeepMind, The DeepMind JAX Ecosystem, 2020 (Optax).
    """
    for label in sorted(optimizers.keys() ^ patterns.keys()):
        lacking, known = ("pattern", patterns) if label in optimizers else ("optimizer", optimizers)
        raise TransferError(f"optim.partition: no {lacking} has the label {label!r}{nearest(label, known)}")
    parts = {label: (f"{label}.", optimizers[label]) for label in patterns}

    def groups(params: Tree) -> dict[str, Params]:
        found: dict[str, Params] = {label: {} for label in patterns}
        leaves, labels = _flat(params), list(patterns)
        places = tree.first_match(tuple(patterns.values()), tuple(leaves))
        for (path, leaf), place in zip(leaves.items(), places, strict=True):
            if place < 0:
                raise TransferError(
                    f"optim.partition: parameter {path!r} matches none of the patterns {list(patterns.values())}; "
                    f"a last pattern '.*' takes the rest"
                )
            found[labels[place]][path] = leaf
        return found

    def init(params: Tree) -> Tree:
        found = groups(params)
        for label, pattern in patterns.items():
            if not found[label]:
                raise TransferError(
                    f"optim.partition: pattern {pattern!r} of {label!r} gets no parameter, or none that an earlier "
                    f"pattern leaves{nearest(pattern, _flat(params))}"
                )
        return {label: part.init(found[label]) for label, (_, part) in parts.items()}

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        slopes, updates, states = _flat(grads), {}, {}
        for label, own in groups(params).items():
            prefix, part = parts[label]
            mine = {path: slopes[path] for path in own}
            new, states[label] = part.update(mine, state[label], own, pick(part, prefix, hyper))
            updates |= new
        return tree.unflatten(grads, [updates[path] for path in slopes]), states

    return Optimizer(init, update, merge("partition", "choose other labels", parts))


def masked(optimizer: Optimizer, pattern: str) -> Optimizer:
    """Let an optimizer act on some of the parameters; the gradients of the others pass unchanged.

    It is a part for a `chain`: weight decay for some parameters, clipping of some gradients. On its
    own it would add the bare gradients of the others to them; to train some parameters only, say so
    where the step is built (`trainable`), or use `partition`.

    Args:
        optimizer: the optimizer of the matching parameters.
        pattern: regular expression for the whole dotted name.

    Returns:
        An optimizer with the numbers and the state of `optimizer`.

    Raises:
        TransferError: at `init`, if the pattern matches no parameter.

    Example:
        >>> import torch, ttransfer as tt
        >>> decay = tt.optim.masked(tt.optim.add_weight_decay(0.5), ".*weight")
        >>> params = {"weight": torch.ones(1), "bias": torch.ones(1)}
        >>> decay.update(params, decay.init(params), params, tt.optim.hyper_at(decay))[0]
        {'weight': tensor([1.5000]), 'bias': tensor([1.])}
        >>> opt = tt.optim.chain(decay, tt.optim.adam(1e-3))

    References:
        DeepMind, The DeepMind JAX Ecosystem, 2020 (Optax).
    """

    def init(params: Tree) -> Tree:
        return optimizer.init(tree.filter(_flat(params), pattern))

    def update(grads: Tree, state: Tree, params: Tree, hyper: Mapping[str, Tensor]) -> tuple[Tree, Tree]:
        slopes, own = _flat(grads), tree.filter(_flat(params), pattern)
        new, state = optimizer.update({path: slopes[path] for path in own}, state, own, hyper)
        return tree.unflatten(grads, list((slopes | new).values())), state

    return Optimizer(init, update, optimizer.hyper)


def _flat(params: Tree) -> Params:
    """Return dotted path -> leaf, in leaf order.

    Raises:
        TransferError: if two leaves have one path.
    """
    flat = tree.paths(params)
    if len(flat) != len(tree.leaves(params)):
        raise TransferError(f"optim: two parameters have one dotted name, among {sorted(flat)[:12]}")
    return flat
