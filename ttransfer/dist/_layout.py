"""Which terms see the rows of all ranks, and where in their reads the rows are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ttransfer._claims import rows as count_rows
from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._forward import domain_of
from ttransfer.core._hyper import numbers, resolve
from ttransfer.core._infer import Fakes, as_fake, infer
from ttransfer.core._paths import Field, Forward, Keys, NetFn, NetParams
from ttransfer.core._pipes import run_stages
from ttransfer.core._reads import Read, flat
from ttransfer.core._score import numbers_of
from ttransfer.core._spec import Expression, Plan
from ttransfer.core._types import Batch, Fixed, Params, State, Term
from ttransfer.core._update import params_of

__all__ = ["Form", "Layout", "counted", "domain_at", "layout_of", "of_rows"]


class Form(NamedTuple):
    """What the readings of a term that go by rows look like, before they are put together.

    Attributes:
        spec: their structure, as one list; a reading that is not of rows is None in it.
        leaves: for each leaf whether it is a floating tensor (True), another tensor (False), or what else it is.
        reads: for each leaf the position of its read.
    """

    spec: Any
    leaves: tuple[Any, ...]
    reads: tuple[int, ...]


class Layout(NamedTuple):
    """How the terms of an expression are split over ranks.

    Attributes:
        gathered: term -> why its loss is taken of the rows of all ranks.
        cuts: term -> for each of its reads, how many stages run on a rank's own rows.
        forms: term -> its readings at the cut.
        direct: nets whose parameters a term reads as they are, not through a forward.
    """

    gathered: Mapping[str, str]
    cuts: Mapping[str, tuple[int, ...]]
    forms: Mapping[str, Form]
    direct: frozenset[str]


def of_rows(read: Read) -> bool:
    """Whether a read gives one entry for each row of a domain, as forwards, fields of the batch and keys do."""
    return isinstance(read.path, (Forward, Field, Keys))


def domain_at(read: Read) -> str:
    """The domain of a read of rows."""
    assert isinstance(read.path, (Forward, Field, Keys))
    return read.path.domain


def counted(term: Term) -> bool:
    """Whether the number of items in a term's mean is known from the number of rows alone."""
    return term.count is count_rows or not domain_of(term)


def layout_of(expression: Expression, plan: Plan, state: State, batch: Batch) -> Layout:
    """Find out how to split the terms, by what they declare and by trying their pipes.

    Args:
        expression: of the step.
        plan: what follows from it.
        state: of one member.
        batch: of one member; its shapes are looked at.
    """
    fakes = infer(expression, plan, params_of(state, state.trainable), state.buffers, batch)
    gathered: dict[str, str] = {}
    cuts: dict[str, tuple[int, ...]] = {}
    forms: dict[str, Form] = {}
    for name, term in expression.terms.items():
        raw, own, hyper = fakes.readings[name], state.trainable["terms"][name], _numbers(name, term, state)
        reads = flat(term.reads)
        mixing: dict[int, int] = {}
        for i, (read, like) in enumerate(zip(reads, raw, strict=True)):
            if of_rows(read) and read.pipes and isinstance(like, Tensor):
                stage = _first_mixing(read, i, own, numbers_of(name, hyper, raw), like)
                mixing.update({} if stage is None else {i: stage})
        why = _why_gathered(expression, name, term, state, bool(mixing))
        if why and expression.accumulate > 1:
            raise TransferError(
                f"shard: term {name!r} needs the rows of all ranks, since {why}; a micro-batch has not all of them, so "
                "accumulate= cannot be had with it"
            )
        if why:
            gathered[name] = why
        cuts[name] = tuple(mixing.get(i, len(read.pipes) if of_rows(read) else 0) for i, read in enumerate(reads))
        forms[name] = _form(fakes, term, own, numbers_of(name, hyper, raw), cuts[name], raw)
    paths = [read.path for term in expression.terms.values() for read in flat(term.reads)]
    direct = frozenset(path.net for path in paths if isinstance(path, (NetParams, NetFn)))
    return Layout(gathered, cuts, forms, direct & frozenset(plan.learned))


def _why_gathered(expression: Expression, name: str, term: Term, state: State, mixing: bool) -> str:
    domains = {domain_at(read) for read in flat(term.reads) if of_rows(read)}
    if not domains:
        return ""  # nothing of it is split
    if term.coupled:
        return "it couples rows, or does not say that it does not"
    if tree.leaves(state.terms.get(name, {})):
        return "it has a state, which all rows write"
    if mixing:
        return "a stage of its reads mixes rows"
    # A part of the rows of one domain may stand beside another part of the other's.
    return "it reads two domains" if len(domains) > 1 and expression.accumulate == 1 else ""


def _numbers(name: str, term: Term, state: State) -> dict[str, Tensor]:
    """A term's numbers at a step, under their full names, as they were given."""
    given = {f"{name}.{key}": value for key, value in term.hyper.items() if not isinstance(value, Fixed)}
    entries = {
        entry: torch.tensor(number, dtype=torch.float64, device=state.step.device)
        for key, value in given.items()
        for entry, number in numbers(key, value).items()
    }
    return resolve(given, entries, state.step)


def _form(
    fakes: Fakes, term: Term, own: Params, hyper: Mapping[str, Tensor], cuts: Sequence[int], raw: Sequence[Any]
) -> Form:
    """Find the structure of a term's readings at the cut, on fake tensors."""
    device = next((x.device for x in own.values()), torch.device("cpu"))
    faked_own, faked_hyper = as_fake(fakes, (own, dict(hyper)), device)
    values: list[Any] = []
    reads: list[int] = []
    for i, (read, value) in enumerate(zip(flat(term.reads), raw, strict=True)):
        if not of_rows(read):
            value = None
        elif cuts[i]:
            with fakes.mode:
                value = run_stages(read, i, faked_own, faked_hyper, value, range(cuts[i]))
        values.append(value)
        reads += [i] * len(pytree.tree_leaves(value))
    leaves, spec = pytree.tree_flatten(values)
    return Form(spec, tuple(x.is_floating_point() if isinstance(x, Tensor) else x for x in leaves), tuple(reads))


def _first_mixing(read: Read, position: int, own: Params, hyper: Mapping[str, Tensor], like: Tensor) -> int | None:
    """Send rows through the stages together and in two parts; where the outcome differs, rows are mixed."""
    generator = torch.Generator().manual_seed(0)
    n = 4 * like.shape[0] if like.shape[0] < 2 else like.shape[0]
    shape = (n, *like.shape[1:])
    if like.is_floating_point():
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(like.dtype)
    else:
        x = torch.randint(2, shape, generator=generator).to(like.dtype)
    x = x.to(like.device)
    cut = n // 2
    for stage in range(len(read.pipes)):
        until = range(stage + 1)
        try:
            with torch.no_grad():
                whole, *parts = (run_stages(read, position, own, hyper, p, until) for p in (x, x[:cut], x[cut:]))
                apart = torch.cat(parts)
        except Exception:  # a stage that a part of the rows does not suit, or that gives no tensor, mixes them
            return stage
        if whole.shape != apart.shape or not torch.allclose(whole, apart, rtol=1e-3, atol=1e-4, equal_nan=True):
            return stage
    return None
