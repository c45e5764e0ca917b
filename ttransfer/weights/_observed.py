"""One run of a net, in eval mode, with what goes in and out of its modules written down."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ttransfer._errors import TransferError, shown

__all__ = ["Call", "Ran", "Seen", "gap", "mean_size", "observed"]


def mean_size(x: Tensor) -> float:
    """The mean of the absolute numbers."""
    return x.abs().mean(dtype=torch.promote_types(x.dtype, torch.float32)).item()


def gap(x: Tensor, y: Tensor) -> float:
    """The largest difference by x's largest number; infinite for another number of entries."""
    x, y = x.detach(), y.detach()
    if x.numel() != y.numel():
        return float("inf")
    wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.flatten().to(wide), y.flatten().to(wide)
    size, apart = x.abs().max().item(), (x - y).abs().max().item()
    return apart / size if size else (float("inf") if apart else 0.0)


class Call(NamedTuple):
    """A layer that ran: its module, its input and its output, with the graph that made them."""

    name: str
    module: nn.Module
    given: Tensor | None
    value: Tensor


class Seen(NamedTuple):
    """A tensor that went in or out of a module, and the mean of its sizes, by which most are told apart."""

    name: str
    value: Tensor
    mean: float


class Ran(NamedTuple):
    calls: list[Call]
    seen: list[Seen]
    outputs: list[Tensor]


def observed(
    which: str,
    net: nn.Module,
    inputs: tuple[Any, ...],
    tolerance: float,
    names: set[str] | None,
    *,
    dtype: torch.dtype | None = None,
    live: bool = False,
) -> Ran:
    """Run a copy of a net, with everything that goes in or out of its modules written down.

    Args:
        which: the net is, for a message.
        net: to run.
        inputs: of it.
        tolerance: the largest gap between two runs.
        names: of the modules whose calls are kept; None keeps those with parameters or buffers of their own.
        dtype: to run in; None leaves what there is.
        live: whether to keep the graph, and then not what goes in and out of the other modules.

    Raises:
        TransferError: for what cannot run, or gives something else each time, and for a name that is not called.
    """
    twin = copy.deepcopy(net).eval()
    if dtype is not None:
        for x in (*twin.parameters(), *twin.buffers()):
            x.data = x.data.to(dtype) if x.is_floating_point() else x.data
        inputs = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
    plain = _outputs(which, twin, inputs)
    if any(not gap(x, y) <= tolerance for x, y in zip(plain, _outputs(which, twin, inputs), strict=True)):
        if all(bool(x.isfinite().all()) for x in plain):
            raise TransferError(
                f"compare: the {which} module gives two answers to one input, in eval mode: it draws random numbers"
            )
        raise TransferError(f"compare: the {which} module's output is not finite")
    calls: list[Call] = []
    seen: list[Seen] = []
    given: list[Tensor | None] = []
    counts: dict[str, int] = {}
    wrote: dict[int, tuple[Tensor, int]] = {}  # the tensors are held: an id is one's only as long as it lives

    def write(name: str, value: Any) -> None:
        for x in _tensors(value):
            if wrote.get(id(x), (x, -1))[1] != x._version:
                wrote[id(x)] = (x, x._version)
                seen.append(Seen(name, x.detach().clone(), mean_size(x.detach())))

    def before(name: str, args: tuple[Any, ...]) -> None:
        first = next(iter(_tensors(args)), None)
        given.append(None if first is None else first.clone() if live else first.detach().clone())
        if not live:
            write(f"the input of {name}" if name else "the input", args)

    def after(name: str, module: nn.Module, out: Any) -> Any:
        came, tensors = given.pop(), _tensors(out)
        if tensors and (name in names if names is not None else _layer(name, module)):
            counts[name] = counts.get(name, 0) + 1
            label = f"{name} (call {counts[name]})" if counts[name] > 1 else name or "the net"
            calls.append(Call(label, module, came, tensors[0]))
        if not live:
            write(name or "the output", out)
        # What comes next may write on its input: it gets another tensor, and this one stays in the graph.
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, out) if live else out

    for name, module in twin.named_modules():
        module.register_forward_pre_hook(lambda m, args, n=name: before(n, args))
        module.register_forward_hook(lambda m, args, out, n=name: after(n, m, out))
    if live:
        for x in twin.parameters():
            x.requires_grad_(x.is_floating_point())
    outputs = _outputs(which, twin, inputs, live)
    if idle := sorted((names or set()) - {call.name for call in calls}):
        raise TransferError(f"compare: the {which} module does not call its {idle[0]!r}, or gets no real numbers of it")
    return Ran(calls, seen, outputs)


def _layer(name: str, module: nn.Module) -> bool:
    own = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
    return own and (bool(name) or not any(True for _ in module.children()))


def _outputs(which: str, net: nn.Module, inputs: tuple[Any, ...], live: bool = False) -> list[Tensor]:
    def fresh(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach().clone().requires_grad_(live and x.is_floating_point()).clone()

    try:
        with torch.set_grad_enabled(live):
            out = net(*tree_map(fresh, inputs))
    except Exception as error:
        raise TransferError(
            f"compare: the {which} module cannot run on {shown(inputs)}: {type(error).__name__}: {error}; if it can "
            "run in its own dtype only, compare with dtype=None and tolerance=1e-4"
        ) from error
    found = [x.detach() for x in _tensors(out)]
    if not found:
        raise TransferError(f"compare: the {which} module gives {shown(out)}, and no tensor of real numbers")
    return found


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
