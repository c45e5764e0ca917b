"""The mean on a sphere."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.testing import parametrize_with_checks, weight_map_trial
from ttransfer.weights import average, karcher, pool, slerp


def net(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1

    # Positive throughout: directions of one orthant, whose mean is unique.
    return {"w": drawn(3, 4), "b": drawn(3), "bn.running_var": drawn(3), "n": torch.tensor(seed)}


SRC = pool(a=net(0), b=net(1), c=net(2))
WEIGHTS = {"a": 0.5, "b": 2.0, "c": 1.0}


def slow(src: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Descend along the sum of squared angles until nothing moves, without a gradient by the source."""
    new = {"n": src["a/n"], "bn.running_var": torch.zeros(())}
    w = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64) / 3.5
    new["bn.running_var"] = sum(x * src[f"{k}/bn.running_var"].detach() for x, k in zip(w, "abc", strict=True))
    for name in ("w", "b"):
        rows = torch.stack([src[f"{who}/{name}"].detach().flatten() for who in "abc"])
        v = rows / rows.norm(dim=1, keepdim=True)

        def cost(u: Tensor, v: Tensor = v) -> Tensor:
            return (w * torch.arccos(v @ u / u.norm()) ** 2).sum()

        u = v.mean(0)
        for _ in range(40):
            u = u / u.norm()
            u = u - 0.5 * torch.func.grad(cost)(u)
        new[name] = (u / u.norm() * (w @ rows.norm(dim=1))).reshape(src[f"a/{name}"].shape)
    return new


TRIALS = (
    weight_map_trial(
        karcher(WEIGHTS, iterations=12),
        SRC,
        net(3),
        reference=slow,
        examples=4,
        name="karcher",
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_for_two_it_is_slerp(t: float) -> None:
    a, b = ({"w": x / x.norm()} for x in torch.randn(2, 7, dtype=torch.float64))
    found = karcher({"a": 1 - t, "b": t}, iterations=30).apply(pool(a=a, b=b), {})["w"]
    torch.testing.assert_close(found, slerp(t).apply(pool(base=a, tuned=b), {})["w"], rtol=0, atol=1e-9)


def test_limits() -> None:
    same = pool(a=net(0), b=net(0))
    for name, x in karcher().apply(same, {}).items():
        torch.testing.assert_close(x, net(0)[name], rtol=0, atol=1e-12)
    x = torch.tensor([1.0, 2.0])
    for opposite in ({"w": -x}, {"w": torch.zeros(2)}):
        both = pool(a={"w": x}, b=opposite)
        wanted = average().apply(both, {})["w"]
        torch.testing.assert_close(karcher().apply(both, {})["w"], wanted, rtol=0, atol=1e-6)
    nothing = pool(a={"w": torch.zeros(2)}, b={"w": torch.zeros(2)})
    assert karcher().apply(nothing, {})["w"].tolist() == [0, 0]


@pytest.mark.parametrize("b", [[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0], [0.3, -0.4]])
def test_gradients_are_finite(b: list[float]) -> None:
    def value(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return karcher(w).apply(pool(a={"w": a}, b={"w": b}), {})["w"].sum()

    for slope in torch.func.grad(value, argnums=(0, 1, 2))(torch.tensor([1.0, 2.0]), torch.tensor(b), torch.ones(2)):
        assert slope.isfinite().all()


def test_refusals() -> None:
    with pytest.raises(TransferError, match="karcher: wanted at least 1 iteration, got 0"):
        karcher(iterations=0)
    with pytest.raises(TransferError, match="karcher: 3 checkpoints want 3 numbers"):
        karcher([1.0, 2.0]).apply(SRC, {})
