"""Verbs over trees of tensors: nested dicts, lists and (named) tuples."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.utils import _pytree as pytree

from ttransfer._errors import TransferError, nearest

__all__ = [
    "at", "cast_like", "combine", "filter", "first_match", "leaves", "lerp", "map", "matches", "partition", "paths",
    "unflatten",
]  # fmt: skip

T = TypeVar("T")
Tree = Any


def map(fn: Callable[..., Any], tree: T, *rest: Any) -> T:
    """Apply `fn` to corresponding leaves.

    Args:
        fn: of one leaf from each tree.
        tree: gives the structure.
        *rest: trees of the same structure.

    Example:
        >>> map(lambda x, y: x + y, {"a": 1, "b": (2, 3)}, {"a": 10, "b": (20, 30)})
        {'a': 11, 'b': (22, 33)}
    """
    return cast(T, pytree.tree_map(fn, tree, *rest))


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves in order.

    Args:
        tree: nested dicts, lists and (named) tuples.

    Example:
        >>> leaves({"a": 1, "b": (2, [3])})
        [1, 2, 3]
    """
    return pytree.tree_leaves(tree)


def paths(tree: Tree, separator: str = ".") -> dict[str, Any]:
    """Return path -> leaf, in order.

    Args:
        tree: nested dicts, lists and (named) tuples.
        separator: between the parts of a path.

    Example:
        >>> paths({"a": {"w": 1}, "b": (2, 3)})
        {'a.w': 1, 'b.0': 2, 'b.1': 3}
    """
    return dict(_walk(tree, (), separator))


def _walk(tree: Tree, at: tuple[str, ...], separator: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, child in cast(Mapping[str, Any], tree).items():
            yield from _walk(child, (*at, str(key)), separator)
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        for key in cast(Any, tree)._fields:
            yield from _walk(getattr(tree, key), (*at, key), separator)
    elif isinstance(tree, (list, tuple)):
        for i, child in enumerate(cast(list[Any], tree)):
            yield from _walk(child, (*at, str(i)), separator)
    else:
        yield separator.join(at), tree


def unflatten(like: T, values: list[Any]) -> T:
    """Put `values`, in leaf order, into the structure of `like`.

    Args:
        like: gives the structure.
        values: as many as it has leaves.

    Example:
        >>> unflatten({"a": 0, "b": (0, 0)}, [1, 2, 3])
        {'a': 1, 'b': (2, 3)}
    """
    return cast(T, pytree.tree_unflatten(values, pytree.tree_structure(like)))


def matches(pattern: str, name: str) -> bool:
    """Say whether the regular expression `pattern` covers the whole of `name`.

    Args:
        pattern: a regular expression.
        name: for example of a parameter.

    Example:
        >>> matches("layer4.*|fc.*", "fc.weight"), matches("fc", "fc.weight")
        (True, False)
    """
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise TransferError(f"{pattern!r} is no regular expression: {error}") from error


def first_match(patterns: tuple[str, ...], names: tuple[str, ...]) -> tuple[int, ...]:
    """Say of each name which pattern is the first that covers it; -1 for none. A graph has the answer as a constant.

    Args:
        patterns: regular expressions.
        names: for example of parameters.

    Example:
        >>> first_match(("fc.*", ".*"), ("conv.weight", "fc.weight"))
        (1, 0)
    """
    return _first_match(patterns, names)


# As torch.compiler.assume_constant_result marks it, which loads the compiler: what torch 2.8 makes of expressions in a
# graph depends on all that the process has matched before, and may fail.
first_match.__dict__["_dynamo_marked_constant"] = True


@functools.lru_cache(maxsize=64)  # each update asks for the same
def _first_match(patterns: tuple[str, ...], names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(next((i for i, pattern in enumerate(patterns) if matches(pattern, name)), -1) for name in names)


def filter(params: Mapping[str, T], keep: str | Callable[[str], bool]) -> dict[str, T]:
    """Keep the entries of a flat dict whose names match.

    Args:
        params: a flat dict.
        keep: a regular expression for the whole name, or a predicate on names.

    Raises:
        TransferError: if a pattern matches nothing.

    Example:
        >>> filter({"fc.weight": 1, "fc.bias": 2, "conv.weight": 3}, "fc.*")
        {'fc.weight': 1, 'fc.bias': 2}
    """
    if callable(keep):
        return {k: v for k, v in params.items() if keep(k)}
    kept = {k: v for k, v in params.items() if matches(keep, k)}
    if not kept:
        raise TransferError(f"pattern {keep!r} matches none of {len(params)} names{nearest(keep, params)}")
    return kept


def partition(params: Mapping[str, T], keep: str | Callable[[str], bool]) -> tuple[dict[str, T], dict[str, T]]:
    """Split a flat dict in two: what matches, and the rest. `combine` puts them together again.

    Args:
        params: a flat dict.
        keep: as for `filter`.

    Example:
        >>> partition({"fc.weight": 1, "conv.weight": 3}, "fc.*")
        ({'fc.weight': 1}, {'conv.weight': 3})
    """
    kept = filter(params, keep)
    return kept, {k: v for k, v in params.items() if k not in kept}


def combine(*parts: Mapping[str, T]) -> dict[str, T]:
    """Join flat dicts whose names do not overlap.

    Args:
        *parts: flat dicts.

    Raises:
        TransferError: if two parts share a name.

    Example:
        >>> combine({"a": 1}, {"b": 2})
        {'a': 1, 'b': 2}
    """
    joined: dict[str, T] = {}
    for part in parts:
        if shared := joined.keys() & part.keys():
            raise TransferError(f"combine: {sorted(shared)[0]!r} is in two parts ({len(shared)} names are)")
        joined.update(part)
    return joined


def at(tree: T, path: str, value: Any) -> T:
    """Return the tree with the leaf (or subtree) at a dotted path replaced.

    Keys that contain dots are found too: the longest key that fits is taken at each level.

    Args:
        tree: nested dicts, lists and (named) tuples.
        path: keys, fields and indices, dotted.
        value: what to put there.

    Raises:
        TransferError: if there is nothing at the path.

    Example:
        >>> at({"fc.weight": 1, "b": (2, 3)}, "b.1", 9)
        {'fc.weight': 1, 'b': (2, 9)}
        >>> at({"fc.weight": 1}, "fc.weight", 9)
        {'fc.weight': 9}
    """
    if not path:
        return value
    node: Any = tree
    children: dict[str, Any]
    if isinstance(node, Mapping):
        children = dict(cast(Mapping[str, Any], node))
    elif isinstance(node, tuple) and hasattr(node, "_fields"):
        children = dict(cast(Any, node)._asdict())
    elif isinstance(node, (list, tuple)):
        children = {str(i): child for i, child in enumerate(cast(list[Any], node))}
    else:
        raise TransferError(f"at: nothing at {path!r}, a {type(node).__name__} has no parts")
    for key in sorted(children, key=len, reverse=True):
        if path == key or path.startswith(key + "."):
            children[key] = at(children[key], path[len(key) + 1 :], value)
            break
    else:
        raise TransferError(f"at: nothing at {path!r}{nearest(path, children)}")
    if isinstance(node, Mapping):
        return cast(T, children)
    if hasattr(node, "_fields"):
        return cast(T, type(node)(**children))
    return cast(T, type(node)(children.values()))


def lerp(start: T, end: T, weight: Tensor | float) -> T:
    """Interpolate floating leaves, ``start + weight * (end - start)``; take other leaves from `end`.

    Args:
        start: what a weight of 0 gives.
        end: what a weight of 1 gives.
        weight: 0-d.

    Example:
        >>> import torch
        >>> lerp({"a": torch.zeros(2)}, {"a": torch.ones(2)}, 0.25)
        {'a': tensor([0.2500, 0.2500])}
    """

    def mix(a: Tensor, b: Tensor) -> Tensor:
        if not a.is_floating_point():
            return b.clone()
        w = weight.to(a.dtype) if isinstance(weight, Tensor) else weight
        return a + w * (b - a)

    return map(mix, start, end)


def cast_like(tree: T, like: T) -> T:
    """Cast every leaf to the dtype of its counterpart.

    Args:
        tree: of tensors.
        like: of the same structure.

    Example:
        >>> import torch
        >>> cast_like({"a": torch.zeros((), dtype=torch.float64)}, {"a": torch.zeros(())})["a"].dtype
        torch.float32
    """
    return map(lambda x, y: x.to(y.dtype), tree, like)
