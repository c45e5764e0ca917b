"""An adapter, a reparam or a weight map as one thing: a function of named tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.testing._law import Broken, Law, law
from ttransfer.testing._text import text
from ttransfer.testing.laws._map_trees import Tensors, change, clones, reals, seeded, shapes

__all__ = [
    "LARGE",
    "MapSubject",
    "asked",
    "first_line",
    "flat",
    "place",
    "pull",
    "run",
    "runs",
    "title_of",
    "told",
    "tried",
    "weighed",
]

Trees = tuple[Tensors, ...]
LARGE = 20_000  # numbers: beyond, fewer inputs are drawn


class MapSubject(NamedTuple):
    """What the laws of maps are given.

    Attributes:
        name: of the map.
        part: the Adapter, Reparam or WeightMap.
        arguments: what its arguments are called.
        function: (*trees) -> tree; an adapter's feature and result are trees of one.
        sample: (seed, rows, at the start) -> arguments in float64, their own parameters as init makes them or not.
        drawn: (family, rows) -> a strategy for (seed, arguments).
        make: (generator, dtype, variant) -> own parameters, as init makes them; a map of weights has none.
        own: position of its own parameters, -1 if it has none.
        given: position of what others hand over.
        axes: what is stacked under vmap: 0 or None for each argument.
        example: what the user gave.
        claims: what is claimed beyond that; True, False, or None for looked at.
        reference: a slow formula of the same, in the form of `function`.
        examples: how many inputs a law draws.
        start: arguments with its own parameters as init makes them.
        trouble: why it cannot be run at all, "" if it can.
    """

    name: str
    part: Any
    arguments: tuple[str, ...]
    function: Callable[..., Any]
    sample: Callable[[int, int, bool], Trees]
    drawn: Callable[..., SearchStrategy[tuple[int, Trees]]]
    make: Callable[[torch.Generator, torch.dtype, int], Any]
    own: int
    given: int
    axes: tuple[int | None, ...]
    example: Any
    claims: Mapping[str, bool | None] = {}
    reference: Callable[..., Any] | None = None
    examples: int = 15
    start: Trees = ()
    trouble: str = ""

    @property
    def parameters(self) -> Tensors:
        """Its own parameters at the start."""
        return self.start[self.own] if self.own >= 0 and not self.trouble else {}


def asked(claim: Callable[[MapSubject], bool | None] | bool | None = True) -> Callable[[Callable[..., None]], Law]:
    """Make a law that is asked of maps that run at all."""

    def of(subject: MapSubject) -> bool | None:
        if subject.trouble:
            return False
        return claim(subject) if callable(claim) else claim

    return law(of)


@law()
def runs(subject: MapSubject) -> None:
    """A map can be made and used, in float64.

    Broken by: values asked of a meta tensor, a dtype or a device fixed inside, a slip in a shape.
    """
    if subject.trouble:
        raise Broken(subject.trouble)


def tried(subject: MapSubject) -> MapSubject:
    """Run the map once, and note why that fails, so that one law says it and not all."""
    try:
        run(subject, subject.sample(0, 4, False))
        start = subject.sample(0, 4, True)
    except Broken as broken:
        return subject._replace(trouble=str(broken))
    large = sum(x.numel() for tree in start for x in tree.values()) > LARGE
    return subject._replace(start=start, examples=max(3, subject.examples // 5) if large else subject.examples)


def first_line(error: BaseException) -> str:
    """What was raised, in a line."""
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text[:300]}"


def told(subject: MapSubject, inputs: Trees, **more: Any) -> str:
    """Write inputs, and what was made of them."""
    lines: list[str] = []
    for argument, tree in zip(subject.arguments, inputs, strict=True):
        if list(tree) == [argument]:
            lines.append(f"{argument} = {text(tree[argument])}")
        elif sum(x.numel() for x in tree.values()) <= 48:
            lines += [f"{argument}[{name!r}] = {text(x)}" for name, x in tree.items()]
        else:
            lines.append(f"{argument}: {shapes(tree)}")
    return "\n".join(lines + [f"{key.replace('_', ' ')} = {text(x)}" for key, x in more.items()])


def place(subject: MapSubject, i: int, name: str) -> str:
    """Where a tensor is among the arguments."""
    argument = subject.arguments[i]
    return argument if argument == name else f"{argument}[{name!r}]"


def run(subject: MapSubject, inputs: Trees, function: Callable[..., Any] | None = None) -> Tensors:
    """Call the map, or another function of the same kind, on copies.

    Raises:
        Broken: if it raises, or returns what is no map's result.
    """
    try:
        result = (function or subject.function)(*map(clones, inputs))
    except Exception as error:
        raise Broken(f"it raised {first_line(error)}\n{told(subject, inputs)}") from error
    if not isinstance(result, Mapping):
        raise Broken(f"it returned {type(result).__name__}, no dict of tensors\n{told(subject, inputs)}")
    for name, x in result.items():
        if not isinstance(x, Tensor):
            what = f"{name!r} " if len(result) > 1 else ""
            raise Broken(f"it returned {what}{type(x).__name__}, no tensor\n{told(subject, inputs)}")
    return dict(result)


def weighed(result: Mapping[str, Tensor], seed: int = 0) -> Tensor:
    """The sum of all real numbers in a result, each with a weight of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for i, (_, x) in enumerate(sorted(reals(result).items())):
        weights = torch.randn(x.shape, generator=seeded(seed + i), dtype=torch.float64)
        total = total + (weights.to(x.dtype) * x).sum()
    return total


def pull(
    subject: MapSubject, inputs: Trees, positions: tuple[int, ...], function: Callable[..., Any] | None = None
) -> tuple[Tensors, dict[int, Tensors]]:
    """Call the map, and differentiate `weighed` of its result by the real tensors of these arguments.

    Returns:
        The result, and position -> name -> gradient; what is not reached gets zeros.
    """
    leaves = {i: change(reals(inputs[i]), lambda x: x.detach().clone().requires_grad_()) for i in positions}
    result = run(subject, tuple({**tree, **leaves.get(i, {})} for i, tree in enumerate(inputs)), function)
    flat = [x for tree in leaves.values() for x in tree.values()]
    value = weighed(result)
    if not flat or not value.requires_grad:
        return result, {i: change(tree, torch.zeros_like) for i, tree in leaves.items()}
    try:
        grads = iter(torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True))
    except RuntimeError as error:
        raise Broken(f"its backward raised {first_line(error)}\n{told(subject, inputs)}") from error
    plain = {name: x.detach() for name, x in result.items()}
    return plain, {i: {name: next(grads) for name in tree} for i, tree in leaves.items()}


def flat(params: Any) -> Tensors:
    """What init returned, as float64.

    Raises:
        Broken: if it is no flat dict of tensors.
    """
    if not isinstance(params, Mapping):
        raise Broken(f"init returned {type(params).__name__}, wanted a flat dict of tensors")
    for name, x in params.items():
        if not isinstance(x, Tensor):
            raise Broken(f"init returned {name!r}: {type(x).__name__}, wanted a flat dict of tensors")
    return {name: x.detach().double() if x.is_floating_point() else x for name, x in params.items()}


def title_of(part: Any, kind: type[Any]) -> str:
    """The name of the function that made a part, or of its kind.

    Raises:
        TransferError: if it is of another kind.
    """
    if not isinstance(part, kind):
        raise TransferError(f"check: wanted {kind.__name__}({', '.join(kind._fields)}), got {type(part).__name__}")
    function = part[0 if kind is WeightMap else 1]
    # A map of one rule is named by the function that made the rule; one that several share knows for whom it works.
    inside = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    rule = inside.get("routes", function)
    own = inspect.getclosurevars(rule).nonlocals.get("whose") if inspect.isfunction(rule) else None
    name = str(own or getattr(rule, "__qualname__", "")).split(".<locals>")[0].split(".")[-1]
    return name if name.isidentifier() else kind.__name__
