"""The types of the algebra: NamedTuples of functions, and the State they act on.

A NamedTuple of functions is a value to call, not to compare: `Adapter(f, g) == Reparam(f, g)` is True.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Adapter",
    "Batch",
    "Ema",
    "Fixed",
    "Functional",
    "Layout",
    "Logs",
    "Optimizer",
    "Out",
    "Params",
    "Plan",
    "Reparam",
    "Scalar",
    "Schedule",
    "State",
    "Term",
    "Tree",
    "WeightMap",
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
    """

    parameters: Params
    buffers: Params
    modules: tuple[str, ...]
    frozen: frozenset[str]
    drops: bool


class Functional(NamedTuple):
    """A network as pure functions.

    Attributes:
        init: generator -> (params, buffers), fresh tensors.
        apply: (params, buffers, *inputs, keys=None) -> Out, in the mode the functional was made with
            (eval where it has none). Mutates nothing. `keys` (n,) seeds dropout row by row.
        bind: (taps, training, batch_statistics, precision) -> an `apply` on a private skeleton of its own.
        merged: params -> the module's own parameters (what `reparam` computes from base and delta).
        layout: names and shapes.
        mode: "train", "eval" or None (the step decides: train for a net that is trained).
        inputs: the batch fields that the network takes, in order.
    """

    init: Callable[[torch.Generator], tuple[Params, Params]]
    apply: Callable[..., Out]
    bind: Callable[..., Callable[..., Out]]
    merged: Callable[[Params], Params]
    layout: Layout
    mode: str | None
    inputs: tuple[str, ...]


class Adapter(NamedTuple):
    """A feature -> feature map with parameters.

    Attributes:
        init: (generator, like) -> Params; `like` is a meta tensor of the feature's shape and dtype.
        apply: (params, feature) -> feature.
    """

    init: Callable[[torch.Generator, Tensor], Params]
    apply: Callable[[Params, Tensor], Tensor]


class Reparam(NamedTuple):
    """A parameters -> parameters map inside the step (LoRA, masks, fake quantisation).

    Attributes:
        init: (generator, params) -> delta, the map's own parameters; names must not clash with the base's.
        apply: (base, delta) -> params, under the base's names.
        trains_base: whether the base parameters train too when the net is named as trainable.
    """

    init: Callable[[torch.Generator, Params], Params]
    apply: Callable[[Params, Params], Params]
    trains_base: bool = False


class Plan(NamedTuple):
    """The dry run of a WeightMap: where every tensor goes.

    Attributes:
        copied: target name -> source name.
        unused: source names that go nowhere.
        missing: target names that get nothing.
        mismatched: target name -> why the source tensor of that name does not fit.
    """

    copied: dict[str, str]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: dict[str, str]


class WeightMap(NamedTuple):
    """A checkpoint -> parameters map, pure and differentiable.

    Attributes:
        apply: (src, like) -> Params.
        plan: (src, like) -> Plan, on names and shapes alone.
    """

    apply: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Params]
    plan: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Plan]


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
