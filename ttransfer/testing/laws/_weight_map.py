"""Laws on weight maps as functions of a source and a target."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ttransfer.core._maps import WeightMap
from ttransfer.testing._law import Broken
from ttransfer.testing.laws import _map_gradient, _map_modes, _map_pure, _weight_map_plan
from ttransfer.testing.laws._map_pure import close_to_double, for_inputs, two
from ttransfer.testing.laws._map_subject import MapSubject, Trees, asked, first_line, pull, run, runs, told
from ttransfer.testing.laws._map_trees import Tensors, change, equal, gap, reals, shapes, unlike
from ttransfer.testing.laws._weight_map_plan import copied_of, plan_of, reach, shifted
from ttransfer.weights import chain

__all__ = ["ARGUMENTS", "LAWS"]

ARGUMENTS = ("src", "like")
ROOM = 1e-12


@asked()
def target_dtype(subject: MapSubject) -> None:
    """A result has the dtype of its target, or that of its source.

    Broken by: .float(), a constant made without dtype=.
    """
    made = plan_of(subject, subject.start).made
    for here in (torch.float32, torch.float64):
        for there in (torch.float32, torch.float64):
            src = change(subject.start[0], lambda x, d=here: x.to(d))
            like = change(subject.start[1], lambda x, d=there: x.to(d))
            try:
                result = run(subject, (src, like))
            except Broken:
                if here == there:
                    raise
                continue  # a map may refuse to mix them
            for name, x in result.items():
                sources = made[name].sources if name in made else (name,)
                tensors = [src[k] for k in sources if k in src] + [like[k] for k in (name,) if k in like]
                if tensors and x.dtype not in [t.dtype for t in tensors]:
                    raise Broken(f"from {here} to {there}, {name!r} is of {x.dtype}")


def _compare(subject: MapSubject, form: Callable[[Tensor], Tensor], what: str) -> None:
    """Compare what is made of one source tensor of its own shape, and of nothing else, with that."""
    reached, plan = reach(subject, subject.start), plan_of(subject, subject.start)
    copied = {name: source for name, source in copied_of(plan).items() if not plan.made[name].how}

    def test(inputs: Trees) -> None:
        src, like = inputs
        here = run(subject, inputs)
        elsewhere = run(subject, (src, {name: shifted(x) for name, x in like.items()}))
        for name, source in copied.items():
            if name not in here or source not in src or here[name].shape != src[source].shape:
                continue
            alone = [k for k, results in reached.items() if name in results] == [source]
            alone = alone and name in elsewhere and gap(elsewhere[name], here[name]) <= ROOM
            if alone and gap(form(here[name]), form(src[source].to(here[name].dtype))) > ROOM:
                found = {"source": src[source], "result": here[name]}
                raise Broken(f"{name!r} {what} {source!r}\n{told(subject, inputs, **found)}")

    for_inputs(subject, test)


@asked()
def numbers_kept(subject: MapSubject) -> None:
    """What is made of one source tensor of its own shape has its numbers, in whatever order, if the plan tells no how.

    Broken by: a scale, an interpolation that moves a grid which is of the right size already, a cast to few bits on
    the way, a row taken twice.
    """
    _compare(subject, lambda x: x.flatten().sort().values, "has other numbers than")


@asked(lambda s: s.claims["verbatim"])
def verbatim(subject: MapSubject) -> None:
    """What is made of one source tensor of its own shape is that tensor, if the plan tells no how.

    Broken by: a square matrix transposed, an axis turned round.
    """
    _compare(subject, lambda x: x, "is not")


@asked()
def copied_whole(subject: MapSubject) -> None:
    """What is copied from a source of its own shape comes from the source in every number.

    Broken by: a slice that is one short, rows left as the target had them.
    """
    src, like = subject.start
    here = run(subject, subject.start)
    there = run(subject, ({name: shifted(x) for name, x in src.items()}, like))
    for name, source in copied_of(plan_of(subject, subject.start)).items():
        if name in here and name in there and source in src and here[name].shape == src[source].shape:
            same = here[name] == there[name]
            if bool(same.any()):
                raise Broken(f"{int(same.sum())} of the {same.numel()} numbers in {name!r} do not follow {source!r}")


@asked()
def source_gradient(subject: MapSubject) -> None:
    """Every source tensor that is used gets a gradient: a map may be part of a step.

    Broken by: detach(), .data or no_grad, torch.tensor(x), NumPy on the way.
    """
    used = {source for one in plan_of(subject, subject.start).made.values() for source in one.sources}
    idle = {name for name, x in reals(subject.start[0]).items() if name in used and x.numel()}
    for seed in range(2):
        grads = pull(subject, subject.sample(seed, 0, True), (0,))[1][0]
        idle -= {name for name, grad in grads.items() if bool((grad != 0).any())}
    if idle:
        raise Broken(f"no gradient: {', '.join(sorted(idle))}")


@asked()
def apply_on_meta(subject: MapSubject) -> None:
    """On the meta device apply gives the same names, shapes and dtypes: chain's dry run needs that.

    Broken by: a Python branch on a value, .item(), NumPy.
    """
    here = run(subject, subject.start)
    try:
        there = subject.function(*({name: x.to("meta") for name, x in tree.items()} for tree in subject.start))
    except Exception as error:
        raise Broken(f"there it raised {first_line(error)}") from error
    as_told = [{k: (tuple(x.shape), x.dtype) for k, x in tree.items()} for tree in (here, there)]
    if as_told[0] != as_told[1]:
        raise Broken(f"there it gives {shapes(there)}, and with values {shapes(here)}")


@asked()
def chains(subject: MapSubject) -> None:
    """Before or after a map that does nothing it is the same map, in result and in plan.

    Broken by: a plan that says one thing of a name and apply another, a result that is no dict of tensors.
    """
    wholes: dict[str, WeightMap] = {
        "alone in a chain": chain(subject.part),
        "after a map that does nothing": chain(chain(), subject.part),
        "before a map that does nothing": chain(subject.part, chain()),
    }
    here, plan = run(subject, subject.start), plan_of(subject, subject.start)
    for what, whole in wholes.items():
        there = run(subject, subject.start, whole.apply)
        if not equal(here, there):
            raise Broken(f"{what} it gives another {unlike(here, there, 0.0)!r}")
        made = plan_of(subject._replace(part=whole), subject.start).made
        if made != plan.made:
            raise Broken(f"{what} it makes {made}, else {plan.made}")


@asked(None)
def ties(subject: MapSubject) -> None:
    """Two names of one tensor (tied weights), of which the same is made, stay two names of one tensor.

    Broken by: a clone or a cast for each name.
    """
    (src, like), plan = subject.start, plan_of(subject, subject.start)
    alike: dict[object, tuple[str, str]] = {}
    for name, source in copied_of(plan).items():
        x, how = src[source], plan.made[name].how
        kind = (how, x.shape, x.dtype, like[name].shape if name in like else None)
        if kind not in alike:
            alike[kind] = (name, source)
            continue
        first, other = alike[kind]
        result = subject.function({**src, source: src[other]}, like)  # `run` would copy each
        if result[name].data_ptr() != result[first].data_ptr():
            raise Broken(f"{source!r} and {other!r} were one tensor, and {name!r} and {first!r} are two")


@asked(None)
def linear(subject: MapSubject) -> None:
    """The result is linear in the source, but for what is the target's own.

    Broken by: a product of two sources, a division by a norm.
    """
    like = subject.start[1]
    one, other = (reals(subject.sample(seed, 0, True)[0]) for seed in (0, 1))

    def at(fn: Callable[[str], Tensor]) -> Tensors:
        return reals(run(subject, ({**subject.start[0], **{name: fn(name) for name in one}}, like)))

    nothing = at(lambda name: torch.zeros_like(one[name]))
    a, b, both = at(one.__getitem__), at(other.__getitem__), at(lambda name: one[name] + other[name])
    wanted = {name: x + b[name] - nothing[name] for name, x in a.items()}
    if name := unlike(both, wanted):
        raise Broken(f"for a sum {name!r} is no sum\n{told(subject, subject.start, **two(name, both, wanted))}")


@asked(None)
def bfloat16(subject: MapSubject) -> None:
    """In bfloat16 the result is finite, and near what it is in float64.

    Broken by: an operation that has no form for few bits.
    """

    def test(inputs: Trees) -> None:
        close_to_double(subject, tuple(change(tree, Tensor.bfloat16) for tree in inputs), 0.15, "bfloat16")

    for_inputs(subject, test)


LAWS = (
    runs,
    *_weight_map_plan.LAWS,
    target_dtype,
    numbers_kept,
    verbatim,
    copied_whole,
    source_gradient,
    apply_on_meta,
    chains,
    ties,
    linear,
    *_map_pure.LAWS,
    bfloat16,
    *_map_gradient.LAWS,
    *_map_modes.LAWS,
)
