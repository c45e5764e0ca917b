"""Fine-tuning in phases, each a step of its own: a linear probe first, or layers thawed one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ttransfer._errors import TransferError
from ttransfer.core._carry import carry
from ttransfer.core._rebuild import replace
from ttransfer.core._step import Step
from ttransfer.core._types import Batch, State
from ttransfer.recipes._layers import Layers, last
from ttransfer.run import Fitted, fit

__all__ = ["Phase", "in_turn", "lp_ft", "thaw"]


class Phase(NamedTuple):
    """A step, and for how many updates it runs.

    Attributes:
        step: the step.
        steps: the number of updates.

    Example:
        >>> from ttransfer.recipes import Phase
        >>> Phase._fields
        ('step', 'steps')
    """

    step: Step
    steps: int


def lp_ft(step: Step, layers: Layers, steps: tuple[int, int], *, net: str = "net") -> dict[str, Phase]:
    """Train the head alone, then everything: linear probing before fine-tuning.

    A new head's first gradients are those of a random map, and distort what was pretrained; trained first, it does not.

    Args:
        step: the whole fine-tuning, as `tt.recipes.finetune` gives it.
        layers: of the net; the last is the head.
        steps: updates of the probe and of the whole.
        net: the net's name in the step.

    Returns:
        The phases "probe", in which statistics of batch normalisation are those of before, and "finetune", for
        `in_turn`.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 3))
        >>> whole = tt.recipes.finetune(net, tt.optim.sgd(0.1))
        >>> phases = tt.recipes.lp_ft(whole, tt.recipes.layers(net), (2, 3))
        >>> batch = {"data": {"x": torch.ones(3, 2), "y": torch.tensor([0, 1, 2])}}
        >>> [len(one.state.trainable["net"]) for one in tt.recipes.in_turn(phases, [batch]).values()]
        [2, 4]

    References:
        Ananya Kumar, Aditi Raghunathan, Robbie Jones, Tengyu Ma, Percy Liang. Fine-Tuning can Distort Pretrained
        Features and Underperform Out-of-Distribution. 2022.
    """
    probe = replace(_only(step, net, last(layers)), buffers={**step.spec.expression.buffers, net: "eval"})
    return {"probe": Phase(probe, steps[0]), "finetune": Phase(step, steps[1])}


def thaw(step: Step, layers: Layers, steps: int | Sequence[int], *, net: str = "net") -> dict[str, Phase]:
    """Train the last layer, then the last two, and so on: gradual unfreezing.

    Args:
        step: the whole fine-tuning.
        layers: of the net, from the input to the output; each phase trains one more.
        steps: updates of each phase.
        net: the net's name in the step.

    Returns:
        A phase for each layer, under the name of the layer that begins to train in it, for `in_turn`. Statistics of
        batch normalisation are treated as `step` says, in all phases alike: what was tuned on those of before does not
        bear to be put on those of batches, late in a run.

    Raises:
        TransferError: for another number of `steps` than of layers.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 3))
        >>> whole = tt.recipes.finetune(net, tt.optim.sgd(0.1))
        >>> list(tt.recipes.thaw(whole, tt.recipes.layers(net), 5))
        ['1', '0']

    References:
        Jeremy Howard, Sebastian Ruder. Universal Language Model Fine-tuning for Text Classification. 2018.
    """
    each = [steps] * len(layers) if isinstance(steps, int) else list(steps)
    if len(each) != len(layers):
        raise TransferError(f"thaw: {len(each)} numbers of steps for {len(layers)} layers: {', '.join(layers)}")
    phases: dict[str, Phase] = {}
    for i, (layer, count) in enumerate(zip(reversed(layers), each, strict=True)):
        whole = i + 1 == len(layers)
        phases[layer] = Phase(step if whole else _only(step, net, last(layers, i + 1)), count)
    return phases


def _only(step: Step, net: str, pattern: str) -> Step:
    return replace(step, trainable={**step.spec.expression.trainable, net: (pattern,)})


def in_turn(
    phases: Mapping[str, Phase],
    batches: Iterable[Batch],
    *,
    state: State | None = None,
    seed: int = 0,
    made: Callable[[Step], Step] = lambda step: step,
    **options: Any,
) -> dict[str, Fitted]:
    """Run phases one after another, each going on with what the one before has learned.

    Args:
        phases: name -> Phase, in order.
        batches: as for `tt.fit`: a list begins anew with each phase, a stream such as `tt.domains` goes on. One is
            drawn first, for `init`.
        state: where the first phase begins, as `tt.carry` takes it over; its own start unless given.
        seed: of the first phase; the next has the next.
        made: what to do to each phase's step before it runs, such as ``lambda step: tt.compile(step, donate=True)``.
        **options: for `tt.fit`, the same for each phase, such as `progress` or `log_every`.

    Returns:
        phase -> what `tt.fit` returned; a signal ends the run with the phase that it came in.

    Raises:
        TransferError: for no phases, and whatever `tt.carry` and `tt.fit` raise.

    Example:
        See `tt.recipes.lp_ft`.

        >>> from ttransfer.recipes import in_turn
        >>> in_turn({}, [])
        Traceback (most recent call last):
        ...
        ttransfer._errors.TransferError: in_turn: no phases
    """
    if not phases:
        raise TransferError("in_turn: no phases")
    example = next(iter(batches), None)
    if example is None:
        raise TransferError("in_turn: batches are empty")
    found: dict[str, Fitted] = {}
    for i, (name, phase) in enumerate(phases.items()):
        begun = phase.step.init(example, seed + i) if state is None else carry(state, phase.step, example, seed + i)
        found[name] = fit(made(phase.step), begun, batches, steps=phase.steps, **options)
        state = found[name].state
        if found[name].stopped:
            break
    return found
