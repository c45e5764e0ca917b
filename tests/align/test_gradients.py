"""`iga` and `mldg` against autograd by hand, and in a step that reads a net's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.steps import refused, run, small_step
from ttransfer.align._gradients import iga, mldg

Domain = tuple[Tensor, Tensor]
NET = mlp(1)
WEIGHTS: dict[str, Tensor] = dict(NET.named_parameters())


def smooth(params: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = F.linear(x, params["hidden.weight"], params["hidden.bias"]).tanh()
    return F.linear(hidden, params["fc.weight"], params["fc.bias"])


def risk(params: dict[str, Tensor], domain: Domain) -> Tensor:
    return F.cross_entropy(smooth(params, domain[0]), domain[1])


def domains() -> list[Domain]:
    one, two = vectors(0), vectors(1)
    sets = [one["source"]["x"], one["target"]["x"], two["source"]["x"]]
    return [(x, torch.arange(len(x)) % 3) for x in sets]


def slopes(value: Tensor, params: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(params.values()), create_graph=True))


def slow_iga(params: dict[str, Tensor], given: Sequence[Domain]) -> Tensor:
    each = [torch.cat([g.flatten() for g in slopes(risk(params, d), params)]) for d in given]
    mean = sum(each) / len(each)
    return torch.stack([((g - mean) ** 2).sum() for g in each]).mean()


def slow_mldg(params: dict[str, Tensor], train: Sequence[Domain], test: Sequence[Domain], second: bool) -> Tensor:
    first = torch.stack([risk(params, d) for d in train]).mean()
    steps = slopes(first, params)
    moved = {k: p - 0.3 * (g if second else g.detach()) for (k, p), g in zip(params.items(), steps, strict=True)}
    return first + 0.7 * torch.stack([risk(moved, d) for d in test]).mean()


def test_iga() -> None:
    given = domains()
    found, value = torch.func.grad_and_value(lambda p: iga(risk, p, given))(WEIGHTS)
    wanted = slow_iga(WEIGHTS, given)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(list(found.values()), slopes(wanted, WEIGHTS), rtol=1e-9, atol=1e-12)
    assert iga(risk, WEIGHTS, given[:1]) == 0


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_mldg(variant: str) -> None:
    train, test = domains()[:2], domains()[2:]
    keywords: dict[str, Any] = {"inner": 0.3, "beta": 0.7, "variant": variant}
    found, value = torch.func.grad_and_value(lambda p: mldg(risk, p, train, test, **keywords))(WEIGHTS)
    wanted = slow_mldg(WEIGHTS, train, test, variant == "paper")
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(list(found.values()), slopes(wanted, WEIGHTS), rtol=1e-9, atol=1e-12)


def test_the_variants_differ_in_their_gradient() -> None:
    train, test = domains()[:2], domains()[2:]
    both = [
        torch.func.grad(lambda p, v=v: mldg(risk, p, train, test, inner=0.3, variant=v))(WEIGHTS)["fc.weight"]
        for v in ("paper", "code")
    ]
    assert (both[0] - both[1]).norm() / both[0].norm() > 1e-3


class Bounded(nn.Module):
    """A net that is twice differentiable."""

    def __init__(self) -> None:
        super().__init__()
        self.load = mlp(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.load.fc(self.load.hidden(x).tanh())


def test_in_a_step_compiled_and_as_members() -> None:
    net = tt.functional(Bounded())

    def of_step(params: dict[str, Tensor], domain: Domain) -> Tensor:
        return F.cross_entropy(net.apply(params, {}, domain[0]).value, domain[1])

    def aligned(params: dict[str, Tensor], xs: list[Tensor], ys: list[Tensor]) -> Tensor:
        return iga(of_step, params, list(zip(xs, ys, strict=True)))

    batch = vectors(0)
    batch["target"]["y"] = torch.arange(4) % 3
    term = tt.term(aligned, "student:params", ["source.x", "target.x"], ["source.y", "target.y"])
    step = small_step({"iga": term}, {"student": net})
    state = step.init(batch)
    eager, logs = run(step, state, batch)
    given = [(batch[d]["x"], batch[d]["y"]) for d in ("source", "target")]
    torch.testing.assert_close(logs["iga"], slow_iga(WEIGHTS, given).detach(), rtol=1e-9, atol=0)
    fast, _ = run(tt.compile(step, backend="aot_eager"), state, batch)
    torch.testing.assert_close(fast.trainable, eager.trainable, rtol=1e-9, atol=1e-12)
    members = tt.ensemble(step, 2)
    _, both = members(members.init(batch), batch)
    torch.testing.assert_close(both["iga"][0], logs["iga"], rtol=1e-9, atol=0)


def test_what_is_refused() -> None:
    refused(lambda: iga(risk, WEIGHTS, []), "iga: wanted at least one domain")
    refused(lambda: mldg(risk, WEIGHTS, domains(), [], inner=0.1), "mldg: wanted train and test domains, got 3 and 0")
    refused(lambda: mldg(risk, WEIGHTS, domains(), domains(), inner=0.1, variant="mine"), "got 'mine'")
