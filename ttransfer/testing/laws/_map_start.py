"""Laws on how a map's own parameters begin: a function of a generator and of shapes, and of nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttransfer.testing._law import Broken
from ttransfer.testing._text import text
from ttransfer.testing.laws._map_subject import MapSubject, asked, first_line
from ttransfer.testing.laws._map_trees import Tensors, equal, gap, seeded, unlike

__all__ = ["LAWS", "made"]


def _has_own(subject: MapSubject) -> bool:
    return bool(subject.parameters)


def made(subject: MapSubject, seed: int = 0, dtype: torch.dtype = torch.float64, variant: int = 0) -> Tensors:
    """Its own parameters as init makes them.

    Raises:
        Broken: if it raises.
    """
    return _made(subject, seeded(seed), dtype, variant)


def _made(subject: MapSubject, generator: torch.Generator, dtype: torch.dtype = torch.float64, variant: int = 0) -> Any:
    try:
        return subject.make(generator, dtype, variant)
    except Exception as error:
        raise Broken(f"init raised {first_line(error)}") from error


@asked()
def flat_parameters(subject: MapSubject) -> None:
    """Init returns a flat dict: name -> plain tensor of real numbers, in memory, without a graph.

    Broken by: like.new_zeros or zeros_like where `like` is on the meta device, named_parameters() of a module, whose
    parameters record every later step, nested dicts, a count or a mask among what is trained.
    """
    params: Any = made(subject)
    if type(params) is not dict:
        raise Broken(f"init returned {type(params).__name__}, wanted a dict")
    for name, x in params.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise Broken(f"init returned {name!r}: {type(x).__name__}, wanted a name and a tensor")
        if not x.is_floating_point():
            raise Broken(f"{name!r} is of {x.dtype}; what is trained is real")
        if x.is_meta:
            raise Broken(f"{name!r} is on the meta device, as `like` is, and holds no numbers")
        if x.requires_grad:
            raise Broken(f"{name!r} requires a gradient by itself; return it detached")


@asked(_has_own)
def parameter_dtype(subject: MapSubject) -> None:
    """The parameters have the dtype of what init is shown.

    Broken by: a factory without dtype=, .float().
    """
    for wanted in (torch.float32, torch.float64):
        for name, x in made(subject, dtype=wanted).items():
            if x.dtype != wanted:
                raise Broken(f"for {wanted} {name!r} is of {x.dtype}")


@asked(_has_own)
def fresh_parameters(subject: MapSubject) -> None:
    """Every parameter has memory of its own, and new memory each time.

    Broken by: one tensor under two names, expand(), a view of the base's weight, a tensor made once and handed out
    again and again. Written to in place, as a donated step does, such parameters change together.
    """
    kept = made(subject)
    again = made(subject)
    seen: dict[int, str] = {}
    for name, x in kept.items():
        other = seen.setdefault(x.untyped_storage().data_ptr(), name)
        if other != name and x.numel():
            raise Broken(f"{name!r} shares its memory with {other!r}")
        if x.untyped_storage().nbytes() < x.numel() * x.element_size():
            raise Broken(f"{name!r} is expanded: several of its numbers are one")
    for name, x in again.items():
        if x.numel() and x.untyped_storage().data_ptr() in seen:
            raise Broken(f"{name!r} has the memory of {seen[x.untyped_storage().data_ptr()]!r} of the call before")


@asked()
def generator_alone(subject: MapSubject) -> None:
    """The same state of the generator gives the same parameters, and the global generator is let alone.

    Broken by: torch.randn or nn.init without generator=, nn.Linear(...) inside init, manual_seed, NumPy's random
    numbers.
    """
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(11)
        state = torch.get_rng_state()
        once = made(subject)
        if not torch.equal(state, torch.get_rng_state()):
            raise Broken("init draws from the global generator, or seeds it")
        torch.default_generator.manual_seed(12)
        twice = made(subject)
    finally:
        torch.set_rng_state(before)
    if not equal(once, twice):
        name = unlike(once, twice, 0.0)
        shown = "".join(f"\n{when} {text(x[name])}" for when, x in (("once", once), ("again", twice)) if name in x)
        raise Broken(f"one seed gave two values of {name!r}{shown}")


@asked(_has_own)
def seed_counts(subject: MapSubject) -> None:
    """Another seed gives other random numbers, and so does the same generator asked again.

    Broken by: a seed fixed inside init, or taken from generator.initial_seed(), or one for each layer: every member of
    an ensemble starts as the first, two layers or two maps of one shape are equal.
    """
    first, other, third = (made(subject, seed) for seed in (0, 1, 2))
    shown_another = made(subject, 0, variant=1)
    generator = seeded(0)
    _made(subject, generator)
    again = _made(subject, generator)
    for name, x in first.items():
        if any(name not in tree for tree in (other, third, shown_another, again)):
            raise Broken(f"{name!r} is not there for another seed")
        constant = all(gap(tree[name], x) == 0 for tree in (other, third))
        # A constant, an identity, a mask: zeros and one number beside them.
        if constant and x[x != 0].abs().unique().numel() > 1 and gap(shown_another[name], x) == 0:
            raise Broken(f"{name!r} is the same for every seed, and no constant: {text(x)}")
        if not constant and gap(again[name], x) == 0:
            raise Broken(f"{name!r} is the same when one generator is asked twice: {text(x)}")
        twins = [k for k, other in first.items() if k != name and not constant and gap(other, x) == 0]
        if twins and gap(shown_another[name], x) == 0:
            raise Broken(f"{name!r} and {twins[0]!r} are drawn alike: {text(x)}")


@asked()
def finite_start(subject: MapSubject) -> None:
    """The parameters are finite numbers.

    Broken by: torch.empty left unfilled, a division by a width or a norm of zero.
    """
    for seed in range(3):
        for name, x in made(subject, seed).items():
            if not bool(x.isfinite().all()):
                raise Broken(f"with seed {seed} {name!r} is {text(x)}")


@asked(lambda s: None if _has_own(s) else False)
def init_device(subject: MapSubject) -> None:
    """What init makes is on the generator's device, whatever the default device is.

    Broken by: a factory without device=.
    """
    plain = made(subject)
    with torch.device("meta"):
        params = made(subject)
    if any(x.is_meta for x in params.values()) or not equal(plain, params):
        raise Broken("with another default device the parameters are others, or elsewhere")


LAWS = (
    flat_parameters,
    parameter_dtype,
    fresh_parameters,
    generator_alone,
    seed_counts,
    finite_start,
    init_device,
)
