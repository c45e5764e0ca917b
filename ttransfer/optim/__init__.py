"""Update rules as pure functions, and ways to put them together.

Each returns an `Optimizer`: ``init(params) -> state`` and
``update(grads, state, params, hyper) -> (updates, state)``, where the new parameters are
``params + updates``. Parameters are any tree of floating tensors. The numbers of a rule are not in
it: `update` is given them, so one compiled update serves every learning rate, `torch.func.vmap` over
them trains many runs at once, and `torch.func.grad` through an update gives meta-gradients.
"""

from __future__ import annotations

from ttransfer.optim._adam import adam, adamw
from ttransfer.optim._apply import apply_updates, hyper_at
from ttransfer.optim._chain import chain
from ttransfer.optim._clip import clip_by_norm
from ttransfer.optim._decay import add_weight_decay
from ttransfer.optim._lamb import lamb
from ttransfer.optim._lars import lars
from ttransfer.optim._layer_decay import layer_decay
from ttransfer.optim._partition import masked, partition
from ttransfer.optim._sgd import sgd
from ttransfer.optim._torchopt import from_torchopt

__all__ = [
    "adam",
    "adamw",
    "add_weight_decay",
    "apply_updates",
    "chain",
    "clip_by_norm",
    "from_torchopt",
    "hyper_at",
    "lamb",
    "lars",
    "layer_decay",
    "masked",
    "partition",
    "sgd",
]
