"""Which tensor is in which part of a net."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ttransfer._errors import TransferError, nearest
from ttransfer.core._maps import WeightMap
from ttransfer.core._tree import matches
from ttransfer.core._types import Params
from ttransfer.weights._pool import MARK
from ttransfer.weights._routes import Tensors, identity

__all__ = ["Part", "Share", "bare_names", "shared_out", "tied"]

REST = ".*"


class Part(NamedTuple):
    """A part of a net and its map.

    Attributes:
        title: what messages and plans call it.
        fits: a regular expression for whole names; or names, with which goes what is unnamed in the same module.
        map: for what fits.
    """

    title: str
    fits: str | tuple[str, ...]
    map: WeightMap


class Share(NamedTuple):
    """What goes through one part's map."""

    part: Part
    src: Params
    like: Params


def bare_names(src: Tensors) -> dict[str, str]:
    """Name -> what patterns are compared with: in a pool, the name without its checkpoint's."""
    pooled = all(MARK in name for name in src)
    return {name: name.partition(MARK)[2] if pooled else name for name in src}


def tied(src: Tensors, bare: Mapping[str, str]) -> list[list[str]]:
    """The names of each tensor that has several, in a pool those that it has in every checkpoint.

    There are none inside a compiled step, where no tensor has a place.
    """
    if torch.compiler.is_compiling():
        return []
    seen: dict[str, list[object]] = {}
    for name, x in src.items():
        seen.setdefault(bare[name], []).append((name.removesuffix(bare[name]), identity(x)))
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, key in seen.items():
        groups.setdefault(tuple(key), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def shared_out(
    whose: str,
    parts: Sequence[Part],
    src: Tensors,
    like: Tensors,
    bare: Mapping[str, str],
    twins: Sequence[Sequence[str]],
) -> list[Share]:
    """Divide source and target."""
    names = tuple(dict.fromkeys((*bare.values(), *like)))
    fits = tuple(part.fits for part in parts)
    where = dict(zip(names, _places(fits, names), strict=True))
    for group in twins:
        found = {where[name] for name in group if where[name] >= 0}
        where.update({name: min(found) for name in group if where[name] < 0 and len(found) == 1})
    if stray := [name for name in src if where[bare[name]] < 0]:
        cure = f"; a last part {REST!r} takes the rest" if all(isinstance(one, str) for one in fits) else ""
        raise TransferError(f"{whose}: {stray[0]!r}, one of {len(stray)} source tensors, is in no part{cure}")
    shares: list[Share] = []
    for i, part in enumerate(parts):
        here = {name: x for name, x in src.items() if where[bare[name]] == i}
        there = {name: x for name, x in like.items() if where[name] == i}
        lost = [name for name in part.fits if name not in where] if isinstance(part.fits, tuple) else []
        if lost:
            raise TransferError(f"{whose}: {part.title!r}: there is no {lost[0]!r}{nearest(lost[0], names)}")
        if here or there:
            shares.append(Share(part, here, there))
        elif part.fits != REST:
            raise TransferError(f"{whose}: {part.title!r} {_idle(part, parts, names, where)}")
    return shares


def _idle(part: Part, parts: Sequence[Part], names: Sequence[str], where: Mapping[str, int]) -> str:
    """Why a part gets nothing."""
    if not isinstance(part.fits, str):
        return "names no tensor"
    for name in names:
        if matches(part.fits, name):
            return f"gets nothing: what it fits, such as {name!r}, goes to {parts[where[name]].title!r} before it"
    return f"fits no tensor{nearest(part.fits, names)}"


def _places(parts: tuple[str | tuple[str, ...], ...], names: tuple[str, ...]) -> tuple[int, ...]:
    """Say of each name which part it is in; -1 for none."""
    return _placed(parts, names)


# As torch.compiler.assume_constant_result marks it, which loads the compiler: torch 2.8 cannot trace expressions.
_places.__dict__["_dynamo_marked_constant"] = True


@functools.lru_cache(maxsize=64)  # a map in a step asks for the same in each
def _placed(parts: tuple[str | tuple[str, ...], ...], names: tuple[str, ...]) -> tuple[int, ...]:
    listed = {name: i for i, part in enumerate(parts) if isinstance(part, tuple) for name in part}

    def place(name: str) -> int:
        for i, part in enumerate(parts):
            if matches(part, name) if isinstance(part, str) else listed.get(name) == i:
                return i
        module = name if listed else ""
        while module:
            module = module.rpartition(".")[0]
            near = {i for other, i in listed.items() if not module or other.startswith(f"{module}.")}
            if near:
                return near.pop() if len(near) == 1 else -1
        return -1

    return tuple(map(place, names))
