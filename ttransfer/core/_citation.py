"""What to cite: the papers of a loss, or of a step's terms."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ttransfer._claims import claims_of
from ttransfer._errors import TransferError, shown
from ttransfer._references import bibtex, references
from ttransfer.core._alternate import Alternation
from ttransfer.core._step import Step
from ttransfer.core._types import Term

__all__ = ["citation"]


def citation(what: Step | Term | Callable[..., Any]) -> str:
    """Return BibTeX for the papers of a step's terms, of a term or of a loss: each paper once, in the terms' order.

    A loss of your own is cited too if its docstring has a section "References:" with entries such as
    "First Author, Second Author. Title. 2015."

    Args:
        what: a step, a term or a loss.

    Returns:
        Entries of type misc, one after the other; "" if none names a source.

    Raises:
        TransferError: for anything else.

    Example:
        >>> import torch, ttransfer as tt
        >>> nets = {"net": tt.functional(torch.nn.Linear(2, 3))}
        >>> train = tt.step(nets, tt.optim.sgd(0.1), trainable=("net",), sure=tt.term(tt.losses.entropy, "net(source)"))
        >>> print(tt.citation(train))
        @misc{grandvalet2004semi,
          author = {Yves Grandvalet and Yoshua Bengio},
          title = {{Semi-supervised Learning by Entropy Minimization}},
          year = {2004},
        }
    """
    found = dict.fromkeys(one for fn in _losses(what) for one in references(claims_of(fn).about or fn))
    return "\n\n".join(map(bibtex, found))


def _losses(what: Any) -> Iterator[Callable[..., Any]]:
    while isinstance(what, functools.partial):
        what = what.func
    if isinstance(what, Term):
        yield what.fn
    elif isinstance(what, Step):
        expression = what.spec.expression
        phases = expression.phases.values() if isinstance(expression, Alternation) else [what]
        for phase in phases:
            yield from (term.fn for term in phase.spec.expression.terms.values())
    elif inspect.isfunction(what):
        yield what
    else:
        raise TransferError(f"citation: wanted a step, a term or a loss, got {shown(what)}")
