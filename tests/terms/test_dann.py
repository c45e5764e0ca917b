"""The sign and the scale of the game: the critic's gradient is its own, the features' is reversed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt
from tests.support.nets import mlp, vectors


def features(seed: int, n: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SOURCE, TARGET = features(0, 6), features(1, 3)
CRITIC = tt.adapters.mlp(5)
PARAMS = CRITIC.init(torch.Generator().manual_seed(2), SOURCE)


def cross_entropy(params: dict[str, Tensor], source: Tensor, target: Tensor) -> Tensor:
    """What a critic minimises, by the definition; half the weight for each domain whatever its size."""
    real, fake = CRITIC.apply(params, source), CRITIC.apply(params, target)
    one, zero = torch.ones_like(real), torch.zeros_like(fake)
    return (F.binary_cross_entropy_with_logits(real, one) + F.binary_cross_entropy_with_logits(fake, zero)) / 2


def value(params: dict[str, Tensor], source: Tensor, target: Tensor, scale: float) -> Tensor:
    term = tt.terms.dann("net(a)", "net(b)", critic=CRITIC, scale=scale)
    numbers = {"scale": torch.tensor(scale, dtype=torch.float64)}
    return term.apply(params, {}, numbers, torch.tensor(0), [source, target])[0]


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_the_critic_learns_and_the_features_unlearn(scale: float) -> None:
    ours = torch.func.grad(value, argnums=(0, 1, 2))(PARAMS, SOURCE, TARGET, scale)
    true = torch.func.grad(cross_entropy, argnums=(0, 1, 2))(PARAMS, SOURCE, TARGET)
    assert value(PARAMS, SOURCE, TARGET, scale).item() == pytest.approx(
        cross_entropy(PARAMS, SOURCE, TARGET).item(), rel=1e-12
    )
    for name, gradient in true[0].items():
        assert torch.allclose(ours[0][name], gradient, rtol=1e-12, atol=0)
    for mine, gradient in zip(ours[1:], true[1:], strict=True):
        assert torch.allclose(mine, -scale * gradient, rtol=1e-12, atol=1e-300)


def test_the_critic_belongs_to_the_term_and_trains_with_it() -> None:
    step = tt.step(
        {"net": tt.functional(mlp(1))},
        tt.optim.sgd(0.1),
        trainable=("net",),
        dann=tt.terms.dann("net(source).fc:in", "net(target).fc:in", critic=CRITIC, scale=0.0),
    )
    state = step.init(vectors(0))
    assert set(state.trainable["terms"]["dann"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    new, _ = step(state, vectors(0))
    assert not torch.equal(new.trainable["terms"]["dann"]["2.bias"], state.trainable["terms"]["dann"]["2.bias"])
    # At scale 0 nothing flows back, and there is no other term.
    assert torch.equal(new.trainable["net"]["fc.weight"], state.trainable["net"]["fc.weight"])
    assert torch.equal(new.trainable["net"]["hidden.weight"], state.trainable["net"]["hidden.weight"])


def test_a_schedule_ramps_the_reversal() -> None:
    ramp = tt.schedules.ramp(10)
    step = tt.step(
        {"net": tt.functional(mlp(1))},
        tt.optim.sgd(0.1),
        trainable=("net",),
        dann=tt.terms.dann("net(source).fc:in", "net(target).fc:in", critic=CRITIC, scale=ramp),
    )
    state = step.init(vectors(0))
    for i in range(3):
        state, logs = step(state, vectors(0))
        assert logs["dann.scale"].item() == pytest.approx(ramp(i).item(), rel=1e-12)
    assert state.step == 3


def test_a_map_is_refused_with_the_cure() -> None:
    step = tt.step(
        {"net": tt.functional(torch.nn.Conv2d(1, 2, 3).double())},
        tt.optim.sgd(0.1),
        trainable=("net",),
        dann=tt.terms.dann("net(a)", "net(b)", critic=CRITIC),
    )
    images = {"x": torch.zeros(2, 1, 5, 5, dtype=torch.float64)}
    with pytest.raises(tt.TransferError, match="pools a map"):
        step.init({"a": images, "b": images})
