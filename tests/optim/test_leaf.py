"""Arithmetic on one parameter."""

from __future__ import annotations

import pytest
import torch

from ttransfer import TransferError, optim
from ttransfer.optim._leaf import cast, count, each, norm, root, safe_ratio, wide, zeros


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64,) * 2,
    ],
)
def test_dtypes(dtype: torch.dtype, want: torch.dtype) -> None:
    x = torch.ones(2, dtype=dtype)
    assert wide(x).dtype == want
    assert cast(torch.tensor(0.1, dtype=torch.float64), x).dtype == want
    assert zeros({"x": x})["x"].dtype == want
    assert norm(x).dtype == want


def test_each_hands_over_numbers_in_the_dtype_of_the_arithmetic() -> None:
    params = {"a": torch.ones((), dtype=torch.bfloat16), "b": torch.ones(2), "c": torch.ones(1, dtype=torch.float64)}
    third = torch.tensor(1 / 3, dtype=torch.float64)
    got = each(
        lambda h, p, q: h["third"] * wide(p) + q, {"third": third}, params, {k: 0 * wide(p) for k, p in params.items()}
    )
    want = {"a": third.float(), "b": third.float().expand(2), "c": third.expand(1)}
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_root_at_zero_has_value_and_gradient_zero() -> None:
    x = torch.tensor([0.0, 4.0], dtype=torch.float64)
    value, pull = torch.func.vjp(root, x)
    assert value.tolist() == [0.0, 2.0]
    assert pull(torch.ones_like(x))[0].tolist() == [0.0, 0.25]


def test_norm_at_zero_has_gradient_zero() -> None:
    assert norm(torch.tensor([3.0, 4.0])).item() == 5.0
    assert torch.func.grad(norm)(torch.zeros(3)).tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("above", "below", "want"), [(3.0, 2.0, 1.5), (0.0, 2.0, 1.0), (3.0, 0.0, 1.0), (0.0, 0.0, 1.0)]
)
def test_safe_ratio(above: float, below: float, want: float) -> None:
    pair = torch.tensor(above, dtype=torch.float64), torch.tensor(below, dtype=torch.float64)
    assert safe_ratio(*pair).item() == want
    assert all(torch.isfinite(g) for g in torch.func.grad(safe_ratio, argnums=(0, 1))(*pair))


def test_count_is_on_the_parameters_device() -> None:
    assert count("adam", {"w": torch.ones(2, device="meta")}).device.type == "meta"


def test_count_under_vmap_is_one_for_each_member() -> None:
    state = torch.vmap(optim.adam(0.1).init)({"w": torch.ones(3, 2)})
    assert state["count"].tolist() == [0, 0, 0]
    assert state["count"].stride() == (1,)


def test_no_parameters_are_refused() -> None:
    with pytest.raises(TransferError, match=r"optim.adamw: there are no parameters to update"):
        optim.adamw(0.1).init({"student": {}})
