"""Fine-tuning: a pretrained model, new data, and what holds the one back from the other."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ttransfer._errors import TransferError, nearest
from ttransfer.core import _tree as tree
from ttransfer.core._functional import functional
from ttransfer.core._maps import WeightMap
from ttransfer.core._reads import flat
from ttransfer.core._step import Step, step
from ttransfer.core._step import ema as follow
from ttransfer.core._term import term
from ttransfer.core._types import Optimizer, Scalar, Term, Tree
from ttransfer.optim import chain, layer_decay
from ttransfer.recipes._layers import Layers, as_pattern
from ttransfer.weights import transfer

__all__ = ["finetune", "layerwise"]


def finetune(
    model: nn.Module,
    optimizer: Optimizer,
    terms: Mapping[str, Term] | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    map: WeightMap | None = None,
    trainable: str | Sequence[str] = (),
    loss: Callable[..., Tensor] = F.cross_entropy,
    statistics: str = "shared",
    ema: Scalar | None = None,
    inputs: Sequence[str] = ("x",),
    **more_terms: Term,
) -> Step:
    """Fine-tune a model on the domain "data": a step over the net "net", with the term "task".

    Terms may read the pretrained model as the net "start", which stays as it is: L2-SP is
    ``tt.term(tt.losses.l2_sp, "net:params", "start:params")``, DELTA ``tt.term(tt.losses.delta, "net(data).layer4",
    "start(data).layer4")``, LwF ``tt.term(tt.losses.kd, "net(data)", "start(data)")``; BSS reads features,
    ``tt.term(tt.losses.bss, "net(data).fc:in")``. It is a step like any other: `tt.describe` prints it, `tt.replace`
    changes it, `tt.sweep` tries its numbers at once.

    Args:
        model: the architecture, with its new head, and unless `weights` are given the pretrained weights. It is copied.
        optimizer: for example ``tt.optim.adamw(1e-3)``; `tt.recipes.layerwise` gives deeper layers smaller steps.
        terms: name -> Term, beside the task; keywords do the same.
        weights: a checkpoint to begin from, as `tt.weights.load` reads it.
        map: how it goes into the model; `tt.weights.match()` unless given, which a new head needs told:
            ``map=tt.weights.match(allow="fc.*")``.
        trainable: pattern(s) for parameter names; all that require a gradient unless given. `tt.recipes.last` writes
            one for a linear probe or for partial fine-tuning. What is frozen is outside the gradient.
        loss: of the net's output on "data" and the field "data.y".
        statistics: of batch normalisation: "shared" lets batches move the running statistics, "eval" uses the
            pretrained ones and never writes them.
        ema: decay of an averaged copy, the net "average".
        inputs: the batch fields that the model takes, in order.
        **more_terms: terms by keyword.

    Returns:
        A Step.

    Raises:
        TransferError: for weights that do not fit, a pattern without a match, or terms that read what is not there.

    Example:
        >>> import torch, ttransfer as tt
        >>> from collections import OrderedDict
        >>> make = lambda n: torch.nn.Sequential(OrderedDict(body=torch.nn.Linear(4, 8), fc=torch.nn.Linear(8, n)))
        >>> pretrained = make(1000).state_dict()
        >>> train = tt.recipes.finetune(
        ...     make(3), tt.optim.sgd(0.1), weights=pretrained, map=tt.weights.match(allow="fc.*"),
        ...     l2_sp=tt.term(tt.losses.l2_sp, "net:params", "start:params"),
        ... )
        >>> batch = {"data": {"x": torch.randn(6, 4), "y": torch.arange(6) % 3}}
        >>> state, logs = train(train.init(batch, seed=0), batch)
        >>> sorted(name for name in logs if "." not in name)
        ['finite', 'l2_sp', 'loss', 'task']
    """
    if statistics not in ("shared", "eval"):
        raise TransferError(f"finetune: statistics must be 'shared' or 'eval', got {statistics!r}")
    if weights is None and map is not None:
        raise TransferError("finetune: a map without weights to begin from; give weights=")
    filled = model
    if weights is not None:
        filled = copy.deepcopy(model)
        transfer(weights, filled, map)
    every = {**(terms or {}), **more_terms}
    if "task" in every:
        raise TransferError("finetune: the term 'task' is the loss on the labels; give loss=, or tt.replace it")
    every = {"task": term(loss, "net(data)", "data.y"), **every}
    nets = {"net": functional(filled, inputs=inputs)}
    if any(_net_of(read.path) == "start" for one in every.values() for read in flat(one.reads)):
        nets["start"] = functional(filled, inputs=inputs)
    patterns: dict[str, str | Sequence[str]] = {"net": trainable}
    return step(
        nets,
        optimizer,
        every,
        trainable=patterns if trainable else ("net",),
        buffers={"net": statistics},
        ema={} if ema is None else {"average": follow("net", ema)},
    )


def _net_of(path: Any) -> str | None:
    return getattr(path, "net", None)


def layerwise(optimizer: Optimizer, layers: Layers, decay: Scalar = 0.75, *, net: str = "net") -> Optimizer:
    """Give deeper layers smaller steps: `tt.optim.layer_decay` over layers as `tt.recipes.layers` gives them.

    Args:
        optimizer: the rule.
        layers: of the net, from the input to the output; parameters in none of them, such as those of terms, take
            whole steps.
        decay: the factor from a layer to the one before, the number "optim.decay".
        net: the net's name in the step.

    Returns:
        An optimizer.

    Raises:
        TransferError: for no layers; where it begins, if the step trains nothing of a net of that name, or a parameter
            of the net that is in no layer.

    Example:
        >>> import torch, ttransfer as tt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> sorted(tt.recipes.layerwise(tt.optim.sgd(0.1), tt.recipes.layers(net)).hyper)
        ['decay', 'lr', 'weight_decay']
    """
    if not layers:
        raise TransferError("layerwise: no layers")
    known = {f"{net}.{name}" for names in layers.values() for name in names}
    patterns = [as_pattern(names, f"{net}.") for names in layers.values()]
    # What no layer takes moves as the last one does.
    patterns[-1] = rf"{patterns[-1]}|(?!{re.escape(net)}\.).*"
    rule = layer_decay(patterns, decay)

    def init(params: Tree) -> Tree:
        trained = dict.fromkeys(path.partition(".")[0] for path in tree.paths(params))
        if net not in trained:
            raise TransferError(
                f"layerwise: the step trains nothing of a net {net!r}, which net= names{nearest(net, trained)}"
            )
        if stray := [path for path in tree.paths(params) if path.startswith(f"{net}.") and path not in known]:
            raise TransferError(
                f"layerwise: parameter {stray[0]!r} is in none of the layers {', '.join(layers)}"
                f"{nearest(stray[0], known)}"
            )
        return rule.init(params)

    return chain(optimizer, rule._replace(init=init))
