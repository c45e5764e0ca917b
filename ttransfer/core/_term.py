"""Terms: a loss bound to where it reads from, with its weight, numbers, parameters and state."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer import _claims
from ttransfer._errors import TransferError, nearest
from ttransfer.core._hyper import is_number
from ttransfer.core._reads import as_reads, flat
from ttransfer.core._types import Fixed, Params, Schedule, Term, Tree

__all__ = ["name_of", "term"]

_OWN = ("weight", "params", "state", "coupled", "count")  # keywords of `term` itself


def term(
    fn: Callable[..., Any],
    *reads: Any,
    weight: Any = 1.0,
    params: Callable[..., Params] | None = None,
    state: Callable[..., Tree] | None = None,
    coupled: bool | None = None,
    count: Callable[..., Tensor | int] | None = None,
    **keywords: Any,
) -> Term:
    """Bind a loss to what it reads.

    Any callable works as a loss, `torch.nn.functional.cross_entropy` included: it is called with one
    argument for each read and the keywords, and returns a scalar.

    The weight, and the float keywords of this library's losses, become entries of `State.hyper`
    ("<term>.weight", "<term>.temperature"): they can be changed without recompiling, swept, and
    differentiated. A float keyword of another callable is tried when the state is initialised, and
    stays a Python number if the callable cannot take a tensor; `tt.describe` tells.

    Args:
        fn: the loss.
        *reads: paths such as "student(source).fc:in", or `tt.read(...)` with pipes; a list of them is
            handed over as one list.
        weight: a number, a schedule, or `tt.fixed(number)`.
        params: (generator, *readings) -> Params for a loss with parameters of its own, which it gets as
            ``params=``; the readings given are meta tensors.
        state: (generator, *readings) -> tree for a loss with state, which it gets as ``state=``; it then returns
            (loss, new state).
        coupled: False declares that the loss is a mean over `count` items of its batch, so that the batch
            may be split; None asks the loss, and takes a callable that says nothing as coupled.
        count: readings -> number of items that the mean is over; rows unless given. For micro-batches it
            may look at the values of batch fields and at the number of rows of forwards. Where it may be 0, the
            loss must be finite with a finite gradient, or be cross-entropy.
        **keywords: handed to the loss; floats and schedules are hyper-parameters.

    Returns:
        A Term.

    Raises:
        TransferError: for a read that is no path, a keyword that the loss does not have, or a loss that
            is not callable.

    Example:
        >>> import torch.nn.functional as F, ttransfer as tt
        >>> kd = tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=2.0, weight=0.5)
        >>> dict(kd.hyper)
        {'weight': 0.5, 'temperature': 2.0}
        >>> tt.term(F.cross_entropy, "student(source)", "source.y").coupled
        False
    """
    if not callable(fn):
        raise TransferError(f"term: the loss must be callable, got {type(fn).__name__} {fn!r}")
    name = name_of(fn)
    if not reads:
        raise TransferError(f"term({name}): nothing to read; give a path such as 'student(source)' for each argument")
    if count is not None and coupled is not False:
        raise TransferError(f"term({name}): count= belongs to a mean over items; say coupled=False with it")
    bound = as_reads(reads)
    _check_fixed(name, {"weight": weight, **keywords})
    known = _claims.claims_of(fn, keywords)
    slots = [slot for slot, maker in (("params", params), ("state", state)) if maker is not None]
    _check_call(fn, name, len(reads), {**keywords, **dict.fromkeys(slots)})
    given, lifted = _split(fn, known.own, keywords)
    is_coupled = known.coupled if coupled is None else coupled
    counted = None if is_coupled else count or known.count or _claims.rows

    def init(generator: torch.Generator, readings: list[Any]) -> tuple[Params, Tree]:
        own = params(generator, *readings) if params is not None else {}
        return own, (state(generator, *readings) if state is not None else {})

    def apply(
        own: Params, memory: Tree, numbers: Mapping[str, Tensor], step: Tensor, readings: list[Any]
    ) -> tuple[Tensor, Tree]:
        # A number that was not lifted reaches the loss as it was given.
        extra: dict[str, Any] = {**given, **{k: numbers[k] for k in lifted if k in numbers}}
        if params is not None:
            extra["params"] = own
        if state is None:
            return fn(*readings, **extra), memory
        extra["state"] = memory
        return fn(*readings, **extra)

    hyper = _joined(name, {"weight": _weight(name, weight)}, lifted, *_pipe_numbers(bound))
    tried = frozenset() if known.own else frozenset(k for k, v in lifted.items() if not isinstance(v, Fixed))
    return Term(init, apply, bound, hyper, tried, is_coupled, counted, known.labels, fn)


def _weight(name: str, weight: Any) -> Any:
    if is_number(weight) or (isinstance(weight, Fixed) and is_number(weight.value)):
        return weight
    hint = f"; weights of classes go into the loss: functools.partial({name}, weight=...)" * isinstance(weight, Tensor)
    raise TransferError(
        f"term({name}): weight must be a number or a schedule, got {type(weight).__name__} {weight!r}{hint}"
    )


def _check_fixed(name: str, numbers: Mapping[str, Any]) -> None:
    for key, value in numbers.items():
        if isinstance(value, Fixed) and isinstance(value.value, Schedule):
            raise TransferError(
                f"term({name}): {key} is a schedule, which changes with the step: it cannot be tt.fixed"
            )


def _check_call(fn: Callable[..., Any], name: str, arguments: int, keywords: Mapping[str, Any]) -> None:
    """Refuse now what the loss would refuse later: a wrong keyword or number of arguments."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some builtins have none
        return
    accepted = [k for k, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for key in keywords:
            if key not in accepted:
                raise TransferError(f"term({name}): {name} has no keyword {key!r}{nearest(key, [*accepted, *_OWN])}")
    try:
        signature.bind(*([None] * arguments), **keywords)
    except TypeError as error:
        raise TransferError(
            f"term({name}): {arguments} reads and the keywords {sorted(keywords)} do not fit {name}{signature}: {error}"
        ) from error


def _split(fn: Callable[..., Any], own: bool, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keywords as the loss gets them, and those among them that are numbers, `fixed` or not."""
    given = {k: v.value if isinstance(v, Fixed) else v for k, v in keywords.items()}
    lifted = {k: v for k, v in keywords.items() if is_number(given[k]) and not isinstance(given[k], int)}
    if own:
        for key, parameter in inspect.signature(fn).parameters.items():
            if "float" not in str(parameter.annotation) or parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            value = keywords.get(key, parameter.default)
            if isinstance(given.get(key), str) and not isinstance(parameter.default, str):
                raise TransferError(f"term({name_of(fn)}): {key} must be a number or a schedule, got {given[key]!r}")
            if is_number(value):
                lifted[key] = value if isinstance(value, (Tensor, Schedule)) else float(value)
    return {k: v for k, v in given.items() if not isinstance(v, Schedule)}, lifted


def _pipe_numbers(reads: tuple[Any, ...]) -> Iterator[Mapping[str, Any]]:
    for read in flat(reads):
        for pipe in read.pipes:
            yield pipe.hyper


def _joined(name: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
    """Join numbers of the term, the loss and the pipes; two of one name must be one and the same."""
    joined: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key in joined and joined[key] is not value and joined[key] != value:
                raise TransferError(f"term({name}): two different numbers are called {key!r}: {joined[key]}, {value}")
            joined[key] = value
    return joined


def name_of(fn: Callable[..., Any]) -> str:
    """Return a callable's name for people.

    Example:
        >>> name_of(functools.partial(torch.nn.functional.cross_entropy, reduction="sum"))
        'cross_entropy'
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = _claims.claims_of(fn).about or fn
    return getattr(fn, "__name__", type(fn).__name__)
