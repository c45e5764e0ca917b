"""The target's style for the source's images: low frequencies change their amplitudes."""

from __future__ import annotations

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown
from ttransfer._numeric import wide
from ttransfer.align._check import in_range, want_tensors


def fourier_swap(source: Tensor, target: Tensor, *, beta: float | Tensor = 0.01, variant: str = "paper") -> Tensor:
    r"""Give each source image the amplitudes that its target image has at low frequencies.

    .. math::
        F^{-1} \bigl( [\, M_\beta \, |F(t)| + (1 - M_\beta) \, |F(s)| \,] \; e^{i \arg F(s)} \bigr), \qquad
        M_\beta = \bigl[ |u| \leq \beta h, \; |v| \leq \beta w \bigr]

    The phases stay the source's, and with them what is in the picture: its labels, of classes or of pixels, hold. F
    is the Fourier transform over height and width, u and v its frequencies in cycles per image. At β = 0 means of
    channels change places, from 0.5 on all amplitudes. Inductor leaves transforms to torch, and warns of that: in data
    loading, or in a graph of another backend, it is silent.

    Args:
        source: images (n, channels, h, w) or (..., h, w).
        target: images of the same height and width, as many as the source's or one for all.
        beta: β, from 0 to 0.5; the paper has 0.01, 0.05 and 0.09, and averages the three nets.
        variant: "paper", or "code" for the authors' NumPy code, whose frequencies go up to β times the shorter side
            in both directions.

    Returns:
        Images like the source's, not confined to its range of values.

    Raises:
        TransferError: for what are no images of one size, or another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> dark, bright = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.75)
        >>> dark[0, 0, 1, 1] = 1.0
        >>> swapped = tt.align.fourier_swap(dark, bright)
        >>> round(swapped.mean().item(), 4)
        0.75

    Checked against:
        NumPy's transform with the paper's mask, frequency by frequency.

    Peers:
        The authors' torch code takes the corners of the unshifted spectrum: frequencies from -b to b - 1, so that it
        leaves the half of the conjugate pairs at b, loses their energy, and at b = 0 changes nothing. TLlib's has b as
        a number of pixels.

    References:
        Yanchao Yang, Stefano Soatto. FDA: Fourier Domain Adaptation for Semantic Segmentation. 2020.
    """
    if variant not in ("paper", "code"):
        raise TransferError(f"fourier_swap: wanted variant 'paper' or 'code', got {variant!r}")
    want_tensors("fourier_swap", source=source, target=target)
    in_range("fourier_swap", closed=True, beta=beta)
    fitting = source.ndim >= 2 and source.ndim == target.ndim and source.shape[1:] == target.shape[1:]
    if not fitting or not source.is_floating_point() or target.shape[0] not in (1, source.shape[0]):
        raise TransferError(
            "fourier_swap: wanted floating images (n, channels, h, w) of one size, as many of the target as of the "
            f"source or one; got source {shown(source)} and target {shown(target)}"
        )
    s, t = wide(source, target)
    height, width = s.shape[-2:]
    # A spectrum of real numbers is told by its half. As pairs, since compilers do not generate code for complex ones.
    s, t = (torch.view_as_real(torch.fft.rfft2(x)) for x in (s, t))
    sides = (height, width) if variant == "paper" else (min(height, width), min(height, width))
    swapped = torch.where(_low(s, height, width, beta, sides)[..., None], _length(t) * _phase(s), s)
    out = torch.fft.irfft2(torch.view_as_complex(swapped.contiguous()), s=(height, width))
    return out.to(source.dtype)


def _low(like: Tensor, height: int, width: int, beta: float | Tensor, sides: tuple[int, int]) -> Tensor:
    """Which frequencies are low: (height, width // 2 + 1)."""
    # In float64, where there is one: 0.1 of 30 pixels are 3.
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    u = torch.arange(height, device=like.device, dtype=dtype)
    v = torch.arange(width // 2 + 1, device=like.device, dtype=dtype)
    u = torch.minimum(u, height - u)
    return (u <= beta * sides[0])[:, None] & (v <= beta * sides[1])


def _length(x: Tensor) -> Tensor:
    squares = x.square().sum(-1, keepdim=True)
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)


def _phase(x: Tensor) -> Tensor:
    """Numbers of length 1; where there is nothing, the phase 0."""
    length = _length(x)
    nothing = torch.tensor([1.0, 0.0], dtype=x.dtype, device=x.device)
    return torch.where(length > 0, x / torch.where(length > 0, length, 1), nothing)
