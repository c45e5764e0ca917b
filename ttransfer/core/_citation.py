"""What to cite for a step: the papers of its terms."""

from __future__ import annotations

from collections.abc import Iterator

from ttransfer._claims import claims_of
from ttransfer._references import bibtex, references
from ttransfer.core._alternate import Alternation
from ttransfer.core._step import Step
from ttransfer.core._types import Term

__all__ = ["citation"]


def citation(step: Step) -> str:
    """Return BibTeX for the papers of a step's terms, each paper once, in the order of the terms.

    A loss of your own is cited too if its docstring has a section "References:" with entries such as
    "First Author, Second Author. Title. 2015."

    Args:
        step: any step.

    Returns:
        Entries of type misc, one after the other; "" if no term names a source.

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
    found = dict.fromkeys(one for term in _terms(step) for one in references(claims_of(term.fn).about or term.fn))
    return "\n\n".join(map(bibtex, found))


def _terms(step: Step) -> Iterator[Term]:
    expression = step.spec.expression
    phases = expression.phases.values() if isinstance(expression, Alternation) else [step]
    for phase in phases:
        yield from phase.spec.expression.terms.values()
