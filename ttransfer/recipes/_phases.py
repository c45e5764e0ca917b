"""Fine-tuning in phases, each a step of its own: a linear probe first, or layers thawed one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ttransfer._errors import TransferError, nearest
from ttransfer.core._carry import carry
from ttransfer.core._rebuild import replace
from ttransfer.core._spec import plan_of
from ttransfer.core._step import Step
from ttransfer.core._types import Batch, State
from ttransfer.recipes._layers import Layers, as_pattern
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
        step: the whole fine-tuning, as `tt.recipes.finetune` gives it. What it freezes stays frozen in both.
        layers: of the net; the last is the head.
        steps: updates of the probe and of the whole.
        net: the net's name in the step.

    Returns:
        The phases "probe", in which statistics of batch normalisation are those of before, and "finetune", for
        `in_turn`.

    Raises:
        TransferError: for what are not two numbers of steps, no layers or layers of another net, or a head that the
            step freezes.

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
    if not layers:
        raise TransferError("lp_ft: no layers, of which the last is the head")
    _check_counts("lp_ft", steps, f"two numbers of steps, of the probe and of the whole, got {steps!r}", 2)
    probe = replace(_only("lp_ft", step, net, layers, 1), buffers={**step.spec.expression.buffers, net: "eval"})
    return {"probe": Phase(probe, steps[0]), "finetune": Phase(step, steps[1])}


def thaw(step: Step, layers: Layers, steps: int | Sequence[int], *, net: str = "net") -> dict[str, Phase]:
    """Train the last layer, then the last two, and so on: gradual unfreezing.

    Args:
        step: the whole fine-tuning. What it freezes stays frozen in all phases.
        layers: of the net, from the input to the output; each phase trains one more.
        steps: updates of each phase.
        net: the net's name in the step.

    Returns:
        A phase for each layer, under the name of the layer that begins to train in it, for `in_turn`. Statistics of
        batch normalisation are treated as `step` says, in all phases alike: what was tuned on those of before does not
        bear to be put on those of batches, late in a run.

    Raises:
        TransferError: for another number of `steps` than of layers, no layers or layers of another net, or a last
            layer that the step freezes.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 3))
        >>> whole = tt.recipes.finetune(net, tt.optim.sgd(0.1))
        >>> list(tt.recipes.thaw(whole, tt.recipes.layers(net), 5))
        ['1', '0']

    References:
        Jeremy Howard, Sebastian Ruder. Universal Language Model Fine-tuning for Text Classification. 2018.
    """
    if not layers:
        raise TransferError("thaw: no layers")
    each = [steps] * len(layers) if isinstance(steps, int) else steps
    of = f"{len(layers)} numbers of steps for the layers {', '.join(layers)}, or one for all, got {steps!r}"
    _check_counts("thaw", each, of, len(layers))
    phases: dict[str, Phase] = {}
    for i, (layer, count) in enumerate(zip(reversed(layers), each, strict=True)):
        whole = i + 1 == len(layers)
        phases[layer] = Phase(step if whole else _only("thaw", step, net, layers, i + 1), count)
    return phases


def _check_counts(whose: str, steps: Any, wanted: str, count: int) -> None:
    if (
        not isinstance(steps, (list, tuple))
        or len(steps) != count
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in steps)
    ):
        raise TransferError(f"{whose}: wanted {wanted}")


def _only(whose: str, step: Step, net: str, layers: Layers, count: int) -> Step:
    """The step with the last layers alone, as far as it trains them itself."""
    expression = step.spec.expression
    if net not in expression.nets:
        raise TransferError(f"{whose}: the step has no net {net!r}{nearest(net, expression.nets)}")
    known = expression.nets[net].layout.parameters
    if strange := [name for own in layers.values() for name in own if name not in known]:
        raise TransferError(
            f"{whose}: the layers have {strange[0]!r}, which is no parameter of {net!r}{nearest(strange[0], known)}"
        )
    trained = plan_of(expression).learned.get(net, frozenset())
    taken = list(layers)[-count:]
    names = [name for layer in taken for name in layers[layer] if name in trained]
    if not names:
        raise TransferError(
            f"{whose}: the step trains nothing of {', '.join(map(repr, taken))}, with which {net!r} begins to train"
        )
    return replace(step, trainable={**expression.trainable, net: (as_pattern(names),)})


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
