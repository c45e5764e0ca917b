"""A critic at each depth of a segmenter, each with its own parameters and weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import images
from tests.support.steps import refused

DOMAINS = ("source", "target")


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.down, self.up, self.out = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 3, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.down(x).relu()).relu())


def softmax(z: Tensor) -> Tensor:
    return z.softmax(1)


LEVELS = {
    "encoder": (*(f"net({d}).down" for d in DOMAINS), tt.adapters.pooled(tt.adapters.mlp(4))),
    "decoder": (*(f"net({d}).up" for d in DOMAINS), tt.adapters.patch(4, kernel=3, stride=1)),
    "output": (*(tt.read(f"net({d})") | softmax for d in DOMAINS), tt.adapters.patch(4, kernel=3, stride=1)),
}


def step(weights: dict[str, float]) -> tt.Step:
    terms = tt.terms.multilevel(LEVELS, weights=weights, scale=0.5)
    return tt.step({"net": tt.functional(Segmenter())}, tt.optim.sgd(0.1), terms, trainable=("net",))


def moved(weights: dict[str, float]) -> tuple[tt.State, tt.State]:
    made = step(weights)
    state = made.init(images(0))
    new, logs = made(state, images(0))
    assert set(LEVELS) < set(logs)
    return state, new


def test_it_is_the_sum_of_its_levels() -> None:
    """An update of all is the sum of the updates of each, by its weight."""
    state, both = moved({"encoder": 1.0, "decoder": 0.2, "output": 0.05})
    total = {k: torch.zeros_like(p) for k, p in state.trainable["net"].items()}
    for name, weight in (("encoder", 1.0), ("decoder", 0.2), ("output", 0.05)):
        start, alone = moved({level: float(level == name) for level in LEVELS})
        for k in total:
            total[k] = total[k] + weight * (alone.trainable["net"][k] - start.trainable["net"][k])
        own = [s.trainable["terms"][name] for s in (state, both, start, alone)]
        assert worst(own[0], own[2]) == 0
        assert worst(own[0], own[3]) > 0
    assert worst({k: state.trainable["net"][k] + x for k, x in total.items()}, both.trainable["net"]) < 1e-12


def test_a_weight_left_out_is_one() -> None:
    terms = tt.terms.multilevel(LEVELS, weights={"decoder": 0.1})
    assert [term.hyper["weight"] for term in terms.values()] == [1.0, 0.1, 1.0]


def test_what_it_refuses() -> None:
    refused(lambda: tt.terms.multilevel({}), "there are no levels")
    refused(lambda: tt.terms.multilevel(LEVELS, weights={"decodr": 1.0}), "'decodr'", "did you mean 'decoder'")
    refused(lambda: tt.terms.multilevel({"a": ("net(a)", "net(b)")}), "for 'a', got ('net(a)', 'net(b)')")
