"""Which laws a map that merges a pool breaks by design."""

from __future__ import annotations

_WHY = "members of a pool count in the pool's order"
# The law turns the source round, and so the pool: the plan names the same sources in that order.
IN_POOL_ORDER = {"plan-is-dry": _WHY}
# Numbers that are given as a sequence go to other members then.
NUMBERS_IN_POOL_ORDER = {**IN_POOL_ORDER, "names-decide": _WHY}
