"""A larger network as a linear function of a small one, which is learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest, shown
from ttransfer.core._maps import WeightMap
from ttransfer.weights._groups import Group, Wanted, checked, numbered
from ttransfer.weights._routes import Route, Routes, Tensors, on_meta, routed, taken
from ttransfer.weights._widened import Wider, widened

__all__ = ["ligo"]


def ligo(
    groups: Sequence[Group], widths: Wanted[int] | None = None, *, layers: str | Sequence[str] = ()
) -> Callable[..., WeightMap]:
    r"""Grow a network by growth matrices: its width by one or two for each group, its depth by one for each stack.

    For layer l of the large network, out of layers j of the small one:

    .. math:: W'_l = \sum_j D_{lj}\, B\, W_j\, A^\top, \qquad b'_l = \sum_j D_{lj}\, B\, b_j

    B is the matrix of the group that a weight makes, A that of the group that it reads. All weights share them, as
    they share the group. They are learned in a step: ``tt.as_reparam(grow, src, **tt.weights.ligo_start(...))``.

    Args:
        groups: of the small network, as `channel_groups` finds them.
        widths: group, by its number or by a tensor that makes its channels -> how many channels it is to have.
        layers: names of stacks of layers that are numbered: "blocks" for "blocks.0.fc.weight".

    Returns:
        A function of growth matrices, by keyword, to a `WeightMap` which passes on what no matrix is for. "width3" is
        the (new, old) matrix B of group 3, "into3" its (new, old) matrix A, without which B is taken, as in the
        authors' code; "depth0" is the (new, old) matrix D of the first stack. `ligo_start` makes them. Integers of a
        new layer are those of the old one at its place, from the first again after the last.

    Raises:
        TransferError: for groups that cannot grow, or overlap; in the function, for a matrix of no group or stack, of
            another size, or missing; at use, for a stack that is not in the source, or whose layers differ in names
            or shapes.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> groups, widths = tt.weights.channel_groups(net, torch.zeros(1, 3)), {"0.weight": 6}
        >>> grow = tt.weights.ligo(groups, widths)(**tt.weights.ligo_start(groups, widths))
        >>> grow.plan(net.state_dict(), {}).made["2.weight"].how
        'axis 1: channels 4 -> 6, by a growth matrix'
        >>> grow.apply(net.state_dict(), {})["2.weight"].shape
        torch.Size([2, 6])

    References:
        Wang, Peihao, Panda, Rameswar, Hennigen, Lucas Torroba, Greengard, Philip, Karlinsky, Leonid, Feris, Rogerio,
        Cox, David Daniel, Wang, Zhangyang, Kim, Yoon. Learning to Grow Pretrained Models for Efficient Transformer
        Training. 2023.
    """
    # What the index tensors say is read here, once: the function is called inside the step.
    sizes = {number: (width, groups[number].size) for number, width in numbered("ligo", groups, widths or {}).items()}
    found = {name: [_stated(step) for step in steps] for name, steps in widened("ligo", groups, widths or {}).items()}
    stacks = (layers,) if isinstance(layers, str) else tuple(layers)

    def grow(**growth: Tensor) -> WeightMap:
        _check(growth, sizes, stacks)

        def routes(src: Tensors, like: Tensors) -> Routes:
            made = {name: taken(name) for name in src}
            for name, steps in found.items():
                for step in steps:
                    checked("ligo", step.wider.axis, src)
                how = "; ".join(f"{step.wider.told()}, by a growth matrix" for step in steps)
                made[name] = Route((name,), _widen(steps, growth), how)
            for i, stack in enumerate(stacks):
                made = _deepen(stack, growth[f"depth{i}"], src, made)
            return Routes(made)

        return routed(routes)

    return grow


class _Stated(NamedTuple):
    """A wider axis in tensors: what is of no group, where each group's channels are, and the order of what is new."""

    wider: Wider
    rest: Tensor
    index: dict[int, Tensor]
    order: Tensor


def _stated(step: Wider) -> _Stated:
    rest = [place.entry for place in step.places if place.group < 0]
    starts, start = {}, len(rest)
    for number, (axis, width) in step.parts.items():
        starts[number] = start
        start += width * axis.index.shape[1]
    before = {entry: i for i, entry in enumerate(rest)}
    order = [
        before[place.entry]
        if place.group < 0
        else starts[place.group] + place.channel * step.parts[place.group][0].index.shape[1] + place.entry
        for place in step.places
    ]
    index = {number: axis.index.sort(1).values for number, (axis, _) in step.parts.items()}
    here = torch.device("cpu")
    return _Stated(step, torch.tensor(rest, dtype=torch.int64, device=here), index, torch.tensor(order, device=here))


def _check(growth: Mapping[str, Tensor], sizes: Mapping[int, tuple[int, int]], stacks: Sequence[str]) -> None:
    wanted: dict[str, str] = {f"width{number}": str(size) for number, size in sizes.items()}
    wanted |= {f"depth{i}": "(new, old)" for i in range(len(stacks))}
    for name in wanted:
        if name not in growth:
            raise TransferError(f"ligo: there is no {name!r}; want a matrix for each of {', '.join(wanted)}")
    wanted |= {f"into{number}": str(size) for number, size in sizes.items()}
    for name, matrix in growth.items():
        if name not in wanted:
            raise TransferError(f"ligo: {name!r} names no growth matrix{nearest(name, wanted)}")
        if matrix.ndim != 2 or wanted[name] not in ("(new, old)", str(tuple(matrix.shape))):
            raise TransferError(f"ligo: {name!r} must be {wanted[name]}, got {shown(matrix)}")


def _widen(steps: Sequence[_Stated], growth: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def make(x: Tensor) -> Tensor:
        for step in steps:
            axis = step.wider.axis.axis
            parts = [x.index_select(axis, step.rest.to(x.device))]
            for number, index in step.index.items():
                matrix = growth[f"width{number}"]
                if step.wider.axis.reads:
                    matrix = growth.get(f"into{number}", matrix)
                old = x.index_select(axis, index.reshape(-1).to(x.device)).unflatten(axis, tuple(index.shape))
                new = (matrix.to(x.device, x.dtype) @ old.movedim(axis, 0).flatten(1)).unflatten(
                    1, _without(old.shape, axis)
                )
                parts.append(new.movedim(0, axis).flatten(axis, axis + 1))
            x = torch.cat(parts, axis).index_select(axis, step.order.to(x.device))
        return x

    return make


def _without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _deepen(stack: str, matrix: Tensor, src: Tensors, made: dict[str, Route]) -> dict[str, Route]:
    """Routes with the layers of a stack mixed; each goes through what its layer goes through."""
    layers: dict[int, dict[str, str]] = {}
    for name in made:
        number, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if name.startswith(f"{stack}.") and number.isdigit() and rest:
            layers.setdefault(int(number), {})[rest] = name
    if not layers:
        raise TransferError(f"ligo: the source has no layers {stack + '.0'!r}{nearest(stack, src)}")
    new, old = matrix.shape
    if sorted(layers) != list(range(old)):
        raise TransferError(f"ligo: {stack!r} has layers {sorted(layers)}, and its matrix is for {old}")
    shapes = [{rest: _shape(made[name], src) for rest, name in layers[i].items()} for i in range(old)]
    for i, other in enumerate(shapes):
        if other != shapes[0]:
            odd = sorted(rest for rest in {*other, *shapes[0]} if other.get(rest) != shapes[0].get(rest))
            raise TransferError(f"ligo: layers 0 and {i} of {stack!r} differ in {odd[0]!r}, and cannot be mixed")
    kept = {
        name: route
        for name, route in made.items()
        if name not in {n for some in layers.values() for n in some.values()}
    }
    for j in range(new):
        for rest in layers[0]:
            parts = [made[layers[i][rest]] for i in range(old)]
            if not src[parts[0].sources[0]].is_floating_point():
                kept[f"{stack}.{j}.{rest}"] = parts[j % old]
                continue
            whole = "; ".join(filter(None, (parts[0].how, f"layer {j} of {new} out of {old}, by a growth matrix")))
            kept[f"{stack}.{j}.{rest}"] = Route(tuple(p.sources[0] for p in parts), _mix(parts, matrix, j), whole)
    return kept


def _shape(route: Route, src: Tensors) -> Any:
    x = on_meta(src[route.sources[0]])
    return (x if route.make is None else route.make(x)).shape


def _mix(parts: Sequence[Route], matrix: Tensor, j: int) -> Callable[..., Tensor]:
    def make(*xs: Tensor) -> Tensor:
        grown: list[Tensor] = [x if p.make is None else p.make(x) for p, x in zip(parts, xs, strict=True)]
        return torch.tensordot(matrix[j].to(grown[0].device, grown[0].dtype), torch.stack(grown), dims=1)

    return make
