"""Averages: of equal and of unequal weight, learned, and chosen greedily."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import as_reparam, average, greedy_soup, pool, wise_ft


def net(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Linear(3, 2)).to(dtype)
    return {name: x.detach() for name, x in made.state_dict().items()}


ABC = pool(a=net(0), b=net(1), c=net(2))
LIKE = net(3)


def slow(weights: Mapping[str, float]) -> Any:
    """Sum up one number at a time."""

    def formula(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = next(iter(weights))
        new = {}
        for name in (key.partition("/")[2] for key in src if key.startswith(f"{first}/")):
            x = src[f"{first}/{name}"]
            if x.is_floating_point():
                parts = [w / sum(weights.values()) * src[f"{who}/{name}"] for who, w in weights.items()]
                x = sum(parts[1:], parts[0])
            new[name] = x
        return new

    return formula


TRIALS = (
    weight_map_trial(
        average(),
        ABC,
        LIKE,
        reference=slow(dict.fromkeys("abc", 1.0)),
        examples=4,
        name="mean",
    ),
    weight_map_trial(
        average({"c": 1.0, "a": 3.0}),
        ABC,
        LIKE,
        reference=slow({"c": 1.0, "a": 3.0}),
        examples=4,
        name="mapping",
    ),
    weight_map_trial(
        average(torch.tensor([1.0, 2.0, -0.5])),
        ABC,
        LIKE,
        reference=slow({"a": 1.0, "b": 2.0, "c": -0.5}),
        examples=4,
        name="tensor",
    ),
    weight_map_trial(
        wise_ft(0.25, base="a", tuned="c"),
        ABC,
        LIKE,
        reference=slow({"a": 0.75, "c": 0.25}),
        examples=4,
        name="wise_ft",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_equal_checkpoints_give_themselves() -> None:
    same = pool(a=net(0), b=net(0))
    for map in (average(), average([1.0, 2.0]), average([5.0, -4.0]), wise_ft(0.3, base="a", tuned="b")):
        for name, x in map.apply(same, {}).items():
            torch.testing.assert_close(x, net(0)[name], rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_few_bits_are_added_up_in_more(dtype: torch.dtype) -> None:
    many = pool({f"m{i}": {"w": torch.full((3,), 1 + i / 128).to(dtype)} for i in range(100)})
    new = average().apply(many, {})["w"]
    assert new.dtype == dtype
    wanted = torch.stack([x.double() for x in many.values()]).mean(0).to(dtype)
    torch.testing.assert_close(new, wanted, rtol=0, atol=0)


def test_ends_of_wise_ft_are_exact() -> None:
    for alpha, who in ((0.0, "a"), (1.0, "b"), (torch.tensor(0.0), "a"), (torch.tensor(1.0), "b")):
        new = wise_ft(alpha, base="a", tuned="b").apply(ABC, {})
        for name, x in new.items():
            assert torch.equal(x, ABC[f"{'a' if not x.is_floating_point() else who}/{name}"])


def test_integers_and_plan() -> None:
    src = {name: (x + i if name.endswith("tracked") else x) for i, (name, x) in enumerate(ABC.items())}
    map = average({"c": 1.0, "b": 1.0})
    assert map.apply(src, {})["1.num_batches_tracked"] is src["b/1.num_batches_tracked"]
    plan = map.plan(src, LIKE)
    assert plan.made["0.weight"].sources == ("b/0.weight", "c/0.weight")  # the pool's order
    assert plan.made["0.weight"].how == "weighted mean of 2"
    assert plan.unused["c/1.num_batches_tracked"] == "integers are those of 'b'"
    assert plan.unused["a/0.weight"] == "not among those that are merged"
    assert not plan.missing


def test_weights_are_learned_through() -> None:
    def value(w: Tensor) -> Tensor:
        return average(w).apply(ABC, {})["0.weight"].square().sum()

    at = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    slope = torch.func.grad(value)(at)
    for i in range(3):
        step = 1e-6 * torch.eye(3, dtype=torch.float64)[i]
        assert abs((value(at + step) - value(at - step)).item() / 2e-6 - slope[i].item()) < 1e-7
    # Divided by their sum, the weights have no scale.
    assert abs((at * slope).sum().item()) < 1e-12
    many = torch.func.vmap(lambda w: average(w).apply(ABC, {})["2.bias"])(torch.eye(3, dtype=torch.float64))
    assert torch.equal(many, torch.stack([ABC[f"{name}/2.bias"] for name in "abc"]))


def test_in_a_step() -> None:
    base = {name: x for name, x in net(0).items() if "running" not in name and "num" not in name}
    learned = as_reparam(wise_ft, pool(base=base, tuned={k: x + 1 for k, x in base.items()}), alpha=0.5)
    delta = learned.init(torch.Generator(), base)
    compiled = torch.compile(learned.apply, backend="aot_eager", fullgraph=True)
    for name, x in compiled(base, delta).items():
        torch.testing.assert_close(x, base[name] + 0.5, rtol=0, atol=1e-12)


def test_greedy_soup_adds_what_does_not_harm() -> None:
    at = {"far": 9.0, "best": 0.1, "other side": -0.4, "same side": 0.45, "twin": 0.1}
    many = pool({name: {"w": torch.tensor(x, dtype=torch.float64)} for name, x in at.items()})
    asked: list[float] = []

    def score(params: Mapping[str, Tensor]) -> Tensor:
        asked.append(params["w"].item())
        return -params["w"].abs()

    # 0.1; the twin changes nothing and is added; with -0.4 the mean is -0.067, nearer; with 0.45 it would be 0.0625.
    assert greedy_soup(many, score) == ("best", "twin", "other side", "same side")
    assert len(asked) == 5 + 4
    assert greedy_soup(pool(one={"w": torch.ones(1)}), lambda params: 0.0) == ("one",)


def test_weights_that_cannot_be() -> None:
    for weights in ([1.0, -1.0], {"a": 0.0}, []):
        with pytest.raises(TransferError, match="average: the weights are divided by their sum, which must not be 0"):
            average(weights)
    with pytest.raises(TransferError, match="average: 3 checkpoints want 3 numbers"):
        average([1.0, 2.0]).apply(ABC, {})
    with pytest.raises(TransferError, match="wise_ft: the pool has no 'tuned'; there are: a, b, c"):
        wise_ft().apply(ABC, {})


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ({0.0: 0.1, 1.0: float("nan")}, "the score of 'b' is NaN"),
        ({0.0: 0.3, 1.0: 0.2, 0.5: float("nan")}, r"the score of the average of \('a', 'b'\) is NaN"),
        ({0.0: None, 1.0: 0.2}, "wanted one number as the score of 'a', got NoneType"),
        ({0.0: "0.5", 1.0: 0.2}, "wanted one number as the score of 'a', got str"),
    ],
)
def test_a_soup_wants_numbers_as_scores(scores: dict[float, Any], says: str) -> None:
    both = pool(a={"w": torch.tensor(0.0)}, b={"w": torch.tensor(1.0)})
    with pytest.raises(TransferError, match=f"greedy_soup: {says}"):
        greedy_soup(both, lambda params: scores[params["w"].item()])


def test_words_are_no_weights() -> None:
    with pytest.raises(TransferError, match="average: wanted numbers as weights, got 'ab'"):
        average("ab")  # type: ignore[arg-type]
