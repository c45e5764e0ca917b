"""A net in two at a frozen layer, so that what comes before is computed once for each picture."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError, nearest, shown

__all__ = ["cut", "features"]


def cut(model: nn.Module, at: str, *example: Tensor) -> tuple[nn.Module, nn.Module]:
    """Cut a model in two: what gives the features at a place, and what makes its output of them.

    Where everything before that place is frozen, and without dropout, its features do not change: compute them once
    with `features`, and fine-tune the second half on them. Its parameters have the model's names.

    Args:
        model: whose parts before the place are each run by one call, one after another, as in residual networks and
            sequences of blocks; or any model, cut at the input of its last part, "head:in".
        at: a submodule's name, for its output; with ":in" behind it, for its input.
        *example: inputs (at least one), on which the two halves are tried.

    Returns:
        The model up to there, in eval mode, and the rest of it, in the mode of `model`; copies both.

    Raises:
        TransferError: without an example, for a name that is not there or does not run once, and where the two halves
            together do not give what the model gives: something between its parts reads the input, or adds to it.

    Example:
        >>> import torch, ttransfer as tt
        >>> from collections import OrderedDict
        >>> parts = OrderedDict(body=torch.nn.Linear(4, 8), act=torch.nn.ReLU(), fc=torch.nn.Linear(8, 3))
        >>> net = torch.nn.Sequential(parts)
        >>> x = torch.randn(5, 4)
        >>> front, back = tt.recipes.cut(net, "act", x)
        >>> torch.equal(back(front(x)), net(x)), [name for name, _ in back.named_parameters()]
        (True, ['fc.weight', 'fc.bias'])
    """
    place, inward = at.removesuffix(":in"), at.endswith(":in")
    modules = dict(model.named_modules())
    if place not in modules or not place:
        raise TransferError(f"cut: {type(model).__name__} has no submodule {place!r}{nearest(place, modules)}")
    if not example:
        raise TransferError(f"cut: no example to try the two halves on; give the model's inputs: cut(net, {at!r}, x)")
    whole = copy.deepcopy(model).eval()
    order, calls, wanted = _run(whole, place, example)
    if calls != 1:
        raise TransferError(f"cut: {place!r} runs {calls} times; wanted a part that runs once")
    front = _Front(copy.deepcopy(whole), place, inward)
    back = copy.deepcopy(whole)
    before = _before(order, place, inward)
    for name in before:
        _put(back, name, _Pass())
    halves: list[nn.Module] = [back]
    if inward:
        halves.append(_Part(place, copy.deepcopy(whole.get_submodule(place))))
    told = ""
    for half in halves:
        try:
            with torch.no_grad():
                got = half(front(*example))
            if (
                isinstance(got, Tensor)
                and isinstance(wanted, Tensor)
                and torch.allclose(got, wanted, rtol=1e-5, atol=1e-6)
            ):
                return front, half.train(model.training)
            told = "they give something else"
        except Exception as error:  # whatever a forward raises on what it was not made for
            told = f"the second raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    raise TransferError(
        f"cut: at {at!r} the two halves of {type(model).__name__} together are not the model: {told}; what lies "
        "between its parts is more than one call after another. Cut at the input of its last part"
    )


class _Pass(nn.Module):
    """What has run before the cut: it hands on its first input."""

    def forward(self, x: Any, *more: Any, **named: Any) -> Any:
        return x


class _Front(nn.Module):
    """The whole model, which stops where it is cut."""

    def __init__(self, model: nn.Module, place: str, inward: bool) -> None:
        super().__init__()
        self.model, self.place, self.inward = model, place, inward

    def forward(self, *inputs: Tensor) -> Any:
        seen: list[Any] = []

        def before(module: nn.Module, args: Any) -> None:
            seen.append(args[0])
            raise _Stop

        def after(module: nn.Module, args: Any, out: Any) -> None:
            seen.append(out)
            raise _Stop

        part = self.model.get_submodule(self.place)
        hook = part.register_forward_pre_hook(before) if self.inward else part.register_forward_hook(after)
        try:
            self.model(*inputs)
        except _Stop:
            pass
        finally:
            hook.remove()
        return seen[0]


class _Stop(Exception):
    """Enough of the model has run."""


class _Part(nn.Module):
    """One submodule alone, under the names that it has in the whole."""

    def __init__(self, place: str, part: nn.Module) -> None:
        super().__init__()
        self.place = place
        *path, last = place.split(".")
        home: nn.Module = self
        for name in path:
            home.add_module(name, nn.Module())
            home = home.get_submodule(name)
        home.add_module(last, part)

    def forward(self, x: Tensor) -> Any:
        return self.get_submodule(self.place)(x)


def _run(model: nn.Module, place: str, example: tuple[Tensor, ...]) -> tuple[list[str], int, Any]:
    """Run a model: the parts in the order in which they end, how often one runs, and the output."""
    ended: list[str] = []
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: ended.append(name))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            out = model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return ended, ended.count(place), out


def _before(ended: list[str], place: str, inward: bool) -> list[str]:
    """The outermost parts that have run when the cut is reached, the one that is cut at among them unless inward."""
    done = ended[: ended.index(place)]
    done = [name for name in done if not name.startswith(f"{place}.")] + ([] if inward else [place])
    return [name for name in done if not any(name.startswith(f"{other}.") for other in done)]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def features(front: nn.Module, batches: Tensor | Iterable[Tensor], *, batch_size: int = 256) -> Tensor:
    """Run the first half of a model over all pictures, once.

    Args:
        front: as `cut` gives it.
        batches: all inputs (n, ...), or an iterable of batches of them; of a loader that gives pairs
            ``(x for x, _ in loader)``. Batches without rows are passed over.
        batch_size: how many at once, of a tensor.

    Returns:
        The features (n, ...), without a graph.

    Raises:
        TransferError: for no inputs, batches that are no tensors, such as pairs of inputs and labels, or features that
            are no tensors.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
        >>> front, back = tt.recipes.cut(net, "0", torch.randn(2, 4))
        >>> tt.recipes.features(front, torch.randn(1000, 4)).shape
        torch.Size([1000, 8])
    """
    given: Any = batch_size
    if not isinstance(given, int) or batch_size < 1:
        raise TransferError(f"features: batch_size must be a whole number of at least 1, got {given!r}")
    if not isinstance(cast(Any, batches), Iterable):
        raise TransferError(f"features: wanted inputs (n, ...) or an iterable of batches, got {shown(batches)}")
    if isinstance(batches, Tensor) and batches.ndim:
        batches = batches.split(batch_size)
    found: list[Tensor] = []
    for x in (batches,) if isinstance(batches, Tensor) else batches:
        # A pair may be inputs and labels, or two inputs: whoever gives it knows.
        if not isinstance(cast(Any, x), Tensor) or not x.ndim:
            cure = "; give the inputs alone, (x for x, _ in loader)" if isinstance(x, (tuple, list)) else ""
            raise TransferError(f"features: wanted batches of inputs, tensors (n, ...), got {shown(x)}{cure}")
        if not len(x):
            continue
        with torch.no_grad():
            out = cast(Any, front(x))
        if not isinstance(out, Tensor):
            raise TransferError(f"features: wanted a part that gives a tensor, got {type(out).__name__}")
        found.append(out)
    if not found:
        raise TransferError("features: no inputs")
    return torch.cat(found)
