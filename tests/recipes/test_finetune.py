"""Fine-tuning as an expression, beside loops by hand."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.recipes import finetune, last, layers, layerwise

G = torch.Generator().manual_seed(0)
BATCH = {"data": {"x": torch.randn(8, 3, 6, 6, generator=G).double(), "y": torch.arange(8) % 3}}


def make(classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    parts = OrderedDict(
        conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), act=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        fc=nn.Linear(4, classes),
    )  # fmt: skip
    return nn.Sequential(parts).double()


PRETRAINED = make(10, seed=1).state_dict()
HEADLESS = tt.weights.match(allow=r"fc\..*")


def trained(step: tt.Step, steps: int = 3) -> dict[str, Tensor]:
    state = step.init(BATCH, seed=0)
    for _ in range(steps):
        state, _ = step(state, BATCH)
    return tt.state_dict(step, state, "net")


def by_hand(penalty: float = 0.0, steps: int = 3) -> dict[str, Tensor]:
    """A loop as anybody writes it: torch.optim, and L2-SP in it."""
    net = make(3)
    start = {name: x for name, x in PRETRAINED.items() if not name.startswith("fc")}
    net.load_state_dict(start, strict=False)
    anchor = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        loss = F.cross_entropy(net(BATCH["data"]["x"]), BATCH["data"]["y"])
        gap = sum(((p - anchor[name]).square().sum() for name, p in net.named_parameters()), torch.zeros(()))
        optimizer.zero_grad()
        (loss + penalty * gap / 2).backward()
        optimizer.step()
    return net.state_dict()


def test_equals_the_loop() -> None:
    step = finetune(make(3), tt.optim.sgd(0.1, momentum=0.9), weights=PRETRAINED, map=HEADLESS)
    torch.testing.assert_close(trained(step), dict(by_hand()), rtol=1e-9, atol=1e-12)


def test_l2_sp_reads_the_pretrained_net() -> None:
    term = tt.term(tt.losses.l2_sp, "net:params", "start:params", alpha=0.3, beta=0.0)
    step = finetune(make(3), tt.optim.sgd(0.1, momentum=0.9), weights=PRETRAINED, map=HEADLESS, l2_sp=term)
    assert list(step.spec.expression.nets) == ["net", "start"]
    torch.testing.assert_close(trained(step), dict(by_hand(penalty=0.3)), rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    net = make(3)
    before = copy.deepcopy(net.state_dict())
    trained(finetune(net, tt.optim.sgd(0.1), weights=PRETRAINED, map=HEADLESS))
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


def test_a_probe_trains_the_head_and_nothing_else_moves() -> None:
    net = make(3)
    step = finetune(
        net, tt.optim.sgd(0.1), weights=PRETRAINED, map=HEADLESS, trainable=last(layers(net)), statistics="eval"
    )
    state = step.init(BATCH)
    assert list(state.trainable["net"]) == ["fc.weight", "fc.bias"]
    new = trained(step)
    moved = {
        name
        for name, x in new.items()
        if name in PRETRAINED and name[:2] != "fc" and not torch.equal(x, PRETRAINED[name])
    }
    assert moved == set()


def test_smaller_steps_for_deeper_layers() -> None:
    net = make(3)
    step = finetune(net, layerwise(tt.optim.sgd(0.1), layers(net), 0.5), weights=PRETRAINED, map=HEADLESS)
    plain = finetune(net, tt.optim.sgd(0.1), weights=PRETRAINED, map=HEADLESS)
    start = plain.init(BATCH).trainable["net"]
    one, other = (trained(each, 1) for each in (step, plain))
    for name, factor in (("conv.weight", 0.25), ("bn.weight", 0.5), ("fc.weight", 1.0)):
        torch.testing.assert_close(one[name] - start[name], factor * (other[name] - start[name]), rtol=1e-9, atol=1e-14)
    state = step.init(BATCH)
    assert state.hyper["optim.decay"].item() == 0.5


def test_with_terms_that_learn_and_an_average() -> None:
    net = make(3)
    term = tt.term(tt.losses.fitnet, tt.read("net(data).fc:in") | tt.adapters.linear(4), "start(data).fc:in")
    step = finetune(
        net,
        layerwise(tt.optim.sgd(0.1), layers(net)),
        hint=term,
        ema=0.9,
        bss=tt.term(tt.losses.bss, "net(data).fc:in"),
    )
    state, logs = step(step.init(BATCH), BATCH)
    assert {"task", "hint", "bss"} <= logs.keys()
    assert list(state.ema) == ["average"]
    assert "net" in tt.describe(step, BATCH)


def test_one_graph() -> None:
    net = make(3)
    step = finetune(net, layerwise(tt.optim.adamw(1e-3), layers(net)), weights=PRETRAINED, map=HEADLESS)
    compiled = tt.compile(step, backend="aot_eager")
    torch.testing.assert_close(trained(compiled), trained(step), rtol=1e-9, atol=1e-12)


def test_mistakes_are_named() -> None:
    with pytest.raises(TransferError, match=r"transfer: 2 of 9|match: 2 of 9"):
        finetune(make(3), tt.optim.sgd(0.1), weights=PRETRAINED)
    with pytest.raises(TransferError, match="finetune: a map without weights"):
        finetune(make(3), tt.optim.sgd(0.1), map=HEADLESS)
    with pytest.raises(TransferError, match="statistics must be 'shared' or 'eval', got 'frozen'"):
        finetune(make(3), tt.optim.sgd(0.1), statistics="frozen")
    with pytest.raises(TransferError, match="the term 'task' is the loss on the labels"):
        finetune(make(3), tt.optim.sgd(0.1), task=tt.term(F.cross_entropy, "net(data)", "data.y"))


def test_layerwise_wants_the_net_s_name() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    batch = {"data": {"x": torch.randn(6, 4), "y": torch.arange(6) % 3}}
    parts = layers(net)

    def step(**name: str) -> tt.Step:
        rates = layerwise(tt.optim.sgd(1.0), parts, 0.1, **name)
        task = tt.term(nn.functional.cross_entropy, "student(data)", "data.y")
        return tt.step({"student": tt.functional(net)}, rates, trainable=("student",), task=task)

    with pytest.raises(TransferError, match="layerwise: the step trains nothing of a net 'net', which net= names"):
        step().init(batch, seed=0)
    step(net="student").init(batch, seed=0)
    with pytest.raises(TransferError, match="layerwise: no layers"):
        layerwise(tt.optim.sgd(0.1), {})
    odd = layerwise(tt.optim.sgd(0.1), {"body": ("0.weight", "0.bias"), "head": ("1.weight",)})
    told = "layerwise: parameter 'net.1.bias' is in none of the layers body, head; did you mean 'net.0.bias'"
    with pytest.raises(TransferError, match=told):
        finetune(net, odd).init(batch, seed=0)
