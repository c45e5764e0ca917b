"""The dry run that the maps share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ttransfer.core._maps import Plan

Tensors = Mapping[str, Tensor]


def planned(copied: dict[str, str], src: Tensors, like: Tensors) -> Plan:
    """Complete a plan from where every result comes from.

    Args:
        copied: result name -> source name.
        src: the source's tensors.
        like: the target's tensors.
    """
    used = set(copied.values())
    mismatched = {
        name: f"source {tuple(src[via].shape)}, target {tuple(like[name].shape)}"
        for name, via in copied.items()
        if name in like and src[via].shape != like[name].shape
    }
    return Plan(
        copied,
        tuple(name for name in src if name not in used),
        tuple(name for name in like if name not in copied),
        mismatched,
    )
