"""Take the tensors that fit by name and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import Plan, WeightMap
from ttransfer.core._tree import matches
from ttransfer.core._types import Params
from ttransfer.weights._plan import planned


def match(*, allow: str | Sequence[str] = ()) -> WeightMap:
    """Fill every target tensor with the source tensor of its name and shape.

    Strict: a target tensor that gets nothing is an error unless `allow` names it. Source tensors that
    nothing asks for (an old head) are left out; the plan lists them. Inside a compiled step do without
    `allow`: torch 2.8 cannot trace regular expressions.

    Args:
        allow: regular expressions for whole names of targets that may stay as they are, such as a new head.

    Returns:
        A `WeightMap` whose result has the target's names in their order and the target's dtypes; tensors
        stay on the source's device.

    Raises:
        TransferError: at apply, for a target tensor without a source, with the nearest name that is free;
            for an `allow` that matches no target. The plan raises the latter only.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.weight": torch.ones(4), "fc.weight": torch.ones(1000, 4)}
        >>> like = {"conv.weight": torch.zeros(4), "fc.weight": torch.zeros(10, 4)}
        >>> new = tt.weights.match(allow="fc.*").apply(src, like)
        >>> new["conv.weight"].sum().item(), new["fc.weight"].sum().item()
        (4.0, 0.0)
    """
    patterns = (allow,) if isinstance(allow, str) else tuple(allow)

    def plan(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Plan:
        for pattern in patterns:
            if not any(matches(pattern, name) for name in like):
                raise TransferError(f"match: allow={pattern!r} matches no target{nearest(pattern, like)}")
        whole = planned({name: name for name in like if name in src}, src, like)
        copied = {name: via for name, via in whole.copied.items() if name not in whole.mismatched}
        return Plan(copied, tuple(name for name in src if name not in copied), whole.missing, whole.mismatched)

    def apply(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Params:
        dry = plan(src, like)
        left = [n for n in like if n not in dry.copied and not any(matches(p, n) for p in patterns)]
        if left:
            raise TransferError(_complaint(left, dry, like))
        return {n: src[dry.copied[n]].to(like[n].dtype) if n in dry.copied else like[n] for n in like}

    return WeightMap(apply, plan)


def _complaint(left: list[str], dry: Plan, like: Mapping[str, Tensor]) -> str:
    free = [name for name in dry.unused if name not in dry.mismatched]
    lines = [f"match: {len(left)} of {len(like)} target tensors get nothing"]
    for name in left[:5]:
        why = dry.mismatched.get(name)
        lines.append(
            f"  {name!r}: {why}" if why else f"  {name!r} {shown(like[name])}: not in the source{nearest(name, free)}"
        )
    if len(left) > 5:
        lines.append(f"  ... and {len(left) - 5} more")
    lines.append("rename the source's, or let them stay at initialisation with allow=")
    return "\n".join(lines)
