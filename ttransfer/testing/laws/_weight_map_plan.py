"""Laws on a weight map's plan: it accounts for every tensor, and apply does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ttransfer.core._maps import Plan
from ttransfer.testing._law import Broken
from ttransfer.testing.laws._map_subject import LARGE, MapSubject, Trees, asked, first_line, run, told
from ttransfer.testing.laws._map_trees import (
    Tensors,
    change,
    clones,
    differing,
    equal,
    gap,
    moved,
    reals,
    seeded,
    turned,
    unlike,
)

__all__ = ["LAWS", "copied_of", "plan_of", "reach", "shifted"]

ROOM = 1e-12
FEW, FEWER = 8, 2  # tensors are taken away, or bent, one at a time
UNKNOWN = "no_such_layer.no_such_tensor"


def plan_of(subject: MapSubject, inputs: Trees) -> Plan:
    """The map's plan.

    Raises:
        Broken: if it raises, or returns none.
    """
    try:
        plan: Any = subject.part.plan(*map(dict, inputs))
    except Exception as error:
        raise Broken(f"plan raised {first_line(error)}\n{told(subject, inputs)}") from error
    if not isinstance(plan, Plan):
        raise Broken(f"plan returned {type(plan).__name__}, wanted a Plan")
    return plan


def copied_of(plan: Plan) -> dict[str, str]:
    """Result name -> its source, for results that are made of one."""
    return {name: one.sources[0] for name, one in plan.made.items() if len(one.sources) == 1}


def shifted(x: Tensor) -> Tensor:
    """Other numbers everywhere, of the same sign."""
    if x.is_floating_point():
        return moved({"": x * 1.75}, 0)[""]
    return ~x if x.dtype == torch.bool else x + 1


def reach(subject: MapSubject, inputs: Trees) -> dict[str, set[str]]:
    """Source name -> the results that change when it does.

    A gradient says so of most at once; the others are changed, all together and then one by one.
    """
    src, like = inputs
    leaves = change(reals(src), lambda x: x.clone().requires_grad_())
    here = run(subject, ({**src, **leaves}, like))
    found: dict[str, set[str]] = {name: set() for name in src}
    for name, x in here.items():
        if x.requires_grad:
            weights = torch.randn(x.shape, generator=seeded(0), dtype=torch.float64).to(x.dtype)
            grads = torch.autograd.grad(x, list(leaves.values()), weights, retain_graph=True, allow_unused=True)
            for source, grad in zip(leaves, grads, strict=True):
                found[source] |= {name} if grad is not None and bool(grad.any()) else set()

    def changed(names: list[str]) -> set[str]:
        other = {name: shifted(src[name]) for name in names}
        return set(differing(run(subject, ({**src, **other}, like)), here, ROOM))

    rest = [name for name in src if not found[name]]
    if rest and changed(rest):
        found.update({name: changed([name]) for name in rest})
    return found


def few(subject: MapSubject, names: list[str]) -> list[str]:
    """Some of many names, evenly."""
    count = FEWER if sum(x.numel() for tree in subject.start for x in tree.values()) > LARGE else FEW
    return names if len(names) <= count else [names[i * len(names) // count] for i in range(count)]


def misfits(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor in other shapes: of more numbers, and of as many."""
    if x.ndim and x.numel():
        yield "a row longer", torch.cat([x, x[:1]])
    yield "in another shape", x.reshape(-1, 1) if x.ndim != 2 or x.shape[1] != 1 else x.reshape(-1)


def variants(subject: MapSubject) -> Iterator[tuple[str, Trees]]:
    """What is given, and what is nearly that."""
    src, like = subject.start
    yield "", subject.start
    for name in few(subject, list(src)):
        yield f"without {name!r} in the source: ", ({k: x for k, x in src.items() if k != name}, like)
        for how, other in misfits(src[name]):
            yield f"with {name!r} {how}: ", ({**src, name: other}, like)
    yield "with a source more: ", ({**src, UNKNOWN: torch.ones(2, dtype=torch.float64)}, like)
    yield "with a target more: ", (src, {**like, UNKNOWN: torch.ones(2, dtype=torch.float64)})


def accounts(subject: MapSubject) -> Iterator[tuple[str, Trees, Plan, Tensors]]:
    """Plan and result wherever the map gives both; where it refuses, nothing is to be accounted for."""
    for what, inputs in variants(subject):
        try:
            plan, result = plan_of(subject, inputs), run(subject, inputs)
        except Broken:
            continue
        yield what, inputs, plan, result


@asked()
def plan_form(subject: MapSubject) -> None:
    """A plan's names are those of the source and the target.

    Broken by: source and target exchanged in `made`, names as they are half way.
    """
    for what, (src, like), plan, result in accounts(subject):
        checks = (
            ("made", set(plan.made) - set(like) - set(result), "target, nor in the result"),
            ("made of", {k for one in plan.made.values() for k in one.sources} - set(src), "source"),
            ("unused", set(plan.unused) - set(src), "source"),
            ("kept", set(plan.kept) - set(like), "target"),
            ("missing", set(plan.missing) - set(like), "target"),
            ("mismatched", set(plan.mismatched) - set(like), "target"),
            ("ambiguous", set(plan.ambiguous) - set(like), "target"),
            ("ambiguous between", {k for some in plan.ambiguous.values() for k in some} - set(src), "source"),
        )
        for where, names, side in checks:
            if names:
                raise Broken(f"{what}{where}: {', '.join(sorted(map(repr, names)))}, which is not in the {side}")


@asked()
def plan_is_dry(subject: MapSubject) -> None:
    """The plan follows from names, shapes and dtypes alone: on the meta device, for other values, in another order.

    Broken by: values compared or looked at, the order of two dicts relied on, a dict that was given changed.
    """
    wanted = _sorted(plan_of(subject, subject.start))
    src, like = subject.start
    on_meta = tuple({name: x.to("meta") for name, x in tree.items()} for tree in subject.start)
    cases = {
        "on the meta device": on_meta,
        "for other values": subject.sample(1, 0, True),
        "with the source's names the other way round": (turned(src), like),
        "with the target's names the other way round": (src, turned(like)),
    }
    for what, inputs in cases.items():
        found = _sorted(plan_of(subject, inputs))
        for field, here, there in zip(Plan._fields, found, wanted, strict=True):
            if here != there:
                raise Broken(f"{what} {field} is {here}, else {there}")
    copies = tuple(map(clones, subject.start))
    subject.part.plan(*copies)
    for argument, before, after in zip(subject.arguments, subject.start, copies, strict=True):
        if list(before) != list(after) or not equal(before, after):
            raise Broken(f"plan changed {argument}: {unlike(before, after, 0.0)!r}")


def _sorted(plan: Plan) -> tuple[Any, ...]:
    return plan.made, sorted(plan.kept), sorted(plan.missing), plan.mismatched, plan.ambiguous, plan.unused


@asked()
def targets_accounted(subject: MapSubject) -> None:
    """The plan says of every target what becomes of it, and never that it is both made and not.

    Broken by: a loop over the source's names alone, a name that fails to match passed over.
    """
    for what, (_, like), plan, _ in accounts(subject):
        left = {"missing": plan.missing, "kept": plan.kept, "ambiguous": plan.ambiguous}
        for name in like:
            if (
                name not in plan.made
                and name not in plan.mismatched
                and not any(name in names for names in left.values())
            ):
                raise Broken(f"{what}the plan says nothing of the target's {name!r}")
            for how, names in left.items():
                if name in plan.made and name in names:
                    raise Broken(f"{what}the plan says of {name!r} that it is made, and that it is {how}")


@asked()
def sources_accounted(subject: MapSubject) -> None:
    """A source tensor either shows in the result or is called unused.

    Broken by: two sources under one name, of which one is lost, a key that fits nothing passed over, a tensor
    overwritten by a later one.
    """
    for what, inputs, plan, _ in accounts(subject):
        for name, results in reach(subject, inputs).items():
            if not inputs[0][name].numel():
                continue
            if name in plan.unused and results:
                raise Broken(f"{what}{name!r} is called unused, and {sorted(results)[0]!r} changes with it")
            if name not in plan.unused and not results:
                raise Broken(f"{what}nothing changes with {name!r}, and the plan does not call it unused")


@asked()
def plan_agrees(subject: MapSubject) -> None:
    """What the plan says of a result is so: it follows these sources and no other; the rest is the target's own.

    Broken by: plan and apply written twice and changed once, a tensor of another layer taken, a name mapped one way
    in the one and another way in the other.
    """
    for what, inputs, plan, result in accounts(subject):
        reached, like = reach(subject, inputs), inputs[1]
        for name, one in plan.made.items():
            if name not in result:
                raise Broken(f"{what}{name!r} is said to be made, and is not in the result")
            truly = [source for source, results in reached.items() if name in results]
            wanted = [source for source in one.sources if source in reached and inputs[0][source].numel()]
            if result[name].numel() and set(wanted) != set(truly):
                raise Broken(
                    f"{what}{name!r} is said to be made of {', '.join(map(repr, one.sources))}, and follows "
                    f"{', '.join(map(repr, truly)) or 'no source'}"
                )
        for name, x in result.items():
            if name in plan.made:
                continue
            for source, results in reached.items():
                if name in results:
                    raise Broken(f"{what}{name!r} follows {source!r}, and the plan does not say that it is made")
            if name in like and gap(x, like[name]) > 0:
                raise Broken(
                    f"{what}{name!r} comes from no source, and is not the target's own\n{told(subject, inputs)}"
                )


@asked()
def target_shapes(subject: MapSubject) -> None:
    """Every result has its target's shape, unless the plan calls it mismatched; a map that looks, looks everywhere.

    Broken by: a shape compared by its number of entries or by one axis, a matrix not transposed.
    """
    cases = list(accounts(subject))
    looks = any(plan.mismatched for _, _, plan, _ in cases)
    for what, (_, like), plan, result in cases if looks else cases[:1]:
        for name, x in result.items():
            if name in like and x.shape != like[name].shape and name not in plan.mismatched:
                shapes = f"{tuple(x.shape)}, the target's {tuple(like[name].shape)}"
                raise Broken(f"{what}{name!r} is {shapes}, and the plan does not call it mismatched")


@asked()
def nothing_silent(subject: MapSubject) -> None:
    """A target without a source keeps its old values only if the plan says so.

    Broken by: `if name in src`, strict=False, try and pass, a shape that does not fit passed over: a spelling mistake
    leaves a layer untrained. Such a map raises, leaves the name out, or has its plan call it missing or mismatched.
    """
    src, like = subject.start
    copied = copied_of(plan_of(subject, subject.start))
    cases: list[tuple[str, str, Trees]] = [
        ("which has no source", UNKNOWN, (src, {**like, UNKNOWN: torch.ones(2, dtype=torch.float64)}))
    ]
    for name in few(subject, [name for name in copied if name in like]):
        source = copied[name]
        cases.append((f"without {source!r} in the source", name, ({k: x for k, x in src.items() if k != source}, like)))
        for how, other in misfits(src[source]):
            cases.append((f"with {source!r} {how}", name, ({**src, source: other}, like)))
    for what, name, inputs in cases:
        try:
            result = run(subject, inputs)
        except Broken:
            continue
        plan = plan_of(subject, inputs)
        if name in (*plan.missing, *plan.kept, *plan.mismatched, *plan.ambiguous):
            continue
        kept = name in result and gap(result[name], inputs[1][name]) == 0 and inputs[1][name].numel()
        if kept and not any(name in results for results in reach(subject, inputs).values()):
            raise Broken(f"{what}, {name!r} keeps the target's values, and nothing is raised")


LAWS = (
    plan_form,
    plan_is_dry,
    targets_accounted,
    sources_accounted,
    plan_agrees,
    target_shapes,
    nothing_silent,
)
