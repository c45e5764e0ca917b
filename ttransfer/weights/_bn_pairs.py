"""Which batch norm can be folded into which layer: the net is run, and watched."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ttransfer._errors import TransferError
from ttransfer.weights._fold_bn import BnPair
from ttransfer.weights._folded import TRANSPOSED, at_random, folded, is_layer

__all__ = ["bn_pairs"]


def bn_pairs(module: nn.Module, example: Tensor | Sequence[Any]) -> dict[str, BnPair]:
    """Find the batch norms of a module that can be folded into the layer before them.

    The module is run once, as a copy and in eval mode. A pair is a convolution, transposed convolution or linear
    layer and a batch norm, each called once, where the batch norm takes the layer's very output, and nobody else
    reads that, nor the layer's weight or bias. Then both are tried alone, with random numbers: a layer that does
    something to its weight first, as in weight standardisation, or a batch norm of another kind is left out.

    Args:
        module: it stays as it is.
        example: an input, or a sequence of positional inputs; a small one does.

    Returns:
        Name of a batch norm -> its `BnPair`, for `fold_bn` and `folded`, in the order of their calls. What cannot be
        folded is not in it.

    Raises:
        TransferError: for a module without batch norms that have statistics.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8, eps=1e-3), torch.nn.ReLU())
        >>> tt.weights.bn_pairs(net, torch.ones(1, 3, 5, 5))
        {'1': BnPair(layer='0', eps=0.001, transposed=0)}
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    net = copy.deepcopy(module).eval()
    names = Counter(id(part) for _, part in net.named_modules(remove_duplicate=False))
    watch = _Watch()
    norms = 0
    for name, part in net.named_modules():
        once = names[id(part)] == 1  # else a state dict has its tensors twice
        if is_layer(part) and isinstance(part._parameters.get("weight"), Tensor):
            watch.held |= {f"{name}.{leaf}": x for leaf, x in part._parameters.items() if x is not None}
            part.register_forward_hook(watch.layer(name if once else ""))
        elif _is_norm(part):
            norms += 1
            part.register_forward_pre_hook(watch.enter(name if once else ""))
            part.register_forward_hook(watch.leave)
    if not norms:
        raise TransferError("bn_pairs: the module has no batch norm with running statistics")
    with torch.no_grad(), watch:
        result = net(*inputs)
    watch.read(result, "the caller")
    found: dict[str, BnPair] = {}
    for call in watch.calls:
        bn = watch.only_reader(call)
        if bn:
            layer: Any = module.get_submodule(call.layer)
            norm: Any = module.get_submodule(bn)
            transposed = layer.groups if isinstance(layer, TRANSPOSED) else 0
            pair = BnPair(call.layer, norm.eps, transposed)
            if _holds(layer, norm, pair, call.shape):
                found[bn] = pair
    return found


def _is_norm(module: nn.Module) -> bool:
    """Whether it normalises by statistics that it has, as batch norms of all kinds do."""
    statistics = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return all(isinstance(x, Tensor) for x in statistics) and hasattr(module, "eps")


def _holds(layer: nn.Module, norm: nn.Module, pair: BnPair, shape: torch.Size) -> bool:
    """Whether the two do, when they are folded, what they did."""
    both = nn.Sequential(at_random(layer), at_random(norm))
    try:
        one = folded(both, {"1": pair._replace(layer="0")})
    except TransferError:
        return False
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        return torch.allclose(one(x), both(x), rtol=1e-9, atol=1e-9)


class _Call(NamedTuple):
    """A layer's call.

    Attributes:
        layer: its name, "" if it has two.
        shape: of its input.
        output: what it returned, kept so that no other tensor gets its identity.
    """

    layer: str
    shape: torch.Size
    output: Tensor


class _Watch(TorchDispatchMode):
    """Notes which tensors are read, and inside which batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, Any] = {}
        self.calls: list[_Call] = []
        self.readers: dict[int, list[str]] = {}
        self.inside: list[str] = []
        self.entered: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read((args, kwargs), self.inside[-1] if self.inside else "another")
        return func(*args, **(kwargs or {}))

    def read(self, tree: Any, reader: str) -> None:
        for x in pytree.tree_leaves(tree):
            if isinstance(x, Tensor):
                self.readers.setdefault(id(x), []).append(reader)

    def layer(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
                # What was read before under this identity was another tensor, or the layer's own work on it.
                self.readers.pop(id(output), None)
                self.calls.append(_Call(name, args[0].shape, output))

        return hook

    def enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self.inside.append(name)
            self.entered[name] += 1

        return hook

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()

    def only_reader(self, call: _Call) -> str:
        """The batch norm that alone reads what a layer gave; "" if there is none."""
        readers = set(self.readers.get(id(call.output), []))
        once = sum(other.layer == call.layer for other in self.calls) == 1
        own = [self.held.get(f"{call.layer}.{leaf}") for leaf in ("weight", "bias")]
        alone = all(x is None or len(self.readers.get(id(x), [])) == 1 for x in own)
        if not call.layer or not once or len(readers) != 1 or not alone:
            return ""
        bn = readers.pop()
        return bn if self.entered[bn] == 1 else ""
