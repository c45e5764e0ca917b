"""Domain-adversarial training of a segmenter at several depths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ttransfer._errors import TransferError, nearest
from ttransfer.core import Adapter, Term
from ttransfer.terms._dann import dann

__all__ = ["multilevel"]


def multilevel(
    levels: Mapping[str, Sequence[Any]], *, weights: Mapping[str, Any] | None = None, scale: Any = 1.0
) -> dict[str, Term]:
    """Learn maps whose domain a critic cannot tell, at several depths: a `dann` for each, with critic and weight.

    Critics of patches, `tt.adapters.patch`, tell the domain of each place; `tt.adapters.pooled` makes a critic of
    features one of whole maps. For the output give the probabilities,
    ``tt.read("net(source)") | (lambda z: z.softmax(1))``.

    Args:
        levels: name -> (read of source maps, read of target maps, critic). A critic's parameters belong to the
            term of its level.
        weights: name -> weight, a number or a schedule; 1 for those left out. The paper has 0.001 at the output and
            0.0002 before it.
        scale: strength of the reversed gradients.

    Returns:
        name -> Term, for `tt.step`.

    Raises:
        TransferError: for no levels, a level that is no such triple, or a weight of no level.

    Example:
        >>> import ttransfer as tt
        >>> terms = tt.terms.multilevel(
        ...     {
        ...         "encoder": ("net(ct).down4", "net(mr).down4", tt.adapters.pooled(tt.adapters.mlp(64))),
        ...         "decoder": ("net(ct).up1", "net(mr).up1", tt.adapters.patch(64, 128)),
        ...     },
        ...     weights={"decoder": 0.1},
        ... )
        >>> {name: term.hyper["weight"] for name, term in terms.items()}
        {'encoder': 1.0, 'decoder': 0.1}

    Checked against:
        The terms by themselves.

    Peers:
        e2eAIOK has it for a 3-D U-Net: encoder, decoder and output. Its critic of the output compares source labels
        with an argmax of the source's predictions, through which no gradient passes.

    References:
        Yi-Hsuan Tsai, Wei-Chih Hung, Samuel Schulter, Kihyuk Sohn, Ming-Hsuan Yang, Manmohan Chandraker.
        Learning to Adapt Structured Output Space for Semantic Segmentation. 2018.
        Yaroslav Ganin, Evgeniya Ustinova, Hana Ajakan, Pascal Germain, Hugo Larochelle, François Laviolette,
        Mario Marchand, Victor Lempitsky. Domain-Adversarial Training of Neural Networks. 2016.
    """
    if not levels:
        raise TransferError("multilevel: there are no levels")
    for name in weights or {}:
        if name not in levels:
            raise TransferError(f"multilevel: a weight for {name!r}, which is no level{nearest(name, levels)}")
    terms: dict[str, Term] = {}
    for name, level in levels.items():
        if len(level) != 3 or not isinstance(level[2], Adapter):
            raise TransferError(
                f"multilevel: wanted (read of the source, read of the target, critic) for {name!r}, got {level!r}"
            )
        source, target, critic = level
        terms[name] = dann(source, target, critic=critic, scale=scale, weight=(weights or {}).get(name, 1.0))
    return terms
