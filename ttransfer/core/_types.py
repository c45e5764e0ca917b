"""The types of the algebra: NamedTuples of functions, and the State they act on.

A NamedTuple of functions is a value to call, not to compare: `Adapter(f, g) == Reparam(f, g)` is True.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Batch",
    "Ema",
    "Fixed",
    "Functional",
    "Layout",
    "Logs",
    "Optimizer",
    "Out",
    "Params",
    "Scalar",
    "Schedule",
    "State",
    "Term",
    "Tree",
]

Params = dict[str, Tensor]
"""Flat parameters or buffers under fully-qualified names."""

Batch = Mapping[str, Mapping[str, Tensor]]
"""domain -> field -> tensor, for example ``batch["source"]["x"]``."""

Logs = dict[str, Tensor]
"""name -> 0-d tensor."""

Tree = Any
"""Nested dicts, lists and (named) tuples of tensors."""


class Schedule(NamedTuple):
    """A number that depends on the step.

    Attributes:
        apply: (step, numbers) -> 0-d float64 tensor; `step` is a 0-d float64 tensor and `numbers`
            maps the names in `hyper` to 0-d float64 tensors.
        hyper: the schedule's own numbers, which become entries of `State.hyper`.

    Example:
        >>> import ttransfer as tt
        >>> halving = tt.Schedule(lambda step, h: h["start"] * 0.5**step, {"start": 8.0})
        >>> halving(3).item()
        1.0
    """

    apply: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    hyper: Mapping[str, float]

    def __call__(self, step: Tensor | float, hyper: Mapping[str, Tensor] | None = None) -> Tensor:
        """Evaluate at a step, with the schedule's own numbers unless others are given."""
        numbers = hyper or {k: torch.tensor(v, dtype=torch.float64) for k, v in self.hyper.items()}
        return self.apply(torch.as_tensor(step, dtype=torch.float64), numbers)


class Fixed(NamedTuple):
    """A hyper-parameter that stays a Python value: `tt.fixed(x)`."""

    value: Any


Scalar = float | Tensor | Schedule
"""What a hyper-parameter may be given as."""


class Out(NamedTuple):
    """What applying a Functional returns.

    Attributes:
        value: the module's output, of whatever structure it has.
        taps: the tapped inner values, under the taps' own notation ("layer4", "fc:in", "act@1").
        buffers: the buffers after the forward; never the caller's tensors when they changed.

    Example:
        >>> Out(torch.ones(2), {}, {}).value
        tensor([1., 1.])
    """

    value: Tree
    taps: dict[str, Tree]
    buffers: Params


class Layout(NamedTuple):
    """What is known of a Functional before it runs.

    Attributes:
        parameters: name -> meta tensor.
        buffers: name -> meta tensor.
        modules: dotted names of the submodules that can be tapped.
        frozen: parameters that stay as they are unless a pattern names them.
        drops: whether any module drops at random, so that a forward in train mode needs keys.
        saved: name in the module's state dict -> name here; ties have two, buffers that are not saved none.
    """

    parameters: Params
    buffers: Params
    modules: tuple[str, ...]
    frozen: frozenset[str]
    drops: bool
    saved: Mapping[str, str]


class Functional(NamedTuple):
    """A network as pure functions.

    Attributes:
        init: generator -> (params, buffers), fresh tensors.
        apply: (params, buffers, *inputs, keys=None) -> Out, in the mode the functional was made with
            (eval where it has none). Mutates nothing. `keys` (n,) seeds dropout row by row.
        bind: (taps, training, batch_statistics, precision, adjust) -> an `apply` on a private skeleton of its own.
        merged: params -> the module's own parameters (what `reparam` computes from base and delta).
        layout: names and shapes.
        mode: "train", "eval" or None (the step decides: train for a net that is trained).
        inputs: the batch fields that the network takes, in order.

    Example:
        >>> import ttransfer as tt
        >>> net = tt.functional(torch.nn.Linear(3, 2), inputs=("image",))
        >>> net.inputs, list(net.layout.parameters)
        (('image',), ['weight', 'bias'])
    """

    init: Callable[[torch.Generator], tuple[Params, Params]]
    apply: Callable[..., Out]
    bind: Callable[..., Callable[..., Out]]
    merged: Callable[[Params], Params]
    layout: Layout
    mode: str | None
    inputs: tuple[str, ...]


class Term(NamedTuple):
    """A loss bound to what it reads.

    Attributes:
        init: (generator, readings) -> (params, state); the readings are meta tensors.
        apply: (params, state, hyper, step, readings) -> (scalar, state).
        reads: where each argument comes from; a tuple inside is handed over as a list.
        hyper: name -> number; always with "weight". Each becomes an entry of `State.hyper`.
        tried: names in `hyper` that are lifted only if a trial at `init` passes.
        coupled: False if the loss is a mean over `count` items, so that it may be split.
        count: readings -> how many items the mean is over.
        labels: positions of logits and integer labels and the ignored label, for range checks.
        fn: the loss itself, for people to read.

    Example:
        >>> import ttransfer as tt
        >>> [str(read) for read in tt.term(tt.align.mmd, "net(a).fc:in", "net(b).fc:in").reads]
        ['net(a).fc:in', 'net(b).fc:in']
    """

    init: Callable[[torch.Generator, list[Any]], tuple[Params, Tree]]
    apply: Callable[..., tuple[Tensor, Tree]]
    reads: tuple[Any, ...]
    hyper: Mapping[str, Any]
    tried: frozenset[str]
    coupled: bool
    count: Callable[..., Tensor | int] | None
    labels: tuple[int, int, int] | None
    fn: Callable[..., Any]


class Optimizer(NamedTuple):
    """An update rule, closed under `chain`, `partition` and `masked`.

    Attributes:
        init: params -> state, a tree of tensors.
        update: (grads, state, params, hyper) -> (updates, state); the new parameters are
            `params + updates`. `hyper` maps the names in `hyper` to 0-d float64 tensors.
        hyper: name -> number or schedule. Each becomes an entry of `State.hyper` under "optim.".

    Example:
        >>> import ttransfer as tt
        >>> sorted(tt.optim.adam(1e-3).hyper)
        ['beta1', 'beta2', 'eps', 'lr']
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree, Mapping[str, Tensor]], tuple[Tree, Tree]]
    hyper: Mapping[str, Scalar]


class Ema(NamedTuple):
    """A net that follows another as an exponential moving average: `tt.ema`."""

    of: str
    decay: Scalar
    buffers: str
    mode: str


class State(NamedTuple):
    """All that a step reads and writes: tensors only, no None, no Python numbers.

    Attributes:
        trainable: net -> parameters that get gradients; under "terms" the terms' own.
        frozen: net -> parameters that do not.
        buffers: net (or "net(domain)" where statistics are per domain) -> buffers.
        terms: term -> its state.
        opt: the optimizer's state.
        ema: averaged net -> parameters.
        hyper: name -> 0-d float64 tensor.
        step: 0-d int64, the number of updates done.
        seed: 0-d int64, from which dropout masks follow.

    Example:
        >>> State._fields[:4]
        ('trainable', 'frozen', 'buffers', 'terms')
    """

    trainable: dict[str, Any]
    frozen: dict[str, Params]
    buffers: dict[str, Params]
    terms: dict[str, Tree]
    opt: Tree
    ema: dict[str, Params]
    hyper: dict[str, Tensor]
    step: Tensor
    seed: Tensor
