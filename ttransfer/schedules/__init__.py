"""Numbers that depend on the step.

A schedule may stand wherever a hyper-parameter may: a learning rate, a term's weight, an EMA's decay.
Its own numbers are entries of `State.hyper` ("optim.lr.peak"), so each can be changed, swept and
differentiated, and a run that continues from a checkpoint needs no counter but `State.step`.
"""

from __future__ import annotations

from ttransfer.schedules._constant import constant
from ttransfer.schedules._cosine import cosine
from ttransfer.schedules._join import join
from ttransfer.schedules._linear import linear
from ttransfer.schedules._polynomial import polynomial
from ttransfer.schedules._ramp import ramp
from ttransfer.schedules._step import step
from ttransfer.schedules._warmup import warmup

__all__ = ["constant", "cosine", "join", "linear", "polynomial", "ramp", "step", "warmup"]
