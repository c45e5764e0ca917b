"""A plan for people."""

from __future__ import annotations

from ttransfer.core._maps import Plan


def show(plan: Plan) -> str:
    """Write a plan as a table: one line for each target, then the sources that go nowhere.

    Args:
        plan: what a WeightMap's `plan` returned.

    Returns:
        The table, without a newline at its end.

    Example:
        >>> import torch, ttransfer as tt
        >>> src = {"conv.weight": torch.ones(4), "fc.weight": torch.ones(9, 4), "fc.bias": torch.ones(9)}
        >>> like = {"conv.weight": torch.zeros(4), "fc.weight": torch.zeros(2, 4), "scale": torch.ones(1)}
        >>> print(tt.weights.show(tt.weights.match().plan(src, like)))
        conv.weight  <- conv.weight
        fc.weight    !! source (9, 4), target (2, 4)
        scale        -- missing
        unused: fc.weight, fc.bias
    """
    lines = {name: f"<- {via}" for name, via in plan.copied.items()}
    for name, why in plan.mismatched.items():
        lines[name] = f"{lines[name]} !! {why}" if name in lines else f"!! {why}"
    lines.update(dict.fromkeys(plan.missing, "-- missing"))
    width = max(map(len, lines), default=0)
    table = [f"{name:<{width}}  {line}" for name, line in lines.items()]
    return "\n".join([*table, *([f"unused: {', '.join(plan.unused)}"] if plan.unused else [])])
