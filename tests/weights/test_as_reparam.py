"""A map inside the step: its numbers learn, and are swept."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ttransfer as tt
from tests.support.pools import tied
from ttransfer._errors import TransferError
from ttransfer.weights._routes import Route, Routes, Tensors, routed

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
BATCH = {"data": {"x": X, "y": X[:, :3] * 2}}


def linear(seed: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, 3)


def between(alpha: Tensor) -> tt.WeightMap:
    """What wise_ft does, by hand."""

    def routes(src: Tensors, like: Tensors) -> Routes:
        names = [name.removeprefix("a/") for name in src if name.startswith("a/")]
        return Routes({k: Route((f"a/{k}", f"b/{k}"), lambda a, b: a + alpha * (b - a), "between") for k in names})

    return routed(routes)


POOL = tt.weights.pool(a=linear(1).state_dict(), b=linear(2).state_dict())


def merged(**numbers: object) -> tt.Functional:
    return tt.reparam(tt.functional(linear(0)), tt.as_reparam(between, POOL, **numbers))


def mixed(alpha: float) -> Mapping[str, Tensor]:
    return {k: POOL[f"a/{k}"] + alpha * (POOL[f"b/{k}"] - POOL[f"a/{k}"]) for k in ("weight", "bias")}


def step_of(net: tt.Functional, trainable: tuple[str, ...] = ("net",)) -> tt.Step:
    return tt.step({"net": net}, tt.optim.sgd(0.1), trainable=trainable, fit=tt.term(F.mse_loss, "net(data)", "data.y"))


def test_the_net_is_what_the_map_makes() -> None:
    train = step_of(merged(alpha=0.25))
    state = train.init(BATCH)
    assert list(state.trainable["net"]) == ["alpha"]
    expected = F.linear(X, **mixed(0.25))
    torch.testing.assert_close(tt.predict(train, state, "net")(X), expected)
    torch.testing.assert_close(tt.state_dict(train, state, "net"), dict(mixed(0.25)))


def test_the_coefficient_learns_along_its_derivative() -> None:
    train = step_of(merged(alpha=torch.tensor(0.25, dtype=torch.float64)))
    state = train.init(BATCH)

    def loss(alpha: float) -> float:
        return F.mse_loss(F.linear(X, **mixed(alpha)).double(), BATCH["data"]["y"].double()).item()

    slope = (loss(0.25 + 1e-2) - loss(0.25 - 1e-2)) / 2e-2  # a parabola, so that differences are exact
    for one in (train, tt.compile(train, backend="aot_eager")):
        after, _ = one(state, BATCH)
        moved = (after.trainable["net"]["alpha"] - 0.25).item()
        assert moved == pytest.approx(-0.1 * slope, rel=1e-4)


def test_a_coefficient_that_does_not_train_is_swept() -> None:
    other = tt.functional(linear(3))
    train = tt.step(
        {"net": merged(alpha=0.0), "other": other},
        tt.optim.sgd(0.1),
        trainable=("other",),
        fit=tt.term(F.mse_loss, "net(data)", "data.y", weight=0.0),  # for the logs
        rest=tt.term(F.mse_loss, "other(data)", "data.y"),
    )
    curve = [0.0, 0.5, 1.0]
    many = tt.sweep(train, {"net.alpha": curve})
    state = many.init(BATCH)
    assert state.frozen["net"]["alpha"].tolist() == curve
    _, logs = many(state, BATCH)
    for i, alpha in enumerate(curve):
        assert logs["fit"][i].item() == pytest.approx(
            F.mse_loss(F.linear(X, **mixed(alpha)), BATCH["data"]["y"]).item()
        )
    twice = tt.sweep(tt.ensemble(train, 2), {"net.alpha": curve}).init(BATCH)
    assert twice.frozen["net"]["alpha"].tolist() == [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    assert tt.set_hyper(state, {"net.alpha": 0.3}).frozen["net"]["alpha"].tolist() == pytest.approx([0.3] * 3)


def test_a_map_that_is_made_already() -> None:
    net = tt.reparam(tt.functional(linear(0)), tt.as_reparam(tt.weights.match(), linear(5).state_dict()))
    params, buffers = net.init(torch.Generator())
    torch.testing.assert_close(net.apply(params, buffers, X).value, linear(5)(X).detach())


def test_members_share_the_checkpoints() -> None:
    state = tt.ensemble(step_of(merged(alpha=0.5)), 4).init(BATCH)
    assert state.trainable["net"]["alpha"].shape == (4,)


def test_mistakes_are_named() -> None:
    with pytest.raises(TransferError, match="a map that is made already takes no numbers, got 'alpha'"):
        tt.as_reparam(tt.weights.match(), POOL, alpha=0.5)
    with pytest.raises(TransferError, match="wanted a WeightMap or a function that makes one, got int"):
        tt.as_reparam(3, POOL)  # type: ignore[arg-type]
    with pytest.raises(TransferError, match="'alpha' must be a number, numbers or a tensor, got 'half'"):
        tt.as_reparam(between, POOL, alpha="half")
    gone = tt.as_reparam(tt.weights.chain(tt.weights.drop("bias")), linear(1).state_dict())
    told = r"makes nothing for 1 of the net's 2 parameters, the first 'bias'; wanted all of them.* there are: weight"
    with pytest.raises(TransferError, match=told):
        gone.apply(dict(linear(0).state_dict()), {})
    whole = tt.as_reparam(tt.weights.dare(0.5, base="a"), POOL)
    with pytest.raises(
        TransferError, match=r"for 2 of the net's 2 parameters, .* it gives a whole pool, which a merging"
    ):
        whole.apply(dict(linear(0).state_dict()), {})
    empty = tt.as_reparam(tt.weights.chain(), {})
    with pytest.raises(TransferError, match="for 2 of the net's 2 parameters, the first 'weight'; wanted all of them"):
        empty.apply(dict(linear(0).state_dict()), {})
    flat = tt.as_reparam(tt.weights.chain(), {"weight": torch.ones(2, 2), "bias": torch.ones(3)})
    with pytest.raises(TransferError, match=r"'weight' is \(3, 4\) float32 in the net, and the map makes \(2, 2\) fl"):
        flat.apply(dict(linear(0).state_dict()), {})
    with pytest.raises(TransferError, match=r"sweep: no hyper-parameter 'net.alpa'; did you mean 'net.alpha'"):
        tt.sweep(step_of(merged(alpha=0.5)), {"net.alpa": [1.0]}).init(BATCH)


@pytest.mark.parametrize(
    ("map", "numbers", "message"),
    [
        (
            tt.weights.ties,
            {"density": 0.2},
            r"ties: 'density' is read as a Python number, .*weights.ties\(density=...\), ...\), or",
        ),
        (tt.weights.dare, {"drop": 0.9}, "dare: 'drop' is read as a Python number, and cannot be learned or swept"),
        (tt.weights.dare, {"seed": 1}, "dare: 'seed' is read as a Python number"),
        (tt.weights.karcher, {"iterations": 3}, "karcher: 'iterations' is read as a Python number"),
        (
            tt.weights.wise_ft,
            {"alfa": 0.2},
            "wise_ft cannot be called with alfa alone: .*; it takes alpha, base, tuned",
        ),
        (tt.weights.rename, {}, "rename cannot be called with no numbers alone: missing a required argument: 'names'"),
        (lambda alpha: alpha, {"alpha": 1.0}, r"<lambda> makes no WeightMap, but \(\) float32"),
        (tt.weights.average, {"weights": {}}, "'weights' is a mapping of no numbers"),
        (tt.weights.average, {"weights": {"a": "one"}}, "'weights.a' must be a number, numbers or a tensor, got 'one'"),
    ],
)
def test_numbers_that_cannot_be_learned(map: Any, numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(TransferError, match=message):
        tt.as_reparam(map, POOL, **numbers)


def test_what_is_no_checkpoint() -> None:
    with pytest.raises(
        TransferError, match=r"as_reparam: wanted a checkpoint, .* got Linear; its weights are its state_"
    ):
        tt.as_reparam(tt.weights.match(), linear(1))  # type: ignore[arg-type]


BASED = tt.weights.pool(base=linear(0).state_dict(), b=linear(2).state_dict(), a=linear(1).state_dict())


def summed(scale: Mapping[str, float]) -> dict[str, Tensor]:
    start = {k: BASED[f"base/{k}"] for k in ("weight", "bias")}
    return {k: x + sum(s * (BASED[f"{who}/{k}"] - x) for who, s in scale.items()) for k, x in start.items()}


def test_numbers_by_name_are_one_parameter_each() -> None:
    merge = tt.as_reparam(tt.weights.task_arithmetic, BASED, scale={"a": 0.3, "b": 0.4})
    net = tt.reparam(tt.functional(linear(3)), merge)
    train = step_of(net)
    state = train.init(BATCH)
    assert {k: x.item() for k, x in state.trainable["net"].items()} == pytest.approx({"scale.a": 0.3, "scale.b": 0.4})
    torch.testing.assert_close(tt.state_dict(train, state, "net"), summed({"a": 0.3, "b": 0.4}))
    for one in (train, tt.compile(train, backend="aot_eager")):
        after, _ = one(state, BATCH)
        assert all(after.trainable["net"][k] != x for k, x in state.trainable["net"].items())
    alone = tt.as_reparam(tt.weights.task_arithmetic, BASED, scale={"a": 0.3})
    torch.testing.assert_close(
        alone.apply(dict(linear(3).state_dict()), alone.init(torch.Generator(), {})), summed({"a": 0.3})
    )


def test_numbers_by_name_are_swept_and_set() -> None:
    merge = tt.as_reparam(tt.weights.task_arithmetic, BASED, scale={"a": 0.3, "b": 0.4})
    train = tt.step(
        {"net": tt.reparam(tt.functional(linear(3)), merge), "other": tt.functional(linear(3))},
        tt.optim.sgd(0.1),
        trainable=("other",),
        fit=tt.term(F.mse_loss, "net(data)", "data.y", weight=0.0),
        rest=tt.term(F.mse_loss, "other(data)", "data.y"),
    )
    many = tt.sweep(train, {"net.scale.a": [0.0, 1.0], "net.scale.b": [1.0, 0.5]})
    _, logs = many(many.init(BATCH), BATCH)
    for i, scale in enumerate(({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 0.5})):
        wanted = F.mse_loss(F.linear(X, **summed(scale)), BATCH["data"]["y"])
        torch.testing.assert_close(logs["fit"][i], wanted)
    changed = tt.set_hyper(train.init(BATCH), {"net.scale.a": -1.0})
    torch.testing.assert_close(tt.state_dict(train, changed, "net"), summed({"a": -1.0, "b": 0.4}))


def test_what_is_not_learned_is_given_before() -> None:
    merge = tt.as_reparam(partial(tt.weights.ties, 1.0), BASED, scale=0.5)
    new = merge.apply(dict(linear(3).state_dict()), merge.init(torch.Generator(), {}))
    torch.testing.assert_close(new, tt.weights.ties(1.0, scale=0.5).apply(BASED, {}))


def test_running_statistics_go_through_the_map() -> None:
    def normed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        for _ in range(3):
            net(3 * torch.randn(16, 4) + seed)
        return net.eval()

    first, second = normed(1), normed(2)
    pool = tt.weights.pool(base=first.state_dict(), tuned=second.state_dict())
    net = tt.reparam(tt.functional(normed(0)), tt.as_reparam(tt.weights.wise_ft, pool, alpha=0.5))
    step = tt.step(
        {"net": net, "other": tt.functional(linear(3))},
        tt.optim.sgd(0.1),
        trainable=("other",),
        fit=tt.term(F.mse_loss, "net(data)", "data.y", weight=0.0),
        rest=tt.term(F.mse_loss, "other(data)", "data.y"),
    )
    many = tt.sweep(step, {"net.alpha": [0.0, 0.5, 1.0]})
    state, logs = many(many.init(BATCH), BATCH)
    torch.testing.assert_close(tt.predict(many, state, "net")(X)[0], first(X).detach())
    torch.testing.assert_close(tt.predict(many, state, "net")(X)[2], second(X).detach())
    assert logs["fit"][2].item() == pytest.approx(F.mse_loss(second(X), BATCH["data"]["y"]).item())
    half = tt.state_dict(step, tt.member(state, 1), "net")
    torch.testing.assert_close(half["1.running_mean"], (first[1].running_mean + second[1].running_mean) / 2)  # type: ignore[index, operator]


def test_tied_weights_are_one_tensor_in_a_graph() -> None:
    nets = {name: tied(seed) for seed, name in enumerate("ab")}
    src = {f"{name}/{k}": x for name, net in nets.items() for k, x in net.state_dict().items()}
    sure = {f"{name}/{k}": x.detach().abs() for name, net in nets.items() for k, x in net.named_parameters()}
    merge = tt.as_reparam(tt.weights.fisher(sure), src)
    base = dict(nets["a"].state_dict())
    wanted = merge.apply(base, {})
    assert wanted["table.weight"] is wanted["head.weight"]
    found = torch.compile(lambda at: merge.apply(at, {}), fullgraph=True, backend="aot_eager")(base)
    torch.testing.assert_close(found, wanted)
