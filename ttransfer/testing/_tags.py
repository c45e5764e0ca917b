"""What an author claims of a loss beyond what its arguments' names say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Tags"]


class Tags(NamedTuple):
    """Claims about a loss. True is asserted, False is not asked, None is looked at and reported.

    Attributes:
        zero_at_equality: 0 where student and teacher, or source and target, are equal.
        non_negative: never below 0, but for rounding.
        symmetric: the same with its two features or predictions exchanged.
        shift_invariant: unchanged by a number added to each row of logits.
        scale_invariant: unchanged where all its features or logits are multiplied by one positive number.
        rotation_invariant: unchanged where all features are multiplied by one orthogonal matrix.
        class_symmetric: unchanged where the classes are numbered otherwise, everywhere alike.
        row_symmetric: unchanged where rows change places: all alike, or each domain's by themselves.
            Claimed by the names student, teacher, source, target, logits, labels.
        repeat_invariant: unchanged where the batch is repeated, as a mean is.
        coupled: False if the value of a batch is the mean of its parts' values, weighted by `count`.
            None takes what the function itself declares.
        count: arguments -> how many items the mean is over; rows unless given.
        min_batch: the fewest rows (of each domain) for which it is defined. None: 1, or what it refuses
            less than by an error of its own.
        detaches: names of arguments that get no gradient, besides those called teacher; () for none at all.
        not_stationary: why (student, teacher) need not be lowest, nor flat, where both are equal; "" if it is.
        stochastic: whether it draws random numbers.
        double_backward: whether its gradient can be differentiated.
        ignore_index: a label whose rows do not count.

    Example:
        >>> Tags(non_negative=True, min_batch=2).min_batch
        2
    """

    zero_at_equality: bool | None = None
    non_negative: bool | None = None
    symmetric: bool | None = None
    shift_invariant: bool | None = None
    scale_invariant: bool | None = None
    rotation_invariant: bool | None = None
    class_symmetric: bool | None = None
    row_symmetric: bool | None = None
    repeat_invariant: bool | None = None
    coupled: bool | None = None
    count: Callable[..., Any] | None = None
    min_batch: int | None = None
    detaches: tuple[str, ...] | None = None
    not_stationary: str = ""
    stochastic: bool = False
    double_backward: bool | None = None
    ignore_index: int | None = None
