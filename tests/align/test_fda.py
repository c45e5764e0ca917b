"""`fourier_swap` against NumPy, frequency by frequency."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.steps import refused
from ttransfer.align._fda import fourier_swap

SIZES = [(8, 8), (7, 10), (5, 9), (12, 6)]


def images(n: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, *size, generator=generator, dtype=torch.float64)


def slow(source: Tensor, target: Tensor, beta: float, code: bool = False) -> np.ndarray:
    s, t = (np.fft.fft2(x.numpy()) for x in (source, target))
    out = s.copy()
    height, width = s.shape[-2:]
    sides = (min(height, width),) * 2 if code else (height, width)
    for u in range(height):
        for v in range(width):
            low = min(u, height - u) <= beta * sides[0] and min(v, width - v) <= beta * sides[1]
            if low:
                out[..., u, v] = np.abs(t[..., u, v]) * np.exp(1j * np.angle(s[..., u, v]))
    back = np.fft.ifft2(out)
    assert np.abs(back.imag).max() < 1e-12  # both halves of each pair were taken
    return back.real


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_against_numpy(size: tuple[int, int], beta: float, variant: str) -> None:
    source, target = images(3, size), images(3, size, 1)
    wanted = slow(source, target, beta, variant == "code")
    found = fourier_swap(source, target, beta=beta, variant=variant)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-12)


def authors_torch(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """The corners that the authors' torch code takes, written from what it does."""
    s, t = torch.fft.fft2(source), torch.fft.fft2(target)
    height, width = s.shape[-2:]
    b = int(min(height, width) * beta)
    amplitudes = s.abs()
    for rows in (slice(0, b), slice(height - b, height)):
        for columns in (slice(0, b), slice(width - b, width)):
            amplitudes[..., rows, columns] = t.abs()[..., rows, columns]
    return torch.fft.ifft2(torch.polar(amplitudes, s.angle())).real


def test_the_authors_torch_code_leaves_half_of_the_pairs() -> None:
    source, target = images(3, (16, 16)), 3 * images(3, (16, 16), 1)
    ours = fourier_swap(source, target, beta=0.0, variant="code")
    assert (ours - source).abs().mean() > 0.5  # the mean of each channel is the target's
    torch.testing.assert_close(authors_torch(source, target, 0.0), source)
    ours = fourier_swap(source, target, beta=0.25, variant="code")
    theirs = authors_torch(source, target, 0.25)
    assert (ours - theirs).abs().mean() / (ours - source).abs().mean() > 0.05


def test_modes_and_beta_as_a_tensor() -> None:
    source, target = images(2, (6, 7)), images(2, (6, 7), 1)
    wanted = fourier_swap(source, target, beta=0.2)
    torch.compiler.reset()
    fast = torch.compile(fourier_swap, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(source, target, beta=0.2), wanted)
    betas = torch.tensor([0.0, 0.2], dtype=torch.float64)
    many = torch.vmap(lambda s, b: fourier_swap(s, target, beta=b))(torch.stack([source, source]), betas)
    torch.testing.assert_close(many[0], fourier_swap(source, target, beta=0.0))
    torch.testing.assert_close(many[1], wanted)


def test_one_target_for_all_and_few_bits() -> None:
    source, target = images(3, (6, 6)), images(1, (6, 6), 1)
    torch.testing.assert_close(fourier_swap(source, target), fourier_swap(source, target.expand(3, -1, -1, -1)))
    few = fourier_swap(source.bfloat16(), target.bfloat16(), beta=0.2)
    assert few.dtype == torch.bfloat16
    torch.testing.assert_close(few.double(), fourier_swap(source, target, beta=0.2), rtol=0, atol=0.03)


def test_empty_images_are_finite() -> None:
    nothing = torch.zeros(1, 1, 4, 4)
    slopes, value = torch.func.grad_and_value(lambda s: fourier_swap(s, nothing, beta=0.5).square().sum())(nothing)
    assert value == 0
    assert slopes.isfinite().all()
    torch.testing.assert_close(fourier_swap(nothing, nothing + 1), nothing + 1)


def test_what_is_refused() -> None:
    s = images(3, (4, 4)).float()
    refused(lambda: fourier_swap(s, s[:2]), "fourier_swap: wanted floating images", "as many of the target")
    refused(lambda: fourier_swap(s, s[..., :3]), "of one size", "source (3, 2, 4, 4)")
    refused(lambda: fourier_swap(s, s, variant="mine"), "got 'mine'")
