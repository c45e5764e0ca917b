"""A step in words: what runs, in which order, what trains, what each number is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ttransfer.core._alternate import Alternation
from ttransfer.core._spec import Expression, Plan, plan_of, slot, source_of
from ttransfer.core._step import Started, Step, start
from ttransfer.core._term import name_of
from ttransfer.core._transforms import Outside, outside_of
from ttransfer.core._types import Batch, Fixed, Schedule, Term

__all__ = ["describe"]


def describe(step: Step, example_batch: Batch | None = None) -> str:
    """Describe a step for people.

    Args:
        step: any step.
        example_batch: with it, shapes are known, each hyper-parameter is said to be lifted or static, and
            calls to the global random generator are listed. The step is not run.

    Returns:
        A text of several lines.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> train = tt.step({"net": tt.functional(torch.nn.Linear(2, 3))}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(F.cross_entropy, "net(source)", "source.y", label_smoothing=0.1))
        >>> batch = {"source": {"x": torch.ones(4, 2), "y": torch.zeros(4, dtype=torch.int64)}}
        >>> print(tt.describe(train, batch))
        forwards, in the order they run
          net(source)  train, gradient
        terms
          task  1.0 * cross_entropy(net(source) (4, 3), source.y (4,))  mean, splits
        numbers
          task.weight           1.0   lifted
          task.label_smoothing  0.1   static: cross_entropy takes no tensor for it
          optim.lr              0.1   lifted
          optim.weight_decay    0.0   lifted
        parameters
          net  9 trained, 0 frozen
        random draws
          all from the state's seed
    """
    lines: list[str] = []
    expression, outside = step.spec.expression, outside_of(step.spec.transforms)
    if isinstance(expression, Alternation):
        lines.append(f"phases, in turn: {', '.join(expression.order)}")
        for name, phase in expression.phases.items():
            about = _expression(phase.spec.expression, example_batch, name, outside)
            lines += [f"phase {name}", *("  " + line for line in about)]
    else:
        lines += _expression(expression, example_batch, "", outside)
    if step.spec.transforms:
        lines.append("then")
        for transform in step.spec.transforms:
            options = ", ".join(f"{key}={value}" for key, value in transform.options.items())
            lines.append(f"  {transform.name}({options})")
    return "\n".join(lines)


def _expression(expression: Expression, example_batch: Batch | None, phase: str, outside: Outside | None) -> list[str]:
    plan = plan_of(expression)
    started = None if example_batch is None else start(expression, plan, example_batch, 0)
    averages = expression.ema.items()
    gathered = {} if started is None or outside is None else outside.gathered(phase, started.state, example_batch)
    return [
        "forwards, in the order they run",
        *_table(_forwards(expression, plan)),
        *_block("averages", [[f"{n} = average of {e.of}", f"{e.mode}, buffers {e.buffers}"] for n, e in averages]),
        "terms",
        *_table([[name, _term(name, term, started)] for name, term in expression.terms.items()]),
        *_block("terms that see the rows of all ranks", [[name, f"since {why}"] for name, why in gathered.items()]),
        "numbers",
        *_table(_numbers(expression, started)),
        "parameters",
        *_table(_parameters(expression, plan, started)),
        *_block("micro-batches", [[str(expression.accumulate)]] if expression.accumulate > 1 else []),
        *_random(started),
    ]  # fmt: skip


def _block(title: str, rows: Sequence[Sequence[str]]) -> list[str]:
    return [title, *_table(rows)] if rows else []


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns, two blanks apart."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows
    ]


def _forwards(expression: Expression, plan: Plan) -> list[list[str]]:
    rows: list[list[str]] = []
    for one in plan.passes:
        about = ["train" if one.net in plan.training else "eval"]
        about.append("gradient" if one.net in plan.learned else "no gradient")
        if plan.taps[one.net]:
            about.append("taps " + ", ".join(map(str, plan.taps[one.net])))
        if source_of(expression, one.net).layout.buffers and one.net in plan.training:
            policy = expression.buffers.get(one.net, "shared")
            about.append(f"buffers {slot(expression, one.net, one.domains[0])} ({policy})")
        rows.append([str(one), ", ".join(about)])
    return rows


def _term(name: str, term: Term, started: Started | None) -> str:
    shapes = iter(started.fakes.readings[name]) if started is not None else None

    def shown(read: Any) -> str:
        if not hasattr(read, "path"):
            return "[" + ", ".join(shown(r) for r in read) + "]"
        value = next(shapes) if shapes is not None else None
        # The shape is of what is read, before the pipes.
        shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        return str(read).replace(str(read.path), str(read.path) + shape, 1)

    arguments = ", ".join(shown(read) for read in term.reads)
    split = "couples rows" if term.coupled else "mean, splits"
    return f"{_value(term.hyper['weight'])} * {name_of(term.fn)}({arguments})  {split}"


def _value(value: Any) -> str:
    if isinstance(value, Fixed):
        return str(value.value)
    if isinstance(value, Schedule):
        return "schedule(" + ", ".join(f"{k}={v:g}" for k, v in value.hyper.items()) + ")"
    return str(float(value))


def _numbers(expression: Expression, started: Started | None) -> list[list[str]]:
    rows: list[list[str]] = []
    for name, term in expression.terms.items():
        static = started.static[name] if started is not None else frozenset[str]()
        for key, value in term.hyper.items():
            if isinstance(value, Fixed):
                how = "static: fixed"
            elif key in static:
                how = f"static: {name_of(term.fn)} takes no tensor for it"
            elif started is None and key in term.tried:
                how = "tried at init"
            else:
                how = "lifted"
            rows.append([f"{name}.{key}", _value(value), " " + how])
    more: Mapping[str, Any] = {
        **{f"optim.{key}": value for key, value in expression.optimizer.hyper.items()},
        **{f"{name}.decay": follower.decay for name, follower in expression.ema.items()},
    }
    return rows + [[name, _value(value), " lifted"] for name, value in more.items()]


def _parameters(expression: Expression, plan: Plan, started: Started | None) -> list[list[str]]:
    rows: list[list[str]] = []
    for net, functional in expression.nets.items():
        sizes = {name: p.numel() for name, p in functional.layout.parameters.items()}
        trained = sum(size for name, size in sizes.items() if name in plan.learned.get(net, ()))
        rows.append([net, f"{trained:,} trained, {sum(sizes.values()) - trained:,} frozen"])
    owned = {} if started is None else started.state.trainable["terms"]
    for name, flat in owned.items():
        if flat:
            rows.append([f"terms.{name}", f"{sum(p.numel() for p in flat.values()):,} trained"])
    return rows


def _random(started: Started | None) -> list[str]:
    if started is None:
        return ["give an example batch to see shapes, which numbers are lifted, and random draws"]
    drawn = started.random
    if not drawn:
        return ["random draws", "  all from the state's seed"]
    return ["random draws", f"  from the global generator, so not replayed: {', '.join(drawn)}"]
