"""RegMean: linear layers merged by regression, and the Gram matrices for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.support.pools import assert_tied, tied
from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import average, input_grams, pool, regmean


def module(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5)).double()


def net(seed: int) -> dict[str, Tensor]:
    return {name: x.detach() for name, x in module(seed).state_dict().items()}


def data(seed: int, rows: int = 9) -> Tensor:
    return torch.randn(rows, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SRC = pool(a=net(0), b=net(1))
GRAMS = pool(a=input_grams(module(0), [data(2)]), b=input_grams(module(1), data(3).split(4)))
LIKE = net(4)


def slow(alpha: float) -> Callable[..., dict[str, Tensor]]:
    """The formula with an inverse."""

    def formula(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        new = {}
        for name in (key.removeprefix("a/") for key in src if key.startswith("a/")):
            a, b = src[f"a/{name}"], src[f"b/{name}"]
            if not a.is_floating_point():
                new[name] = a
            elif f"a/{name}" not in GRAMS:
                new[name] = (a + b) / 2
            else:
                total, right = 0.0, 0.0
                for who, w in (("a", a), ("b", b)):
                    g = GRAMS[f"{who}/{name}"]
                    g = alpha * g + (1 - alpha) * torch.diag(torch.diag(g))
                    total, right = total + g, right + g @ w.reshape(len(w), -1).T
                assert isinstance(total, Tensor)
                new[name] = (torch.inverse(total) @ right).T.reshape(a.shape)
        return new

    return formula


TRIALS = (
    weight_map_trial(
        regmean(GRAMS, ridge=0.0),
        SRC,
        LIKE,
        reference=slow(0.9),
        examples=4,
        name="regmean",
    ),
    weight_map_trial(
        regmean(GRAMS, alpha=0.0, ridge=0.0),
        SRC,
        LIKE,
        reference=slow(0.0),
        examples=4,
        name="diagonal",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_it_is_least_squares() -> None:
    """One linear layer: no other weight is nearer to what both layers gave, on what each of them was given."""
    torch.manual_seed(0)
    layers = {who: nn.Linear(3, 2, bias=False).double() for who in "ab"}
    x = {"a": torch.randn(50, 3, dtype=torch.float64), "b": 3 * torch.randn(50, 3, dtype=torch.float64) + 1}
    grams = pool({who: input_grams(layer, [x[who]]) for who, layer in layers.items()})
    src = pool({who: dict(layer.state_dict()) for who, layer in layers.items()})
    found = regmean(grams, alpha=1.0, ridge=0.0).apply(src, {})["weight"]
    inputs = torch.cat([x["a"], x["b"]])
    outputs = torch.cat([layers[who](x[who]) for who in "ab"]).detach()
    torch.testing.assert_close(found, torch.linalg.lstsq(inputs, outputs).solution.T, rtol=0, atol=1e-10)


def test_equal_checkpoints_and_equal_inputs() -> None:
    same = pool(a=net(0), b=net(0))
    for name, x in regmean(GRAMS).apply(same, {}).items():
        torch.testing.assert_close(x, net(0)[name], rtol=0, atol=1e-10)
    alike = {name: GRAMS["a/" + name.partition("/")[2]] for name in GRAMS}
    for name, x in regmean(alike).apply(SRC, {}).items():
        torch.testing.assert_close(x, average().apply(SRC, {})[name], rtol=0, atol=1e-10)


def test_inputs_that_nobody_saw_are_averaged() -> None:
    dead = {name: x.clone() for name, x in GRAMS.items()}
    for who in "ab":
        dead[f"{who}/3.weight"][:2] = 0
        dead[f"{who}/3.weight"][:, :2] = 0
    found, mean = regmean(dead).apply(SRC, {})["3.weight"], average().apply(SRC, {})["3.weight"]
    torch.testing.assert_close(found[:, :2], mean[:, :2], rtol=0, atol=1e-9)
    nothing = regmean({name: torch.zeros_like(x) for name, x in GRAMS.items()}).apply(SRC, {})["3.weight"]
    torch.testing.assert_close(nothing, mean, rtol=0, atol=1e-12)


def test_a_sum_without_an_inverse() -> None:
    both = pool(a={"fc.weight": torch.zeros(1, 2)}, b={"fc.weight": torch.ones(1, 2)})
    flat = pool(a={"fc.weight": torch.ones(2, 2)}, b={"fc.weight": torch.ones(2, 2)})
    map = regmean(flat, alpha=1.0, ridge=0.0)
    with pytest.raises(
        TransferError, match=r"regmean: the Gram matrices for 'fc.weight' have no inverse .* a ridge above"
    ):
        map.apply(both, {})
    with pytest.raises(TransferError, match=r"'fc.weight' have no inverse"):
        torch.func.grad(lambda src: map.apply(src, {})["fc.weight"].sum())(both)
    assert map.plan(both, {}).made["fc.weight"].how == "regression on the inputs"
    torch.testing.assert_close(regmean(flat, alpha=1.0).apply(both, {})["fc.weight"], torch.full((1, 2), 0.5))


def test_its_numbers_are_learned_through() -> None:
    def value(alpha: Tensor, ridge: Tensor) -> Tensor:
        return regmean(GRAMS, alpha=alpha, ridge=ridge).apply(SRC, {})["3.weight"].square().sum()

    at = (torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(
        value(*at), regmean(GRAMS, alpha=0.7, ridge=0.1).apply(SRC, {})["3.weight"].square().sum()
    )
    slopes = torch.func.grad(value, argnums=(0, 1))(*at)
    for i, slope in enumerate(slopes):
        step = [1e-6 * (i == k) for k in range(2)]
        up, down = (
            value(*(x + s for x, s in zip(at, step, strict=True))),
            value(*(x - s for x, s in zip(at, step, strict=True))),
        )
        torch.testing.assert_close((up - down) / 2e-6, slope, rtol=1e-6, atol=1e-8)
    with pytest.raises(TransferError, match="regmean: ridge must be at least 0, got -1"):
        regmean(GRAMS, ridge=-1.0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 4), (5, 3)),
        (nn.Linear(3, 4), (5, 2, 3)),
        (nn.Conv1d(2, 4, 3, stride=2, padding=1), (5, 2, 7)),
        (nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), (5, 2, 8, 7)),
        (nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"), (5, 2, 5, 5)),
        (nn.Conv3d(1, 2, 2), (3, 1, 3, 4, 3)),
    ],
)
def test_grams_are_those_of_what_the_layer_multiplies(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """x W^T for the rows that are summed up must be what the layer gives: then the squares of its output add up too."""
    layer = layer.double()
    assert isinstance(layer.bias, Tensor)
    nn.init.zeros_(layer.bias)
    x = torch.randn(shape, dtype=torch.float64)
    gram = input_grams(layer, [x[:2], x[2:]])["weight"]
    weight = layer.weight.detach().reshape(len(layer.weight), -1)  # type: ignore[union-attr, arg-type]
    out = layer(x).detach().movedim(-1 if isinstance(layer, nn.Linear) else 1, -1).reshape(-1, len(weight))
    torch.testing.assert_close(weight @ gram @ weight.T, out.T @ out / len(x), rtol=0, atol=1e-10)


def test_the_module_is_left_alone() -> None:
    watched = module(0).train()
    before = {name: x.clone() for name, x in watched.state_dict().items()}
    found = input_grams(watched, [data(2)])
    assert list(found) == ["0.weight", "3.weight"]
    assert watched.training
    assert not any(layer._forward_pre_hooks for layer in watched.modules())
    assert all(torch.equal(x, before[name]) for name, x in watched.state_dict().items())
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    assert list(input_grams(grouped, [torch.ones(1, 4, 2, 2)])) == ["1.weight"]


def test_plan_and_refusals() -> None:
    plan = regmean(GRAMS).plan(SRC, LIKE)
    assert plan.made["0.weight"].how == "regression on the inputs"
    assert plan.made["0.bias"].how == "mean of 2"
    with pytest.raises(TransferError, match=r"regmean: alpha must be from 0 to 1, got 1\.5"):
        regmean(GRAMS, alpha=1.5)
    less = {name: x for name, x in GRAMS.items() if name != "b/0.weight"}
    with pytest.raises(TransferError, match=r"there is no Gram matrix for 'b/0\.weight', though another has one"):
        regmean(less).apply(SRC, {})
    with pytest.raises(TransferError, match=r"for 'a/3\.weight' \(5, 12\) is \(5, 5\) float32, wanted \(12, 12\)"):
        regmean({**GRAMS, "a/3.weight": torch.eye(5)}).apply(SRC, {})
    with pytest.raises(TransferError, match=r"the Gram matrix 'a/3\.wieght' belongs to no tensor"):
        regmean({**GRAMS, "a/3.wieght": torch.eye(5)}).apply(SRC, {})
    with pytest.raises(TransferError, match="input_grams: no linear layer or convolution has run"):
        input_grams(nn.ReLU(), [torch.ones(1)])


def test_a_tensor_or_a_dict_is_one_batch() -> None:
    net, x = nn.Linear(2, 3), torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    wanted = input_grams(net, [x])
    torch.testing.assert_close(input_grams(net, x), wanted, rtol=0, atol=0)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.net(batch["x"])

    found = input_grams(Named(), {"x": x, "y": x[:, 0]})
    torch.testing.assert_close(found, {"net.weight": wanted["weight"]}, rtol=0, atol=0)
    with pytest.raises(TransferError, match="input_grams: wanted batches, such as a list of tensors, got int"):
        input_grams(net, 3)  # pyright: ignore[reportArgumentType]


NETS = {name: tied(seed) for seed, name in enumerate("ab")}
TIED = pool({name: net.state_dict() for name, net in NETS.items()})
ROWS = {name: [torch.arange(9), torch.arange(seed, 6)] for seed, name in enumerate("ab")}
TIED_GRAMS = pool({name: input_grams(net, ROWS[name]) for name, net in NETS.items()})


def test_tied_weights_stay_one_tensor() -> None:
    """A table that is the head too is what the head's inputs make of it, under whichever names the matrices are."""
    new = regmean(TIED_GRAMS).apply(TIED, {})
    heads = {name: x for name, x in TIED_GRAMS.items() if "table" not in name}
    assert set(heads) < set(TIED_GRAMS)
    for grams in (TIED_GRAMS, heads):
        assert_tied(regmean(grams), TIED, new)
    wanted = regmean(heads).apply({name: x for name, x in TIED.items() if "table" not in name}, {})
    torch.testing.assert_close(new["head.weight"], wanted["head.weight"])
    other = {**heads, **{f"{who}/table.weight": torch.eye(6) for who in "ab"}}
    told = "regmean: 'a/table.weight' and 'a/head.weight' are one tensor, and each has a Gram matrix of its own"
    with pytest.raises(TransferError, match=told):
        regmean(other).apply(TIED, {})


class Twice(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = (nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def test_two_layers_of_one_weight_are_least_squares_on_the_inputs_of_both() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nets = {name: Twice(seed) for seed, name in enumerate("ab")}
    grams = pool({name: input_grams(net, x) for name, net in nets.items()})
    new = regmean(grams, alpha=1.0, ridge=0.0).apply(pool({k: net.state_dict() for k, net in nets.items()}), {})
    with torch.no_grad():
        seen = {k: torch.cat([x, net.first(x).relu()]) for k, net in nets.items()}
        answers = torch.cat([net.first(seen[k]) for k, net in nets.items()])
    wanted = torch.linalg.lstsq(torch.cat([*seen.values()]), answers).solution.T
    assert new["first.weight"] is new["second.weight"]
    torch.testing.assert_close(new["first.weight"], wanted, rtol=1e-9, atol=1e-9)


def test_what_is_no_matrix_and_no_number_is_refused() -> None:
    with pytest.raises(TransferError, match="regmean: no Gram matrices, without which it is an average"):
        regmean({}).apply(TIED, {})
    with pytest.raises(TransferError, match="regmean: wanted a checkpoint, name -> tensor, got NoneType"):
        regmean(None)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="regmean: wanted a number or a tensor for 'alpha', got 'x'"):
        regmean(GRAMS, alpha="x")  # type: ignore[arg-type]
