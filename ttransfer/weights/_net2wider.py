"""A wider network that computes what the narrow one did."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._maps import WeightMap
from ttransfer.core._uniform import uniform
from ttransfer.weights._groups import Group, Wanted, checked, is_whole, numbered, passed
from ttransfer.weights._routes import Route, Routes, Tensors, routed, spelt
from ttransfer.weights._widened import Wider, widened

__all__ = ["net2wider", "replicas"]

_EVEN = {"layer_norm", "rms_norm", "group_norm", "mean"}  # see no difference if every channel has as many copies


def net2wider(groups: Sequence[Group], widths: Wanted[int], *, seed: int = 0, noise: float = 0.0) -> WeightMap:
    r"""Widen groups by copies of channels, so that the function stays as it is.

    With :math:`g(j) = j` for the n channels there are, and a random one of them for the others, what makes a channel
    is copied, and what reads it is divided by the number of copies:

    .. math:: U_{j} = W_{g(j)}, \qquad V_{j} = \frac{1}{|\{i: g(i) = g(j)\}|}\, W_{g(j)}

    Batch norms are copied with their channels. A normalisation over channels sees no difference if all have as many
    copies: such groups grow to multiples of their size.

    Args:
        groups: of the network, as `channel_groups` finds them.
        widths: group, by its number or by a tensor that makes its channels -> how many channels it is to have.
        seed: of the random choice, and of the noise.
        noise: relative standard deviation of uniform noise on the weights that make copies, so that copies learn
            different things; the function is then nearly what it was. It follows from the seed and the tensor's name.

    Returns:
        A `WeightMap` which passes on what is in none of these groups.

    Raises:
        TransferError: for a group that there is not, one that is fixed or cannot grow alone, fewer channels than
            there are or no whole number, groups that overlap, a group in which more channels cannot leave the function
            as it is (queries with keys; a weight that both makes and reads it); at use, for a source that is not of
            the groups' network.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> wide = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2))
        >>> x = torch.randn(5, 3)
        >>> groups = tt.weights.channel_groups(net, x)
        >>> plan = tt.weights.transfer(net.state_dict(), wide, tt.weights.net2wider(groups, {"0.weight": 9}))
        >>> torch.allclose(net(x), wide(x), atol=1e-6)
        True

    References:
        Chen, Tianqi, Goodfellow, Ian, Shlens, Jonathon. Net2Net: Accelerating Learning via Knowledge Transfer. 2016.
    """
    wanted = numbered("net2wider", groups, widths)
    for number, width in wanted.items():
        if not is_whole(width):
            raise TransferError(
                f"net2wider: group {number} has {groups[number].size} channels, and is to have {width!r}; want an int"
            )
    found = widened("net2wider", groups, widths)
    chosen = {number: replicas(groups[number], number, width, seed) for number, width in wanted.items()}
    makes = {name: _grow(name, steps, chosen, seed, noise) for name, steps in found.items()}
    with_noise = f", with noise {spelt(noise)}"

    def routes(src: Tensors, like: Tensors) -> Routes:
        made = passed(groups, src)
        for name, steps in found.items():
            for step in steps:
                checked("net2wider", step.axis, src)
            how = "; ".join(step.told() for step in steps)
            how += with_noise if noise > 0 and src[name].ndim > 1 else ""
            made[name] = Route((name,), makes[name], how)
        return Routes(made)

    return routed(routes)


def replicas(group: Group, number: int, width: int, seed: int) -> list[int]:
    """For each channel of a wider group, the channel that it is a copy of."""
    if width == group.size:
        return list(range(width))
    if stuck := set(group.mixed) - _EVEN:
        raise TransferError(f"net2wider: group {number} is summed over in {min(stuck)!r}, where copies would show")
    if group.mixed and width % group.size:
        raise TransferError(
            f"net2wider: group {number} is summed over in {group.mixed[0]!r}, where all its {group.size} channels must "
            f"have as many copies; {width} is no multiple"
        )
    if group.mixed:
        return [channel % group.size for channel in range(width)]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    more = torch.randint(group.size, (width - group.size,), generator=generator)
    return [*range(group.size), *more.tolist()]


def _grow(
    name: str, steps: Sequence[Wider], chosen: Mapping[int, list[int]], seed: int, noise: float
) -> Callable[[Tensor], Tensor]:
    plans = [(step.axis.axis, *_sources(step, chosen)) for step in steps]
    key = seed * 1_000_003 + zlib.crc32(name.encode())

    def make(x: Tensor) -> Tensor:
        noisy, copies = noise > 0 and x.ndim > 1, None
        for axis, at, copied, counts in plans:
            x = x.index_select(axis, at.to(x.device))
            rest = (1,) * (x.ndim - axis - 1)
            if counts is not None:
                x = x / counts.to(x.device, x.dtype).reshape(-1, *rest)
            elif noisy:
                new = copied.to(x.device, x.dtype).reshape(-1, *rest)
                copies = new if copies is None else torch.maximum(copies, new)
        if copies is not None:
            keys = torch.tensor([key], device=x.device)
            by = uniform(keys, *x.shape).squeeze(0).to(x.dtype) * 2 - 1
            x = x * (1 + noise * 3**0.5 * copies * by)
        return x

    return make


def _sources(step: Wider, chosen: Mapping[int, list[int]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Old place for each new one; whether that is a copy; how many copies there are, for an axis that reads them."""
    index = {number: axis.index.sort(1).values.tolist() for number, (axis, _) in step.parts.items()}
    copies = {number: Counter(chosen[number]) for number in step.parts}
    at, copied, counts = [], [], []
    for group, channel, entry in step.places:
        origin = chosen[group][channel] if group >= 0 else -1
        at.append(index[group][origin][entry] if group >= 0 else entry)
        copied.append(group >= 0 and channel >= len(index[group]))
        counts.append(copies[group][origin] if group >= 0 else 1)
    one, other, third = (torch.tensor(numbers, device="cpu") for numbers in (at, copied, counts))
    return one, other, third if step.axis.reads else None
