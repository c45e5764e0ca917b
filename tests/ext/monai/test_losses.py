"""Dice and cross-entropy against slow loops and MONAI's modules."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

import ttransfer as tt
from ttransfer._claims import claims_of
from ttransfer._errors import TransferError
from ttransfer.testing import Tags, loss_trial, parametrize_with_checks
from ttransfer_ext.monai import batch_dice, dice, dice_ce


def slow_dice(outputs: Tensor, labels: Tensor, include_background: bool = True, batch: bool = False) -> Tensor:
    n, c = outputs.shape[:2]
    places = list(itertools.product(*(range(s) for s in outputs.shape[2:])))
    groups = [list(range(n))] if batch else [[i] for i in range(n)]
    found = []
    for group, k in itertools.product(groups, range(0 if include_background else 1, c)):
        inside, size = torch.zeros((), dtype=outputs.dtype), torch.zeros((), dtype=outputs.dtype)
        for i, place in itertools.product(group, places):
            p, y = outputs[(i, slice(None), *place)].softmax(0)[k], float(labels[(i, *place)] == k)
            inside, size = inside + p * y, size + p + y
        found.append(1 - (2 * inside + 1e-5) / (size + 1e-5))
    return torch.stack(found).mean()


def slow_dice_ce(outputs: Tensor, labels: Tensor, lambda_ce: float = 1.0) -> Tensor:
    rows = zip(outputs.movedim(1, -1).reshape(-1, outputs.shape[1]), labels.reshape(-1).tolist(), strict=True)
    return slow_dice(outputs, labels) + lambda_ce * torch.stack([z.logsumexp(0) - z[y] for z, y in rows]).mean()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, number: int = 3) -> Tensor:
    return torch.randint(number, shape, generator=torch.Generator().manual_seed(5))


EXAMPLE = (drawn(3, 3, 2, 2), classes(3, 2, 2))
TRIALS = (
    loss_trial(dice, EXAMPLE, reference=slow_dice, examples=8, tags=Tags(class_symmetric=True, min_batch=1)),
    loss_trial(
        functools.partial(dice, include_background=False),
        EXAMPLE,
        reference=functools.partial(slow_dice, include_background=False),
        tags=Tags(min_batch=1),
        name="dice without background",
        examples=8,
    ),
    loss_trial(
        batch_dice, EXAMPLE, reference=functools.partial(slow_dice, batch=True), tags=Tags(min_batch=1), examples=8
    ),
    loss_trial(
        functools.partial(dice_ce, lambda_ce=0.5),
        EXAMPLE,
        reference=functools.partial(slow_dice_ce, lambda_ce=0.5),
        tags=Tags(min_batch=1),
        name="dice_ce",
        examples=8,
        limits={
            "unsure": lambda fn: (fn(torch.zeros(1, 2, 2, 2), classes(1, 2, 2, number=1)), 2 / 3 + math.log(2) / 2)
        },
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("space", [(4, 6), (4, 2, 6)], ids=["2D", "3D"])
@pytest.mark.parametrize(
    ("ours", "name", "more"),
    [
        (dice, "DiceLoss", {}),
        (batch_dice, "DiceLoss", {"batch": True}),
        (dice_ce, "DiceCELoss", {"lambda_ce": 0.5}),
    ],
    ids=["dice", "batch_dice", "dice_ce"],
)
@pytest.mark.parametrize("background", [True, False])
def test_monai_has_the_same(ours: Any, name: str, more: Any, space: tuple[int, ...], background: bool) -> None:
    import monai.losses

    common = {"include_background": background}
    single = getattr(monai.losses, name)(softmax=True, to_onehot_y=True, **common, **more)
    own = functools.partial(ours, **common, **{k: v for k, v in more.items() if k != "batch"})
    sizes = [space, tuple(s // 2 for s in space), tuple(max(1, s // 4) for s in space)]
    outputs = [drawn(2, 3, *size, seed=i).double() for i, size in enumerate(sizes)]
    labels = classes(2, *space)
    deep = monai.losses.DeepSupervisionLoss(single)
    # MONAI takes labels with an axis of one channel, in floats.
    target = labels[:, None].double()
    _same(lambda x: own(x, labels), lambda x: single(x, target), outputs[0])
    # As a whole it rounds to float32; its parts do not.
    weights = deep.get_weights(3)
    parts = lambda xs: sum(w * deep.get_loss(x, target) for w, x in zip(weights, xs, strict=True))  # noqa: E731
    _same(lambda x: own(x, labels), parts, outputs)
    assert own(outputs, labels).item() == pytest.approx(deep(outputs, target).item(), rel=1e-6)


def _same(ours: Any, theirs: Any, given: Any) -> None:
    torch.testing.assert_close(ours(given), theirs(given), rtol=1e-10, atol=0)
    torch.testing.assert_close(grad(ours)(given), grad(theirs)(given), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("to", [1, 2, 3, 5, 7, 14])
def test_labels_are_taken_down_as_interpolate_does(to: int) -> None:
    from ttransfer_ext.monai._losses import _resized

    labels = classes(2, 7, 9)
    expected = F.interpolate(labels[:, None].double(), size=(to, 4), mode="nearest-exact")[:, 0].long()
    assert torch.equal(_resized(labels, (to, 4)), expected)


def test_weights_halve_down_to_a_sixteenth() -> None:
    logits, labels = EXAMPLE
    one = dice(logits, labels)
    torch.testing.assert_close(dice([logits] * 6, labels), one * (1 + 1 / 2 + 1 / 4 + 1 / 8 + 2 / 16))


def test_monais_module_makes_no_single_graph() -> None:
    import monai.losses

    peer = monai.losses.DiceLoss(softmax=True, to_onehot_y=True)
    logits, labels = EXAMPLE
    compiled = torch.compile(dice, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), peer(logits, labels[:, None]))
    with pytest.raises(Exception, match=r"Dynamo|compute_tp_fp_fn|graph|tolist|dim"):
        torch.compile(peer, backend="eager", fullgraph=True)(logits, labels[:, None])


def test_terms_train_a_net_of_two_levels() -> None:
    class Levels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Conv2d(1, 3, 3, padding=1, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            self.coarse(x)
            return self.fine(x)

    torch.manual_seed(0)
    step = tt.step(
        {"net": tt.functional(Levels())},
        tt.optim.adam(0.05),
        trainable=("net",),
        task=tt.term(dice_ce, ["net(scans)", "net(scans).coarse"], "scans.y"),
    )
    assert not claims_of(dice_ce).coupled
    x = drawn(4, 1, 6, 6)
    batch = {"scans": {"x": x, "y": (x[:, 0] > 0).long() + (x[:, 0] > 1).long()}}
    state, losses = step.init(batch), []
    for _ in range(60):
        state, logs = step(state, batch)
        losses.append(logs["task"].item())
    assert losses[-1] < 0.7 * losses[0]


def test_errors() -> None:
    logits, labels = EXAMPLE
    with pytest.raises(TransferError, match=r"dice: wanted logits, or a list of them, got an empty list"):
        dice([], labels)
    with pytest.raises(TransferError, match=r"dice_ce: wanted logits of two classes or more"):
        dice_ce(logits[:, :1], labels)
    with pytest.raises(TransferError, match=r"batch_dice: wanted labels \(n, \.\.\.\), got \(3, 1, 2, 2\)"):
        batch_dice(logits, labels[:, None])
    with pytest.raises(TransferError, match=r"dice: wanted labels of whole numbers"):
        dice(logits, labels.float())
