"""The critic, its bridge and the net's bridge: what each of them gets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from tests.support.games import normal, obeys, same_game
from tests.support.peers import theirs

READS = ("net(a)[0]", "net(b)[0]", "net(a)[1]", "net(b)[1]")
READINGS = [normal(0, 6, 3), normal(1, 4, 3), normal(2, 6, 3), normal(3, 4, 3)]
CRITICS = {"critic": tt.adapters.mlp(5), "critic_bridge": tt.adapters.mlp(4)}
TERM, SURE = tt.terms.gvb(*READS, **CRITICS), tt.terms.gvb_e(*READS, **CRITICS)
Own = dict[str, Tensor]


def perceptron(own: Own, name: str, x: Tensor) -> Tensor:
    hidden = (x @ own[f"{name}.0.weight"].T + own[f"{name}.0.bias"]).clamp_min(0)
    return hidden @ own[f"{name}.2.weight"].T + own[f"{name}.2.bias"]


def sureness(row: Tensor) -> Tensor:
    """exp(-H): the product of all p^p."""
    p = row.exp() / row.exp().sum()
    return (p**p).prod()


def critics(own: Own, z: Tensor, y: Tensor, *, weighted: bool = False) -> Tensor:
    total = z.new_zeros(())
    for logits, label in ((z, 1.0), (y, 0.0)):
        mean = sum(sureness(row).detach() for row in logits) / len(logits)
        for row in logits:
            p = row.exp() / row.exp().sum()
            b = perceptron(own, "bridge", p)
            d = perceptron(own, "critic", p) - b
            bce = F.binary_cross_entropy_with_logits(d, torch.full_like(d, label))
            bce = bce * sureness(row) / mean if weighted else bce
            total = total + (bce + 0.3 * b.abs().sum()) / len(logits) / 2
    return total


@pytest.mark.parametrize("term", [TERM, SURE], ids=["gvb", "gvb_e"])
def test_the_critic_and_its_bridge_learn_and_the_net_unlearns(term: tt.Term) -> None:
    own, memory = term.init(torch.Generator().manual_seed(1), READINGS)

    def plain(own: Own, z: Tensor, y: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return critics(own, z, y, weighted=term is SURE)

    numbers = {"of_net": 0.0, "of_critic": 0.3}
    same_game(term, plain, READINGS, own=own, memory=memory, numbers=numbers, still=(2, 3))


def test_pytorch_adapts_weights_are_others() -> None:
    z = READINGS[0]
    other = theirs("pytorch_adapt.layers", "EntropyWeights")(z)
    weights = torch.stack([sureness(row) for row in z])
    torch.testing.assert_close(other, (1 + weights) / (1 + weights).sum(), rtol=1e-9, atol=0)


def test_rows_without_any_weight_are_finite() -> None:
    many = [torch.zeros(2, 1000), torch.zeros(3, 1000), torch.zeros(2, 1000), torch.zeros(3, 1000)]
    own, memory = SURE.init(torch.Generator().manual_seed(1), many)
    numbers = {k: torch.tensor(1.0) for k in ("of_net", "of_critic", "scale")}

    def value(z: Tensor) -> Tensor:
        return SURE.apply(own, memory, numbers, torch.tensor(0), [z, *many[1:]])[0]

    for z in (many[0], 1000 * torch.eye(2, 1000)):
        assert value(z).isfinite()
        assert torch.func.grad(value)(z).isfinite().all()


def test_the_nets_bridge_vanishes_whatever_the_scale() -> None:
    own, memory = TERM.init(torch.Generator().manual_seed(1), READINGS)
    loss = theirs("pytorch_adapt.layers", "AbsLoss")
    for scale in (0.0, 2.0):
        numbers = {k: torch.tensor(v) for k, v in (("of_net", 0.7), ("of_critic", 0.3), ("scale", scale))}

        def value(b: Tensor, numbers: Own = numbers) -> Tensor:
            return TERM.apply(own, memory, numbers, torch.tensor(0), [*READINGS[:2], b, READINGS[3]])[0]

        wanted = torch.func.grad(lambda b: 0.7 * (loss(b) + loss(READINGS[3])) / 2)(READINGS[2])
        assert torch.allclose(torch.func.grad(value)(READINGS[2]), wanted, rtol=1e-6)


def test_a_critic_with_a_bridge_is_pytorch_adapts() -> None:
    own, _ = TERM.init(torch.Generator().manual_seed(1), READINGS)
    layers = [torch.nn.Sequential(torch.nn.Linear(3, w), torch.nn.ReLU(), torch.nn.Linear(w, 1)) for w in (5, 4)]
    for name, layer in zip(("critic", "bridge"), layers, strict=True):
        layer.double().load_state_dict({k.removeprefix(f"{name}."): p for k, p in own.items() if name in k})
    other = theirs("pytorch_adapt.layers", "ModelWithBridge", *layers)
    told, taken = zip(*(other(z.softmax(1), return_bridge=True) for z in READINGS[:2]), strict=True)
    wanted = tt.align.domain_adversarial(*told) + 0.3 * tt.align.bridge(*taken)
    assert torch.allclose(critics(own, *READINGS[:2]), wanted, rtol=1e-12)


@pytest.mark.parametrize("term", [TERM, SURE], ids=["gvb", "gvb_e"])
def test_it_obeys_the_laws_of_terms(term: tt.Term) -> None:
    obeys(term, READINGS, {"gradcheck": "the predictions' gradient is reversed on purpose"})
