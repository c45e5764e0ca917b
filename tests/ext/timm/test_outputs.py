"""How a term reads what timm's models give: two heads, tokens, and DeiT's distillation through a token of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from ttransfer import TransferError
from ttransfer_ext.timm import model

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "classes": 5}
BATCH = {
    "source": {
        "x": torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        "y": torch.arange(4),
    }
}


def deit(distilled: bool = True) -> Any:
    net = model("deit_tiny_distilled_patch16_224", **TINY).double()
    net.set_distilled_training(distilled)
    # Its heads start at zero, and then the two say the same.
    for head in (net.head, net.head_dist):
        nn.init.normal_(head.weight)
    return net


def vit() -> Any:
    net = model("vit_tiny_patch16_224", **TINY).double()
    nn.init.normal_(net.head.weight)
    return net


def step(student: nn.Module, teacher: nn.Module, **terms: tt.Term) -> tt.Step:
    nets = {"student": tt.functional(student), "teacher": tt.functional(teacher)}
    return tt.step(nets, tt.optim.sgd(0.1), trainable=("student",), **terms)


HARD = {
    "task": tt.term(F.cross_entropy, "student(source)[0]", "source.y", weight=0.5),
    "kd": tt.term(tt.losses.deit_hard, "student(source)[1]", "teacher(source)", weight=0.5),
}
TAPS = {
    "task": tt.term(F.cross_entropy, "student(source).head", "source.y", weight=0.5),
    "kd": tt.term(tt.losses.deit_hard, "student(source).head_dist", "teacher(source)", weight=0.5),
}


@pytest.mark.parametrize(
    ("distilled", "compiled"),
    [(True, False), (False, False), (True, True)],
    ids=["two outputs", "their mean", "compiled"],
)
def test_hard_distillation_of_deit(distilled: bool, compiled: bool) -> None:
    student, teacher = deit(distilled), nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).double()
    # A model that gives the mean of its heads has them both as taps.
    train = step(student, teacher, **(HARD if distilled else TAPS))
    state = train.init(BATCH, seed=0)
    if compiled:
        torch.compiler.reset()
        train = tt.compile(train, backend="aot_eager")
    state, logs = train(state, BATCH)

    student.set_distilled_training(True)
    student.train()
    one, other = student(BATCH["source"]["x"])
    with torch.no_grad():
        decided = teacher.eval()(BATCH["source"]["x"]).argmax(1)
    task, kd = F.cross_entropy(one, BATCH["source"]["y"]), F.cross_entropy(other, decided)
    (0.5 * task + 0.5 * kd).backward()
    assert logs["task"].item() == pytest.approx(task.item(), rel=1e-12)
    assert logs["kd"].item() == pytest.approx(kd.item(), rel=1e-12)
    for name, p in student.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(state.trainable["student"][name], (p - 0.1 * p.grad).detach(), rtol=0, atol=1e-12)
    # At evaluation the two heads are averaged.
    student.eval()
    tt.write_back(state, student)
    wanted = student(BATCH["source"]["x"])
    given = tt.predict(train, state, "student")(BATCH["source"]["x"])
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12)


def class_token(tokens: Tensor) -> Tensor:
    return tokens[:, 0]


def patches(tokens: Tensor) -> Tensor:
    return tokens[:, -16:]


def test_tokens_are_taps() -> None:
    """`forward_features` of a transformer is what its last norm gives."""
    student, teacher = deit(), vit()
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def loss(tokens: Tensor) -> Tensor:
            features[name] = tokens.detach()
            return tokens.square().mean()

        return loss

    train = step(
        student,
        teacher,
        all=tt.term(keep("all"), "student(source).norm", coupled=True),
        one=tt.term(keep("one"), tt.read("student(source).norm") | class_token, coupled=True),
        patches=tt.term(
            F.mse_loss, tt.read("student(source).norm") | patches, tt.read("teacher(source).norm") | patches
        ),
        pooled=tt.term(keep("pooled"), "student(source).head_dist:in", coupled=True),
        block=tt.term(keep("block"), "student(source).blocks.0", coupled=True),
    )
    train(train.init(BATCH, seed=0), BATCH)
    student.train()
    x = BATCH["source"]["x"]
    with torch.no_grad():
        tokens, other = student.forward_features(x), teacher.eval().forward_features(x)
        state = train.init(BATCH, seed=0)
        _, logs = train(state, BATCH)
    torch.testing.assert_close(features["all"], tokens)
    torch.testing.assert_close(features["one"], tokens[:, 0])
    torch.testing.assert_close(features["pooled"], tokens[:, 1])
    torch.testing.assert_close(student.norm(features["block"]), tokens)
    assert logs["patches"].item() == pytest.approx(F.mse_loss(tokens[:, -16:], other[:, -16:]).item(), rel=1e-12)


def test_a_head_that_is_not_there_is_named() -> None:
    with pytest.raises(TransferError, match=r"head_dst.*head_dist"):
        step(deit(), vit(), kd=tt.term(tt.losses.deit_hard, "student(source).head_dst", "teacher(source)")).init(
            BATCH, seed=0
        )
