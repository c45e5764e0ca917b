"""Other numbers in each layer, given and learned."""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ttransfer as tt
from tests.support.digits import digits
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import by_layer, by_part, pool, slerp, task_arithmetic, ties, wise_ft


def module(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Conv2d(1, 2, 2), norm=nn.BatchNorm2d(2), head=nn.Linear(3, 2)
    )
    return nn.Sequential(parts).double()


def net(seed: int) -> dict[str, Tensor]:
    new = {name: x.detach() for name, x in module(seed).state_dict().items()}
    return {**new, "norm.running_var": torch.rand_like(new["norm.running_var"]) + 0.1}


LAYERS = tt.recipes.layers(module(0))  # stem, norm, head
POOL = pool(base=net(0), a=net(1), b=net(2))
SCALE = torch.tensor([[0.3, 0.4], [0.5, -0.2], [1.0, 0.7]], dtype=torch.float64)


def slow(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    new = {}
    for name in (key.removeprefix("base/") for key in src if key.startswith("base/")):
        start, a, b = (src[f"{who}/{name}"] for who in ("base", "a", "b"))
        x, y = SCALE[list(LAYERS).index(name.partition(".")[0])]
        if not start.is_floating_point():
            new[name] = start
        else:
            new[name] = (a + b) / 2 if "running" in name else start + x * (a - start) + y * (b - start)
    return new


def named(scale: Tensor) -> dict[str, dict[str, Tensor]]:
    return {layer: dict(zip("ab", row, strict=True)) for layer, row in zip(LAYERS, scale, strict=True)}


TRIALS = (
    weight_map_trial(
        by_layer(task_arithmetic, LAYERS, scale=SCALE),
        POOL,
        net(3),
        reference=slow,
        examples=4,
        name="in order",
    ),
    weight_map_trial(
        by_layer(task_arithmetic, LAYERS, scale=named(SCALE)),
        POOL,
        net(3),
        reference=slow,
        examples=4,
        name="by name",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_it_is_by_part_with_patterns_written_for_it() -> None:
    both = pool(base=net(0), tuned=net(1))
    rates = {"stem": 0.1, "norm": 0.5, "head": 0.9}
    parts = by_part({rf"{layer}\..*": slerp(t) for layer, t in rates.items()}).apply(both, {})
    patterns = {layer: rf"{layer}\..*" for layer in rates}
    for mine in (
        by_layer(slerp, LAYERS, t=list(rates.values())),
        by_layer(slerp, patterns, t=rates),
        by_layer(slerp, patterns, t=torch.tensor(list(rates.values()), dtype=torch.float64)),
    ):
        new = mine.apply(both, {})
        assert list(new) == list(parts)
        for name, x in parts.items():
            torch.testing.assert_close(new[name], x, rtol=1e-12, atol=1e-12)
    plan = by_layer(slerp, LAYERS, t=rates).plan(both, {})
    assert plan.made["norm.running_mean"].how == "norm: interpolated along the arc, as a statistic"


def test_what_all_layers_share_is_given_before() -> None:
    scale = [0.0, 0.5, 1.0]
    new = by_layer(functools.partial(ties, 0.5), LAYERS, scale=scale).apply(POOL, {})
    for i, layer in enumerate(LAYERS):
        whole = ties(0.5, scale=scale[i]).apply(POOL, {})
        assert all(torch.equal(x, whole[name]) for name, x in new.items() if name.startswith(layer))


def test_the_head_that_is_tied_to_the_embedding_goes_with_it() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.embed(x)))

    layers = tt.recipes.layers(Tied())
    assert "head.weight" not in [name for names in layers.values() for name in names]
    both = pool(base=Tied().state_dict(), tuned=Tied().state_dict())
    new = by_layer(wise_ft, layers, alpha=[0.2, 0.8]).apply(both, {})
    assert new["head.weight"].data_ptr() == new["embed.weight"].data_ptr()
    into = Tied()
    tt.weights.transfer(new, into)
    assert torch.equal(into.head.weight, wise_ft(0.2).apply(both, {})["embed.weight"])


@pytest.mark.parametrize("compiled", [False, True])
def test_numbers_are_learned_by_layer(compiled: bool) -> None:
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64)

    def parts(scale: Tensor) -> Tensor:
        new = by_layer(task_arithmetic, LAYERS, scale=scale).apply(POOL, {})
        stem = F.conv2d(x, new["stem.weight"], new["stem.bias"])
        return (
            (F.linear(stem * new["norm.weight"][:, None, None], new["head.weight"], new["head.bias"])).square().mean()
        )

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) * self.norm.weight[:, None, None])

    merge = tt.as_reparam(functools.partial(by_layer, task_arithmetic, LAYERS), POOL, scale=SCALE)
    step = tt.step(
        {"net": tt.reparam(tt.functional(Net().double()), merge)},
        tt.optim.sgd(0.1),
        trainable=("net",),
        fit=tt.term(lambda y: y.square().mean(), "net(data)"),
    )
    batch = {"data": {"x": x}}
    state = step.init(batch)
    assert {k: v.shape for k, v in state.trainable["net"].items()} == {"scale": (3, 2)}
    after, _ = (tt.compile(step, backend="aot_eager") if compiled else step)(state, batch)
    wanted = SCALE - 0.1 * torch.func.grad(parts)(SCALE)
    torch.testing.assert_close(after.trainable["net"]["scale"], wanted, rtol=1e-9, atol=1e-9)


def test_numbers_by_layer_are_swept() -> None:
    both = pool(base=nn.Linear(2, 2).state_dict(), tuned=nn.Linear(2, 2).state_dict())
    layers = {"w": ("weight",), "b": ("bias",)}
    merge = tt.as_reparam(functools.partial(by_layer, wise_ft, layers), both, alpha={"w": 0.5, "b": 0.5})
    step = tt.step(
        {"net": tt.reparam(tt.functional(nn.Linear(2, 2)), merge)},
        tt.optim.sgd(0.0),
        trainable=("net",),
        fit=tt.term(lambda y: y.square().mean(), "net(data)"),
    )
    many = tt.sweep(step, {"net.alpha.w": [0.0, 1.0]})
    batch = {"data": {"x": torch.eye(2)}}
    guess = tt.predict(many, many.init(batch), "net")(torch.eye(2)) - tt.predict(many, many.init(batch), "net")(
        torch.zeros(2, 2)
    )
    torch.testing.assert_close(guess.mT, torch.stack([both["base/weight"], both["tuned/weight"]]))


def adamerging(scale: Tensor) -> tt.WeightMap:
    return by_layer(task_arithmetic, MLP_LAYERS, scale=scale.clamp(0, 1))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(128, 64), act1=nn.ReLU(), fc2=nn.Linear(64, 64), act2=nn.ReLU(), head=nn.Linear(64, 10)
        )
    )


MLP_LAYERS = tt.recipes.layers(mlp())


def fitted(start: dict[str, Tensor] | None, x: Tensor, y: Tensor, rate: float) -> dict[str, Tensor]:
    net = mlp()
    if start is not None:
        net.load_state_dict(start)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return {name: x.detach() for name, x in net.state_dict().items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_adamerging_learns_from_unlabelled_images(seed: int) -> None:
    """Digits in the left or the right half of a field: a weak start is tuned on each, and both are merged.

    As in the paper all numbers start at 0.3, stay from 0 to 1, and the sum of the entropies is minimised.
    """
    images, labels = digits()
    void = torch.zeros_like(images)
    fields = {"left": torch.cat([images, void], 1), "right": torch.cat([void, images], 1)}
    torch.manual_seed(seed)
    few = torch.cat([x[:60] for x in fields.values()])
    base = fitted(None, few, labels[:60].repeat(2), 3e-3)
    tuned = {name: fitted(base, x[60:400], labels[60:400], 2e-3) for name, x in fields.items()}
    many = pool({"base": base, **tuned})
    batch = {name: {"x": x[400:]} for name, x in fields.items()}

    def reached(params: Mapping[str, Tensor]) -> tuple[float, float]:
        logits = [torch.func.functional_call(mlp(), dict(params), (one["x"],)) for one in batch.values()]
        right = [(z.argmax(1) == labels[400:]).float().mean().item() for z in logits]
        return sum(right) / 2, sum(tt.losses.entropy(z).item() for z in logits)

    merge = tt.as_reparam(adamerging, many, scale=torch.full((3, 2), 0.3))
    step = tt.step(
        {"net": tt.reparam(tt.functional(mlp()), merge)},
        tt.optim.adam(0.02),
        trainable=("net",),
        terms={name: tt.term(tt.losses.entropy, f"net({name})") for name in batch},
    )
    state = step.init(batch)
    for _ in range(25):
        state, _ = step(state, batch)
    fixed, entropy = reached(task_arithmetic(0.3).apply(many, {}))
    learned, less = reached(adamerging(state.trainable["net"]["scale"]).apply(many, {}))
    # About 0.79 and 0.83 of the digits, at 1.3 and 0.8 nats.
    assert less < 0.75 * entropy
    assert learned > fixed + 0.01


@pytest.mark.parametrize(
    ("map", "layers", "numbers", "message"),
    [
        (
            slerp(0.5),
            LAYERS,
            {},
            "by_layer: a map that is made already takes no numbers; give the function that makes it",
        ),
        ("slerp", LAYERS, {}, "by_layer: wanted a function that makes a map, such as tt.weights.slerp, got str"),
        (slerp, ["stem"], {}, "by_layer: wanted layers, name -> names or a pattern, got [str]"),
        (slerp, {}, {}, "by_layer: no parts"),
        (slerp, {"x": ("a", "b"), "y": ("b",)}, {}, "by_layer: 'b' is in 'x' and in 'y'"),
        (slerp, LAYERS, {"t": 0.5}, "by_layer: 't' must be 3 numbers, one for each layer, got float"),
        (slerp, LAYERS, {"t": [0.5]}, "by_layer: 't' must be 3 numbers, one for each layer, got [float]"),
        (slerp, LAYERS, {"t": torch.ones(2)}, "by_layer: 't' must be 3 numbers, one for each layer, got (2,) float32"),
        (slerp, LAYERS, {"t": torch.ones(())}, "by_layer: 't' must be 3 numbers, one for each layer, got () float32"),
        (slerp, LAYERS, {"t": {"stem": 1, "head": 1}}, "by_layer: 't' has no number for 'norm'; there are: head, stem"),
        (
            slerp,
            LAYERS,
            {"t": {"stem": 1, "norm": 1, "head": 1, "had": 1}},
            "by_layer: 't' has a number for 'had'; did you mean 'head'?",
        ),
        (slerp, LAYERS, {"s": [1, 1, 1]}, "by_layer: slerp(s): slerp() got an unexpected keyword argument 's'"),
        (lambda t: t, LAYERS, {"t": [1, 1, 1]}, "by_layer: 'stem': wanted a WeightMap, got int"),
    ],
)
def test_refusals(map: Any, layers: Any, numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(TransferError, match=re.escape(message)):
        by_layer(map, layers, **numbers)


def test_a_layer_that_is_not_there() -> None:
    both = pool(base={"stem.weight": torch.ones(1)}, tuned={"stem.weight": torch.ones(1)})
    mine = by_layer(wise_ft, {"stem": ("stem.weight", "stem.wait")}, alpha=[1.0])
    with pytest.raises(
        TransferError, match=r"by_layer: 'stem': there is no 'stem\.wait'; did you mean 'stem\.weight'\?"
    ):
        mine.apply(both, {})
