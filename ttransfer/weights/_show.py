"""A plan for people."""

from __future__ import annotations

from ttransfer.core._maps import Made, Plan

__all__ = ["lines", "show"]


def lines(plan: Plan) -> list[tuple[str, str, str]]:
    """A plan's rows: (name, what becomes of it, how or why), targets first.

    Example:
        >>> lines(Plan({"fc.bias": Made(("head.bias",))}, unused={"old": "dropped"}))
        [('fc.bias', '<- head.bias', ''), ('old', '-> nowhere', 'dropped')]
    """
    rows = {name: (f"<- {_sources(one)}", _notes(one)) for name, one in plan.made.items()}
    for name, why in plan.mismatched.items():
        rows[name] = (f"{rows[name][0]} !! does not fit" if name in rows else "!! does not fit", why)
    for name, some in plan.ambiguous.items():
        more = f" or {len(some) - 3} more" if len(some) > 3 else ""
        rows[name] = ("?? ambiguous", f"it may be {', '.join(some[:3])}{more}")
    rows.update(dict.fromkeys(plan.kept, ("-- stays as it is", "")))
    rows.update(dict.fromkeys(plan.missing, ("!! missing", "")))
    return [
        *((name, what, why) for name, (what, why) in rows.items()),
        *((name, "-> nowhere", why) for name, why in plan.unused.items()),
    ]


def _sources(one: Made) -> str:
    if not one.sources:
        return "made anew"
    return ", ".join(one.sources[:3]) + (f" and {len(one.sources) - 3} more" if len(one.sources) > 3 else "")


def _notes(one: Made) -> str:
    return "; ".join(text for text in (one.how, one.why) if text)


def show(plan: Plan) -> str:
    """Write a plan as a table: one line for each target, then the sources that go nowhere.

    Args:
        plan: what a WeightMap's `plan` returned.

    Returns:
        The table, without a newline at its end. `ttransfer plan` prints the same in colour.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.weight": torch.ones(4), "fc.weight": torch.ones(9, 4), "fc.bias": torch.ones(9)}
        >>> like = {"conv.weight": torch.zeros(4), "fc.weight": torch.zeros(2, 4), "scale": torch.ones(1)}
        >>> print(tt.weights.show(tt.weights.match().plan(src, like)))
        conv.weight  <- conv.weight
        fc.weight    !! does not fit  source (9, 4) for a target of (2, 4)
        scale        !! missing
        fc.weight    -> nowhere
        fc.bias      -> nowhere
    """
    rows = lines(plan)
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {what:<{widths[1]}}  {why}".rstrip() for name, what, why in rows)
