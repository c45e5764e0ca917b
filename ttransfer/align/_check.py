"""Shape checks that the domain distances share."""

from __future__ import annotations

import math
import numbers as numbers_module
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ttransfer._errors import TransferError, shown


def features(called: str, source: Tensor, target: Tensor, *, rows: int) -> tuple[Tensor, Tensor]:
    """Return both domains in float32 at least: squared distances cancel badly in half precision.

    Args:
        called: the function to name in an error.
        source: (n, d).
        target: (m, d).
        rows: how many rows each domain needs.

    Raises:
        TransferError: for maps, for widths that differ, for too few rows, for integers.
    """
    want_tensors(called, source=source, target=target)

    def refuse(wanted: str, cure: str = "") -> NoReturn:
        raise TransferError(f"{called}: wanted {wanted}, got source {shown(source)} and target {shown(target)}{cure}")

    for side in (source, target):
        if side.ndim > 2:
            refuse("features (n, d)", "; pool the map first, as with x.mean((-2, -1))")
        if side.ndim < 2:
            refuse("features (n, d)")
        if not side.is_floating_point():
            refuse("floating features")
        if side.shape[0] < rows:
            refuse(f"at least {rows} rows in each domain")
    if source.shape[1] != target.shape[1]:
        refuse("features of one width d")
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    return source.to(dtype), target.to(dtype)


def want_tensors(called: str, **given: Any) -> None:
    """Refuse what is no tensor.

    Raises:
        TransferError: naming everything given.
    """
    if not all(isinstance(x, Tensor) for x in given.values()):
        told = " and ".join(f"{name} {shown(x)}" for name, x in given.items())
        raise TransferError(
            f"{called}: wanted tensors, got {told}; torch.as_tensor turns arrays and lists into tensors"
        )


def in_range(called: str, low: float = 0.0, high: float = math.inf, *, closed: bool = False, **numbers: Any) -> None:
    """Refuse numbers outside of a range; tensors pass, whose values are not known in a graph.

    Args:
        called: the function to name in an error.
        low: the lower end.
        high: the upper end, which is inside.
        closed: whether the lower end is inside too.
        **numbers: what is given; None is something else's to judge.

    Raises:
        TransferError: naming the first of them.
    """
    kinds: Any = (int, float, numbers_module.Real)  # the last is for NumPy's numbers
    for name, x in numbers.items():
        if x is None or isinstance(x, Tensor):
            continue
        number = isinstance(x, kinds) and not isinstance(x, bool)
        if not number or not (_holds(x >= low if closed else x > low) and _holds(x <= high)):
            wanted = f"a number from {low:g} to {high:g}" if closed else f"a number above {low:g}"
            wanted = f"a number of at least {low:g}" if closed and high == math.inf else wanted
            wanted += f", at most {high:g}" if not closed and high < math.inf else ""
            raise TransferError(f"{called}: wanted {wanted} for {name}, got {x!r}")


def _holds(condition: bool) -> bool:
    """Whether a comparison holds. A graph does not know what was a tensor's, and lets it pass."""
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_true  # it takes long to import

    return guard_or_true(condition)


def whole(called: str, least: int, **numbers: Any) -> None:
    """Refuse what is no whole number, or less than one.

    Raises:
        TransferError: naming the first of them.
    """
    for name, x in numbers.items():
        if isinstance(x, bool) or not isinstance(x, int) or x < least:
            raise TransferError(f"{called}: wanted a whole number of at least {least} for {name}, got {x!r}")


def one_logit(called: str, **given: Tensor) -> None:
    """Refuse what is not one floating logit per item: (n,), (n, 1), tokens (n, tokens, 1) or a map (n, 1, ...).

    Raises:
        TransferError: naming every tensor given, with its shape and dtype.
    """
    want_tensors(called, **given)
    for x in given.values():
        if not x.is_floating_point() or x.ndim == 0 or not (x.ndim == 1 or x.shape[1] == 1 or x.shape[-1] == 1):
            wanted = "one logit per item, (n,), (n, 1), (n, tokens, 1) or (n, 1, h, w)"
            raise TransferError(f"{called}: wanted {wanted}, got {items(**given)}")


def want_logits(called: str, **given: Tensor) -> None:
    """Refuse what is not floating scores (n, classes, ...) with at least two classes, all of one shape but for rows.

    Raises:
        TransferError: naming every tensor given, with its shape and dtype.
    """
    want_tensors(called, **given)
    first = next(iter(given.values()))
    for x in given.values():
        if x.ndim < 2 or not x.is_floating_point() or x.shape[1] < 2:
            raise TransferError(f"{called}: wanted logits (n, classes, ...), got {items(**given)}")
        if x.shape[1] != first.shape[1]:
            raise TransferError(f"{called}: wanted logits of the same classes, got {items(**given)}")


def row_labels(called: str, features: Tensor, labels: Tensor) -> None:
    """Refuse what is not one whole number for each row of features.

    Raises:
        TransferError: naming both, with their shapes and dtypes.
    """
    want_tensors(called, features=features, labels=labels)
    if labels.is_floating_point() or labels.dtype.is_complex or labels.shape != features.shape[:1]:
        got = items(features=features, labels=labels)
        raise TransferError(f"{called}: wanted labels (n,) of whole numbers, one for each row, got {got}")


def classes_of(called: str, count: int, *, ignored: int | None = None, least: int | None = 0, **given: Tensor) -> None:
    """Refuse whole numbers that are none of so many classes, where they can be looked at.

    That is on the CPU, and neither in a graph nor batched by vmap; elsewhere they pass.

    Args:
        called: the function to name in an error.
        count: of the classes, or of the rows of an index.
        ignored: a number beside them that is allowed.
        least: the lowest of them; None allows whatever is negative.
        **given: the whole numbers.

    Raises:
        TransferError: naming the first that is none of them.
    """
    if torch.compiler.is_compiling():
        return
    for name, x in given.items():
        hidden = type(x) is not Tensor or is_functorch_wrapped_tensor(x)
        if hidden or x.device.type != "cpu" or x.numel() == 0:
            continue
        low, high = torch.aminmax(x)
        if (least is None or low >= least) and high < count:
            continue
        wrong = (x >= count) if least is None else (x >= count) | (x < least)
        wrong = wrong if ignored is None else wrong & (x != ignored)
        if wrong.any():
            where = tuple(int(i) for i in wrong.nonzero()[0])
            beside = "" if ignored is None else f", or {ignored} for what does not count"
            beside = ", or negative for what is of no class" if least is None else beside
            raise TransferError(
                f"{called}: wanted {name} from 0 to {count - 1}{beside}, got {int(x[where])} at {list(where)}"
            )


def rows_of(called: str, features: Tensor) -> Tensor:
    """Return features (n, d) in float32 at least.

    Raises:
        TransferError: for maps, for integers, for no rows.
    """
    want_tensors(called, features=features)
    if features.ndim != 2 or not features.is_floating_point() or features.shape[0] < 1:
        cure = "; pool the map first, as with x.mean((-2, -1))" if features.ndim > 2 else ""
        raise TransferError(f"{called}: wanted floating features (n, d), got {shown(features)}{cure}")
    return features.to(torch.promote_types(features.dtype, torch.float32))


def same_rows(called: str, **given: Tensor) -> None:
    """Refuse tensors of different numbers of rows.

    Raises:
        TransferError: naming every tensor given, with its shape and dtype.
    """
    want_tensors(called, **given)
    first = next(iter(given.values()))
    if any(x.ndim == 0 or x.shape[0] != first.shape[0] for x in given.values()):
        raise TransferError(f"{called}: wanted the same rows, got {items(**given)}")


def items(**given: Tensor) -> str:
    """Write names, shapes and dtypes for a message."""
    return " and ".join(f"{name} {shown(x)}" for name, x in given.items())
