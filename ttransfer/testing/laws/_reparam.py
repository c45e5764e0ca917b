"""Laws on reparametrisations: the base's names come out, the base is left, and the delta counts."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer.testing._law import Broken
from ttransfer.testing.laws import _map_gradient, _map_modes, _map_pure, _map_start
from ttransfer.testing.laws._map_pure import for_inputs, two
from ttransfer.testing.laws._map_start import made
from ttransfer.testing.laws._map_subject import MapSubject, Trees, asked, first_line, pull, run, runs, told
from ttransfer.testing.laws._map_trees import Tensors, at_random, change, clones, equal, moved, reals, seeded, unlike

__all__ = ["ARGUMENTS", "LAWS"]

ARGUMENTS = ("base", "delta")
SEEDS = 4


@asked()
def names_kept(subject: MapSubject) -> None:
    """The base's names come out, each with the shape and the dtype that it had.

    Broken by: leaves left out or given new names, a change that broadcasts, .float(), a constant without dtype=.
    """

    def test(inputs: Trees) -> None:
        for wanted in (torch.float32, torch.float64):
            base, delta = (change(tree, lambda x, d=wanted: x.to(d)) for tree in inputs)
            result = run(subject, (base, delta))
            if result.keys() != base.keys():
                lost, new = sorted(base.keys() - result.keys()), sorted(result.keys() - base.keys())
                raise Broken(
                    f"names lost: {', '.join(lost) or 'none'}; names that the base has not: {', '.join(new) or 'none'}"
                )
            for name, x in result.items():
                if x.shape != base[name].shape or x.dtype != base[name].dtype:
                    was, now = ((tuple(t.shape), t.dtype) for t in (base[name], x))
                    raise Broken(f"{name!r} was {was[0]}, {was[1]} and became {now[0]}, {now[1]}")

    for_inputs(subject, test)


@asked()
def names_apart(subject: MapSubject) -> None:
    """The delta's names are not the base's: both live under one roof.

    Broken by: the delta named as the weight that it changes.
    """
    base, delta = subject.start
    if clash := sorted(base.keys() & delta.keys()):
        raise Broken(f"both have: {', '.join(clash)}")


@asked()
def something_trains(subject: MapSubject) -> None:
    """There is something to train: a delta, or trains_base=True.

    Broken by: a pattern that matches nothing, trains_base forgotten.
    """
    if not reals(subject.parameters) and not subject.part.trains_base:
        raise Broken("init makes no parameters, and the base does not train")


@asked()
def layout_by_shapes(subject: MapSubject) -> None:
    """Which parameters there are, and of what shape, follows from the base's names, shapes and dtypes alone.

    Broken by: a rank or a mask's size chosen by values. A net's parameters are laid out on a base of zeros.
    """
    wanted = made(subject)
    for variant, what in ((-1, "of zeros"), (1, "of other numbers")):
        found = made(subject, variant=variant)
        if list(found) != list(wanted):
            raise Broken(
                f"for a base {what} there are {', '.join(found) or 'none'}, else {', '.join(wanted) or 'none'}"
            )
        for name, x in found.items():
            if x.shape != wanted[name].shape or x.dtype != wanted[name].dtype:
                shapes = tuple(x.shape), tuple(wanted[name].shape)
                raise Broken(
                    f"for a base {what} {name!r} is {shapes[0]}, {x.dtype}, else {shapes[1]}, {wanted[name].dtype}"
                )


@asked(lambda s: None if reals(s.parameters) else False)
def init_by_shapes(subject: MapSubject) -> None:
    """The parameters at the start do not depend on the base's values.

    Broken by: a norm, a decomposition or a copy of a weight, as is often meant.
    """
    if name := unlike(made(subject, variant=0), made(subject, variant=1), 0.0):
        raise Broken(f"{name!r} is another for a base of other numbers")


@asked()
def init_leaves_base(subject: MapSubject) -> None:
    """Init changes nothing in the base, and hands out none of its memory.

    Broken by: a norm or a mask applied in place, pop(), a weight itself or a view of it in the delta.
    """
    base = at_random(subject.example, 0)
    shown = clones(base)
    delta = subject.part.init(seeded(0), shown)
    if list(shown) != list(base) or not equal(shown, base):
        raise Broken(f"init changed the base: {unlike(shown, base, 0.0)!r}")
    memory = {x.untyped_storage().data_ptr(): name for name, x in shown.items() if x.numel()}
    for name, x in delta.items():
        if x.numel() and x.untyped_storage().data_ptr() in memory:
            raise Broken(f"{name!r} has the memory of the base's {memory[x.untyped_storage().data_ptr()]!r}")


@asked(lambda s: s.claims["identity"])
def identity(subject: MapSubject) -> None:
    """A delta that has just been made changes nothing: training starts where the base is.

    Broken by: both factors drawn at random, a magnitude that is not the weight's own, a scale that does not start at
    one. Say identity=False where it is meant, as for a quantised weight.
    """

    def test(inputs: Trees) -> None:
        result = run(subject, inputs)
        if name := unlike(result, inputs[0], 1e-12):
            raise Broken(f"at the start it changes {name!r}\n{told(subject, inputs, **two(name, result, inputs[0]))}")

    for_inputs(subject, test, "start")


@asked()
def base_shows(subject: MapSubject) -> None:
    """A weight of the base that changes shows in the result under its name.

    Broken by: a weight replaced where it should be added to, or kept from when init saw it, names exchanged.
    """
    silent = set(reals(subject.example))
    for seed in range(SEEDS):
        base, delta = subject.sample(seed, 0, False)
        here = run(subject, (base, delta))
        for name in sorted(silent):
            there = run(subject, ({**base, name: moved(base, seed + 1)[name]}, delta))
            if name in here and name in there and unlike({name: here[name]}, {name: there[name]}, 1e-12):
                silent.discard(name)
    if silent:
        raise Broken(f"the result is the same whatever these are in the base: {', '.join(sorted(silent))}")


def _named_for(subject: MapSubject) -> dict[str, str]:
    """Name in the delta -> the name in the base that it begins with."""
    found: dict[str, str] = {}
    for name in reals(subject.parameters):
        owners = [
            base for base in subject.example if name.startswith(base) and name[len(base) :][:1] in (".", "_", ":", "/")
        ]
        if owners:
            found[name] = max(owners, key=len)
    return found


@asked(lambda s: bool(_named_for(s)))
def named_for(subject: MapSubject) -> None:
    """What is named after a weight changes that weight, and no other.

    Broken by: two layers of one shape exchanged, a name that is a prefix of another's, zip() over two dicts.
    """
    for seed in range(2):
        base, delta = subject.sample(seed, 0, False)
        here = run(subject, (base, delta))
        for name, owner in _named_for(subject).items():
            there = run(subject, (base, {**delta, name: delta[name] * 1.5 + 0.25}))
            others = {k: x for k, x in here.items() if k != owner}
            if other := unlike(others, {k: x for k, x in there.items() if k != owner}, 1e-12):
                raise Broken(f"{name!r} changes {other!r}")


def _kept(subject: MapSubject) -> bool:
    return len(reals(subject.example)) < len(subject.example)


@asked(_kept)
def integers_kept(subject: MapSubject) -> None:
    """What is no real number comes back as it is.

    Broken by: a change added to every leaf, a cast.
    """
    base, delta = subject.sample(0, 0, False)
    result = run(subject, (base, delta))
    for name, x in base.items():
        if not x.is_floating_point() and (name not in result or not equal({name: result[name]}, {name: x})):
            raise Broken(f"{name!r}, of {x.dtype}, did not come back as it was")


@asked(lambda s: True if s.part.trains_base else None)
def base_gradient(subject: MapSubject) -> None:
    """Every weight of the base gets a gradient: it trains too.

    Broken by: detach(), a rounding without a straight-through gradient.
    """
    idle = set(reals(subject.example))
    for seed in range(SEEDS):
        grads = pull(subject, subject.sample(seed, 0, False), (0,))[1][0]
        idle -= {name for name, grad in grads.items() if bool((grad != 0).any())}
    if idle:
        raise Broken(f"no gradient for any delta: {', '.join(sorted(idle))}")


@asked(None)
def zero_base(subject: MapSubject) -> None:
    """For weights that are all zero, the result and its gradients are finite.

    Broken by: a weight divided by its norm.
    """
    base, delta = subject.sample(0, 0, False)
    _map_gradient.check_finite(subject, (change(base, torch.zeros_like), delta))


@asked()
def bfloat16(subject: MapSubject) -> None:
    """For a base in bfloat16 the result is in bfloat16 and finite.

    Broken by: an eps below what 8 bits can tell from 0, a delta of another dtype that casts the weight.
    """
    for seed in range(3):
        base = change(at_random(subject.example, seed), Tensor.bfloat16)
        try:
            delta = moved(subject.part.init(seeded(seed), clones(base)), seed)
        except Exception as error:
            raise Broken(f"for a base in bfloat16, init raised {first_line(error)}") from error
        try:
            result = run(subject, (base, delta))
        except Broken as broken:
            if "not implemented for 'BFloat16'" in str(broken):
                return  # torch has no such operation
            raise
        # Not compared with float64: a threshold or a rounding may fall on the other side.
        for name, x in result.items():
            if name in base and x.dtype != base[name].dtype:
                raise Broken(f"{name!r} became {x.dtype}")
            if not bool(x.isfinite().all()):
                raise Broken(f"{name!r} is not finite\n{told(subject, (base, delta), result=x)}")


def start_of(tensors: Tensors, dtype: torch.dtype, variant: int) -> Tensors:
    """A base for init: of some numbers, of others, or of zeros (-1)."""
    base = change(tensors, torch.zeros_like) if variant < 0 else at_random(tensors, variant)
    return change(base, lambda x: x.to(dtype))


LAWS = (
    runs,
    *_map_start.LAWS,
    something_trains,
    layout_by_shapes,
    init_by_shapes,
    init_leaves_base,
    names_kept,
    names_apart,
    identity,
    base_shows,
    named_for,
    integers_kept,
    zero_base,
    *_map_pure.LAWS,
    bfloat16,
    *_map_gradient.OWN,
    *_map_gradient.LAWS,
    base_gradient,
    *_map_modes.LAWS,
)
