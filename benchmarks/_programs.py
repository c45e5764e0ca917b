"""The contestants, each as the same few functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _cases import Batch, Case, batch_of, critic_start, our_step
from _twins import Imperative, carried_of, hand_written
from torch import Tensor

import ttransfer as tt

IMPERATIVE, OURS_EAGER = "imperative loop", "ours, eager"
HAND, HAND_DONATED, HAND_BARE = "hand-written", "hand-written, donated", "hand-written, no guard"
OURS, OURS_DONATED, OURS_BARE = "ours", "ours, donated", "ours, no guard"
DYNAMIC = "ours, donated, dynamic rows"
HAND_DEFAULTS = "hand-written, inductor's defaults"

# What tt.compile tells inductor, for the hand-written step to be told the same.
OPTIONS: dict[str, Any] = {"layout_optimization": False}

Named = dict[str, Tensor]


class Program(NamedTuple):
    """A contestant. Its compiled code lasts as long as it does; its training state is the caller's to keep or drop.

    Attributes:
        start: () -> state.
        advance: (state, batch) -> (state, loss).
        parts: state -> (parameters, first moments, buffers), by name, the same names for all.
    """

    start: Callable[[], Any]
    advance: Callable[[Any, Batch], tuple[Any, Tensor]]
    parts: Callable[[Any], tuple[Named, Named, Named]]


def program(case: Case, name: str, *, compiled: bool = True, dtype: torch.dtype = torch.float32) -> Program:
    critic = critic_start(case, dtype)
    if name == IMPERATIVE:
        return _imperative(case, critic, dtype)
    donate, guard = "donated" in name, "no guard" not in name
    if name.startswith("hand"):
        step = hand_written(case, guard=guard, donate=donate, dtype=dtype)
        if compiled:
            # torch.compile takes entries out of the dict that it is given.
            step = torch.compile(step, fullgraph=True, options={} if name == HAND_DEFAULTS else dict(OPTIONS))
        return _hand(case, critic, dtype, step, donate)
    ours = our_step(case, dtype, guard)
    if compiled and name != OURS_EAGER:
        ours = tt.compile(ours, donate=donate, rows="dynamic" if "dynamic" in name else "static")
    return _ours(case, dtype, ours)


def _imperative(case: Case, critic: Named, dtype: torch.dtype) -> Program:
    def parts(loop: Imperative) -> tuple[Named, Named, Named]:
        moments = {name: loop.optimizer.state[p]["exp_avg"] for name, p in loop.params().items()}
        return loop.params(), moments, dict(loop.student.named_buffers())

    return Program(
        lambda: Imperative(case, critic, dtype),
        lambda loop, batch: (loop, loop.step(batch)),
        parts,
    )


def _hand(case: Case, critic: Named, dtype: torch.dtype, step: Callable[..., Any], donate: bool) -> Program:
    def advance(state: Any, batch: Batch) -> tuple[Any, Tensor]:
        with torch.no_grad():
            out = step(state, batch)
        new, logs = (state, out) if donate else out
        return new, logs["loss"]

    return Program(
        lambda: carried_of(case, critic, dtype),
        advance,
        lambda s: (_flat(**s.params), _flat(**s.mu), s.buffers),
    )


def _ours(case: Case, dtype: torch.dtype, step: tt.Step) -> Program:
    def advance(state: Any, batch: Batch) -> tuple[Any, Tensor]:
        new, logs = step(state, batch)
        return new, logs["loss"]

    def parts(s: tt.State) -> tuple[Named, Named, Named]:
        both = (_flat(t["student"], t["terms"]["dann"]) for t in (s.trainable, s.opt["mu"]))
        return (*both, s.buffers["student"])

    return Program(lambda: step.init(batch_of(case, 0, dtype=dtype)), advance, parts)


def _flat(student: Named, critic: Named) -> Named:
    both = {"student": student, "critic": critic}
    return {f"{part}.{name}": x.detach() for part, own in both.items() for name, x in own.items()}
