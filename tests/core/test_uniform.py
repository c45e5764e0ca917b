"""Numbers drawn by keys: uniform or normal, apart by key and stream, and the same in every mode."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ttransfer as tt
from tests.support.compare import worst
from tests.support.nets import vectors
from tests.support.sharded import gap
from tests.support.steps import refused, run, small_step

ROWS, WIDTH = 64, 1000
KEYS = torch.arange(ROWS) * 1_000_003 + 17


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_uniform_and_independent(dtype: torch.dtype) -> None:
    x = tt.uniform(KEYS, WIDTH, dtype=dtype)
    assert x.dtype == dtype
    assert x.shape == (ROWS, WIDTH)
    assert 0 <= x.min().item() < x.max().item() < 1
    n = x.numel()
    # Kolmogorov's distance to the uniform distribution: 1.95 / √n is passed once in a thousand times.
    ordered = x.flatten().double().sort().values
    assert (ordered - (torch.arange(n) + 0.5) / n).abs().max().item() < 1.95 / math.sqrt(n)
    centred = (x.double() - 0.5) * math.sqrt(12)
    for a, b in ((centred[:-1], centred[1:]), (centred[:, :-1], centred[:, 1:])):
        assert abs((a * b).mean().item()) < 4 / math.sqrt(a.numel())
    other = (tt.uniform(KEYS, WIDTH, dtype=dtype, stream=1).double() - 0.5) * math.sqrt(12)
    assert abs((centred * other).mean().item()) < 4 / math.sqrt(n)


def test_a_row_depends_on_its_key_alone() -> None:
    whole = tt.uniform(KEYS, 3, 5)
    assert torch.equal(tt.uniform(KEYS[7:9], 3, 5), whole[7:9])
    assert torch.equal(tt.uniform(KEYS, 15).reshape(-1, 3, 5), whole)
    assert tt.uniform(KEYS).shape == (ROWS,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_have_the_moments(dtype: torch.dtype) -> None:
    x = tt.normal(KEYS, 4 * WIDTH, dtype=dtype)
    assert x.dtype == dtype
    assert x.isfinite().all()
    for power, moment, error in ((1, 0, 0.01), (2, 1, 0.01), (3, 0, 0.03), (4, 3, 0.1)):
        assert x.double().pow(power).mean().item() == pytest.approx(moment, abs=error)
    assert torch.equal(tt.normal(KEYS[7:9], 3, 5, stream=2), tt.normal(KEYS, 3, 5, stream=2)[7:9])
    assert not torch.equal(tt.normal(KEYS, 3), tt.normal(KEYS, 3, stream=1))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5.42), (torch.float64, 6.34)])
def test_normal_numbers_are_finite_at_both_ends(
    dtype: torch.dtype, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = torch.tensor([[0, 2**32 - 1]])
    monkeypatch.setattr("ttransfer.core._uniform.bits", lambda keys, count: ends)
    low, high = tt.normal(KEYS[:1], 2, dtype=dtype)[0].tolist()
    assert low == -high
    assert high == pytest.approx(most, abs=0.01)


def test_what_is_refused() -> None:
    refused(lambda: tt.normal(torch.zeros(3)), "normal: wanted keys (n,) of int64", "source:keys")
    refused(lambda: tt.normal([1, 2]), "normal: wanted keys (n,) of int64")  # pyright: ignore[reportArgumentType]
    refused(lambda: tt.uniform(torch.zeros(3)), "keys (n,) of int64", "source:keys")
    refused(lambda: tt.uniform(KEYS[:, None]), "keys (n,) of int64", "(64, 1)")
    refused(lambda: tt.uniform(KEYS, dtype=torch.bfloat16), "torch.float64, got torch.bfloat16")
    refused(lambda: tt.uniform(KEYS, stream=0.5), "a whole number for the stream, got 0.5")  # pyright: ignore[reportArgumentType]


def masked(x: Tensor, keys: Tensor) -> Tensor:
    return (x * (tt.uniform(keys, x.shape[1], dtype=torch.float64) < 0.5)).square().mean()


def drawing(coupled: bool = False, **options: object) -> tt.Step:
    return small_step({"t": tt.term(masked, "student(source)", "source:keys", coupled=coupled)}, **options)


BATCHES = [vectors(seed) for seed in range(3)]


def test_each_step_draws_again_and_a_seed_draws_the_same() -> None:
    step = drawing(optimizer=tt.optim.sgd(0.0))
    seen = [[run(step, step.init(BATCHES[0], seed), *BATCHES[:n])[1]["t"].item() for n in (1, 2)] for seed in (0, 0, 1)]
    assert seen[0] == seen[1]
    assert len({value for values in seen for value in values}) == 4


def test_compiled_and_as_members() -> None:
    step = drawing()
    wanted, logs = run(step, step.init(BATCHES[0]), *BATCHES)
    compiled = tt.compile(step, backend="aot_eager")
    assert worst(run(compiled, compiled.init(BATCHES[0]), *BATCHES), (wanted, logs)) < 1e-12
    both = tt.ensemble(step, 2)
    many, _ = run(both, both.init(BATCHES[0]), *BATCHES)
    for i in range(2):
        alone, _ = run(step, step.init(BATCHES[0], seed=i), *BATCHES)
        assert worst(alone, tt.member(many, i)) < 1e-12


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_as_a_shard(coupled: bool, size: int) -> None:
    cuts = [{d: [0, *(len(f["x"]) - size + 1 + i for i in range(size))] for d, f in b.items()} for b in BATCHES]
    assert gap(drawing(coupled), BATCHES, cuts) < 1e-12


def test_in_micro_batches() -> None:
    whole, parts = drawing(), drawing(accumulate=2)
    assert (
        worst(run(whole, whole.init(BATCHES[0]), *BATCHES)[0], run(parts, parts.init(BATCHES[0]), *BATCHES)[0]) < 1e-12
    )


def test_keys_are_of_a_domain_that_is_read() -> None:
    refused(
        lambda: small_step({"t": tt.term(masked, "student(source)", "sorce:keys")}),
        "term 't' reads 'sorce:keys'", "no term reads 'sorce'", "did you mean 'source'",
    )  # fmt: skip
    refused(lambda: small_step({"t": tt.term(masked, "student(source)", "student:keys")}), "no term reads 'student'")
