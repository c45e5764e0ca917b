"""The options of a step as users write them, brought into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ttransfer._errors import TransferError

__all__ = ["as_groups", "as_mapping", "as_patterns", "as_seed"]

_EXAMPLES = {
    "nets": "{'student': tt.functional(model)}",
    "terms": "{'task': tt.term(...)}",
    "buffers": "{'student': 'eval'}",
    "ema": "{'mean': tt.ema('student')}",
}


def as_mapping(option: str, given: Any) -> dict[str, Any]:
    """name -> whatever the option maps names to; None is nothing."""
    if given is not None and not isinstance(given, Mapping):
        raise TransferError(f"step: {option} maps names, as {_EXAMPLES[option]} does; got {type(given).__name__}")
    return dict(cast(Mapping[str, Any], given or {}))


def as_patterns(trainable: Any) -> dict[str, tuple[str, ...]]:
    """net -> patterns for its parameters, none where a bare name stands for all that require a gradient."""
    if isinstance(trainable, str):
        raise TransferError(f"step: trainable wants a tuple of names or a mapping; write ({trainable!r},)")
    if not trainable:
        raise TransferError("step: nothing is trainable; name at least one net, trainable=('student',)")
    if isinstance(trainable, Mapping):
        pairs = cast(Mapping[str, Any], trainable)
        return {net: (p,) if isinstance(p, str) else tuple(p or ()) for net, p in pairs.items()}
    return dict.fromkeys(cast(Sequence[str], trainable), ())


def as_groups(joint: Any) -> tuple[tuple[str, ...], ...]:
    """Groups of domains."""
    if isinstance(joint, str) or any(isinstance(group, str) for group in joint):
        raise TransferError(f"step: joint wants groups of domains; write joint=[('source', 'target')], got {joint!r}")
    return tuple(tuple(group) for group in joint)


def as_seed(seed: Any) -> int:
    """A whole number that fits into the state."""
    if isinstance(seed, bool) or int(seed) != seed or not -(2**63) <= seed < 2**63:
        raise TransferError(f"init: the seed must be a whole number of 64 bits, got {seed!r}")
    return int(seed)
