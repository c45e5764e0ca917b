"""Batches of several domains, as steps take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.testing.strategies._check import bounds_of, known, shape_of
from ttransfer.testing.strategies._labels import labels
from ttransfer.testing.strategies._logits import FEATURES, features

__all__ = ["Batch", "batches"]

Batch = dict[str, dict[str, Tensor]]
"""Domain -> field -> tensor."""

Rows = Callable[[int], SearchStrategy[Tensor]]
"""The number of rows -> a strategy for a field."""


def batches(
    domains: Sequence[str] = ("source", "target"),
    *,
    rows: tuple[int, int] = (1, 4),
    shape: Sequence[int] = (2,),
    labeled: Sequence[str] | None = None,
    classes: int = 3,
    x: str = "moderate",
    y: str = "balanced",
    ignore_index: int | None = None,
    fields: Mapping[str, Rows] | None = None,
) -> SearchStrategy[Batch]:
    """Draw batches, domain -> field -> tensor; each domain has a number of rows of its own.

    Every domain has a field "x", (n, *shape) float64, and the labeled ones "y", (n,) int64.

    Args:
        domains: their names.
        rows: the fewest and the most of a domain.
        shape: of one row of x.
        labeled: the domains with labels; None for the first alone.
        classes: labels are 0 ... classes - 1.
        x: the family of x, see `features`.
        y: the family of y, see `labels`.
        ignore_index: a label that some get instead, though never all of a domain.
        fields: more fields: name -> (the number of rows -> strategy). "view" is a field of every domain,
            "source.view" of one. One that is called x or y comes in the place of that.

    Returns:
        A strategy; it shrinks to one row a domain.

    Raises:
        TransferError: for what is no name of a domain, no shape, no range of rows or no family; when drawn, for a
            field with another number of rows.

    Example:
        >>> from hypothesis import find
        >>> def larger(batch):
        ...     return len(batch["source"]["x"]) > len(batch["target"]["x"])
        >>> find(batches(shape=(1,)), larger)
        {'source': {'x': tensor([[0.],
                                [0.]], dtype=torch.float64), 'y': tensor([0, 0])},
         'target': {'x': tensor([[0.]], dtype=torch.float64)}}
        >>> find(batches(fields={"target.scores": lambda n: labels((n,), classes=2)}), larger)["target"].keys()
        dict_keys(['x', 'scores'])
    """
    names = _names(domains)
    if isinstance(labeled, str):
        raise TransferError(f"batches: labeled must be names such as ({labeled!r},), got {labeled!r}")
    with_labels = names[:1] if labeled is None else tuple(labeled)
    for name in with_labels:
        _there(name, names, "labeled")
    row, family = shape_of("batches", shape), known("batches: x", x, FEATURES)

    def of_x(n: int) -> SearchStrategy[Tensor]:
        return features((n, *row), family=family)

    def of_y(n: int) -> SearchStrategy[Tensor]:
        return labels((n,), classes=classes, family=y, ignore_index=ignore_index)

    of_y(1)  # says now what is wrong with it
    made: dict[str, dict[str, Rows]] = {name: {"x": of_x} for name in names}
    for name in with_labels:
        made[name]["y"] = of_y
    for path, field in (fields or {}).items():
        if not isinstance(cast(Any, path), str) or not path.rpartition(".")[2].isidentifier():
            raise TransferError(f"batches: a field is named such as 'view' or 'source.view', got {path!r}")
        if not callable(field):
            raise TransferError(f"batches: field {path!r} must be a function of the number of rows, got {shown(field)}")
        domain, _, name = path.rpartition(".")
        if domain:
            _there(domain, names, f"field {path!r}")
        for place in [domain] if domain else names:
            made[place][name] = field
    return _batches(made, bounds_of("batches", "rows", rows, least=1))


@st.composite
def _batches(draw: DrawFn, made: Mapping[str, Mapping[str, Rows]], rows: tuple[int, int]) -> Batch:
    sizes = {domain: draw(st.integers(*rows)) for domain in made}
    return {
        domain: {name: _field(draw, f"{domain}.{name}", field, sizes[domain]) for name, field in fields.items()}
        for domain, fields in made.items()
    }


def _field(draw: DrawFn, path: str, field: Rows, n: int) -> Tensor:
    drawn: Any = draw(field(n))
    if not isinstance(drawn, Tensor) or drawn.ndim == 0 or drawn.shape[0] != n:
        raise TransferError(f"batches: field {path!r} must be a tensor of {n} rows, the strategy drew {shown(drawn)}")
    return drawn


def _names(domains: Any) -> tuple[str, ...]:
    names = tuple(domains) if isinstance(domains, (tuple, list)) else ()
    good = all(isinstance(name, str) and name.isidentifier() for name in names)
    if not names or not good or len(set(names)) < len(names):
        raise TransferError(f"batches: domains must be different names such as ('source', 'target'), got {domains!r}")
    return names


def _there(name: str, names: Sequence[str], what: str) -> None:
    if name not in names:
        raise TransferError(f"batches: {what}: no domain {name!r}{nearest(name, names)}")
