"""Two classifiers that disagree, and features on which they agree."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ttransfer import align
from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer.core import Term, term

__all__ = ["mcd"]


def mcd(source: Any, target: Any, labels: Any, *, weight: Any = 1.0) -> dict[str, dict[str, Term]]:
    """The three phases of maximum classifier discrepancy, for `tt.alternate`.

    - "all" trains features and classifiers on labelled source rows;
    - "heads" trains the classifiers to go on doing so and to disagree on target rows: `tt.align.mcd`, negated;
    - "body" trains the features so that they agree. The paper takes 4 steps of it. Its one term has the weight, which
      Adam does not feel: there sweep the rate.

    Args:
        source: two reads, of both classifiers' logits (n, classes) of source rows.
        target: two reads, of their logits (m, classes) of target rows.
        labels: the read of the source's labels.
        weight: of the discrepancy, in "heads" and in "body".

    Returns:
        phase -> name -> Term.

    Raises:
        TransferError: for source or target that are not two reads.

    Example:
        >>> import torch, ttransfer as tt
        >>> class Heads(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.one, self.two = (torch.nn.Linear(3, 3) for _ in range(3))
        ...     def forward(self, x):
        ...         return self.one(self.body(x)), self.two(self.body(x))
        >>> nets = {"net": tt.functional(Heads(), mode="train")}
        >>> phases = tt.terms.mcd(("net(a)[0]", "net(a)[1]"), ("net(b)[0]", "net(b)[1]"), "a.y")
        >>> trains = {"all": ".*", "heads": "one.*|two.*", "body": "body.*"}
        >>> steps = {n: tt.step(nets, tt.optim.sgd(0.1), terms, trainable={"net": trains[n]})
        ...          for n, terms in phases.items()}
        >>> game = tt.alternate(steps, order=("all", "heads", *["body"] * 4))

    Checked against:
        pytorch-adapt's MCDHook, and an imperative loop.

    Peers:
        pytorch-adapt takes the mean of a phase's losses, not their sum, unless it is given a SumWeighter: a half of the
        gradient in "all", a third in "heads".

    References:
        Kuniaki Saito, Kohei Watanabe, Yoshitaka Ushiku, Tatsuya Harada.
        Maximum Classifier Discrepancy for Unsupervised Domain Adaptation. 2018.
    """
    for pair in (source, target):
        if not isinstance(pair, (list, tuple)) or isinstance(pair, str) or len(pair) != 2 or hasattr(pair, "_fields"):
            raise TransferError(f"mcd: wanted two reads, one of each classifier, got {pair!r} {shown(pair)}")
    task = {name: term(F.cross_entropy, read, labels) for name, read in zip(("one", "two"), source, strict=True)}
    return {
        "all": task,
        "heads": {**task, "apart": term(_apart, *target, weight=weight)},
        "body": {"near": term(align.mcd, *target, weight=weight)},
    }


@claims(coupled=False, about=mcd)
def _apart(logits: Tensor, other_logits: Tensor) -> Tensor:
    return -align.mcd(logits, other_logits)
