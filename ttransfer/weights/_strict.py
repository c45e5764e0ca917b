"""What maps that look at the target refuse: a tensor on either side that nobody accounts for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import Plan
from ttransfer.core._tree import matches
from ttransfer.weights._routes import Tensors

__all__ = ["Allow", "allowed", "refuse", "strictly"]

Allow = str | Sequence[str]
_SHOWN = 5


def allowed(whose: str, allow: Allow, src: Iterable[str], like: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a name is allowed to go without.

    Raises:
        TransferError: for a pattern that matches no name of either side.
    """
    patterns = (allow,) if isinstance(allow, str) else allow
    several: Any = patterns
    if not isinstance(several, (list, tuple, set)) or not all(isinstance(p, str) for p in cast(list[Any], several)):
        raise TransferError(f"{whose}: allow= takes a regular expression, or several in a list, got {shown(allow)}")
    src, like = list(src), list(like)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in (*like, *src)):
            raise TransferError(f"{whose}: allow={pattern!r} matches no target and no source{nearest(pattern, like)}")
    return lambda name: any(matches(pattern, name) for pattern in patterns)


def strictly(
    whose: str, hint: Callable[[Tensors, Tensors], str] | None = None
) -> Callable[[Plan, Tensors, Tensors], None]:
    """Return the check of a map that refuses what is not accounted for; the hint is for what is ambiguous."""

    def check(plan: Plan, src: Tensors, like: Tensors) -> None:
        refuse(whose, plan, src, like, hint(src, like) if hint is not None and plan.ambiguous else "")

    return check


def refuse(whose: str, plan: Plan, src: Tensors, like: Tensors, hint: str = "") -> None:
    """Raise for targets that get nothing, not what fits, or more than one thing, and for sources left over.

    Args:
        whose: the map, for the message.
        plan: what it would do.
        src: the source.
        like: the target.
        hint: a line more for the message.

    Raises:
        TransferError: with the first few of each, and what is near.
    """
    left = [name for name, why in plan.unused.items() if not why]
    free = [name for name in plan.unused if name not in plan.mismatched]
    targets = [name for name in like if name in plan.missing or name in plan.mismatched or name in plan.ambiguous]
    if not targets and not left:
        return
    lines: list[str] = []
    if targets:
        lines.append(f"{whose}: {len(targets)} of {len(like)} target tensors get nothing")
        lines += _few({name: _why(name, plan, like, free) for name in targets[:_SHOWN]}, len(targets))
    if left:
        lines.append(f"{'' if targets else f'{whose}: '}{len(left)} of {len(src)} source tensors go nowhere")
        lines += _few({name: f" {shown(src[name])}" for name in left[:_SHOWN]}, len(left))
    lines += [hint] if hint else []
    lines.append("rename them, drop sources with tt.weights.drop, or let either be with allow=")
    raise TransferError("\n".join(lines))


def _few(lines: Mapping[str, str], count: int) -> list[str]:
    more = [f"  ... and {count - len(lines)} more"] if count > len(lines) else []
    return [*(f"  {name!r}{line}" for name, line in lines.items()), *more]


def _why(name: str, plan: Plan, like: Tensors, free: list[str]) -> str:
    if name in plan.mismatched:
        return f": {plan.mismatched[name]}"
    if candidates := plan.ambiguous.get(name):
        some = ", ".join(map(repr, candidates[:3])) + (f" or {len(candidates) - 3} more" if len(candidates) > 3 else "")
        return f" {shown(like[name])}: ambiguous, it may be {some}"
    near = nearest(name, free)
    # What is left over is listed below, once.
    return f" {shown(like[name])}: not in the source{near if 'did you mean' in near else ''}"
