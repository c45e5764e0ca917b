"""Two lists of tensors side by side: which pairs does every best alignment have?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ttransfer.weights._routes import Tensors

__all__ = ["by_order", "kind", "module", "tells_order"]

_MOST = 4_000_000  # cells of the table


def kind(name: str, tensors: Tensors) -> tuple[str, tuple[int, ...]]:
    """What two tensors must have in common: the last part of the name, and the shape."""
    return name.rpartition(".")[2], tuple(tensors[name].shape)


def module(name: str) -> str:
    """The module that a tensor is of."""
    return name.rpartition(".")[0]


def tells_order(src: Tensors) -> bool:
    """Whether the order of names may be that of a net's definition: not if somebody sorted them."""
    return list(src) != sorted(src)


def by_order(
    src: Tensors, like: Tensors
) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, ...]]]:
    """Pair what the two lists have in common, in order.

    Returns:
        target -> (source, why) for pairs that are in every longest alignment, and take a module's tensors from one
        module; target -> candidates for the others that could be aligned.
    """
    sources, targets = list(src), list(like)
    first, last = _alignments([kind(n, src) for n in sources], [kind(n, like) for n in targets])
    pairs: dict[str, str] = {}
    doubtful: dict[str, tuple[str, ...]] = {}
    for (i, j), (k, m) in zip(first, last, strict=True):
        if (i, j) == (k, m):
            pairs[targets[j]] = sources[i]
        elif j == m:
            wanted = kind(targets[j], like)
            doubtful[targets[j]] = tuple(n for n in sources[i : k + 1] if kind(n, src) == wanted)
        else:
            doubtful.update({targets[t]: tuple(dict.fromkeys((sources[i], sources[k]))) for t in (j, m)})
    for target in _torn(pairs):
        doubtful[target] = (pairs.pop(target),)
    rank = {name: i + 1 for i, name in enumerate(sources)}
    why = {target: (source, f"by order: {rank[source]} of {len(sources)}") for target, source in pairs.items()}
    return why, {target: some for target, some in doubtful.items() if target not in pairs}


def _torn(pairs: dict[str, str]) -> list[str]:
    """Targets of modules that would be filled from two modules, or share one with another."""
    there: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    for target, source in pairs.items():
        there.setdefault(module(target), set()).add(module(source))
        back.setdefault(module(source), set()).add(module(target))
    return [t for t, s in pairs.items() if len(there[module(t)]) > 1 or len(back[module(s)]) > 1]


Pairs = list[tuple[int, int]]


def _alignments(a: Sequence[Hashable], b: Sequence[Hashable]) -> tuple[Pairs, Pairs]:
    """The leftmost and the rightmost of the longest common subsequences, as pairs of positions.

    The k-th pair of any other lies between the two k-th pairs, so where these agree there is no choice.
    """
    head = 0
    while head < min(len(a), len(b)) and a[head] == b[head]:
        head += 1
    if head == len(a) == len(b):
        same = [(i, i) for i in range(head)]
        return same, same
    if len(a) * len(b) > _MOST:
        return [], []
    forward = _leftmost(a, b)
    n, m = len(a), len(b)
    backward = [(n - 1 - i, m - 1 - j) for i, j in _leftmost(a[::-1], b[::-1])]
    return forward, backward[::-1]


def _leftmost(a: Sequence[Hashable], b: Sequence[Hashable]) -> Pairs:
    """A longest common subsequence each of whose pairs ends as early as it can, in both lists."""
    # length[i][j]: of the longest for a[i:], b[j:].
    length = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        row, below = length[i], length[i + 1]
        for j in range(len(b) - 1, -1, -1):
            row[j] = below[j + 1] + 1 if a[i] == b[j] else max(below[j], row[j + 1])
    pairs: Pairs = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif length[i + 1][j] == length[i][j] and length[i][j + 1] != length[i][j]:
            i += 1
        elif length[i][j + 1] == length[i][j] and length[i + 1][j] != length[i][j]:
            j += 1
        else:
            # Either may be left out: the pair that comes first in the source is as good as any, and the
            # rightmost alignment will disagree if it matters.
            i += 1
    return pairs
