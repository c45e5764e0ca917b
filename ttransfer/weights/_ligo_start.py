"""Where growth matrices start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core._types import Params
from ttransfer.weights._groups import Group, Wanted, numbered

__all__ = ["interlace_layers", "ligo_start", "stack_layers"]


def ligo_start(
    groups: Sequence[Group],
    widths: Wanted[int],
    *,
    depths: Sequence[Tensor] = (),
    seed: int = 0,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Params:
    r"""Growth matrices for `ligo` to start from: copies of channels, as `net2wider` makes them, and layers as given.

    .. math:: B = \begin{pmatrix} I \\ S \end{pmatrix}, \qquad A = B \, \operatorname{diag}(B^\top 1)^{-1}

    Each row of S has one one. The width so grown leaves the function as it is, where `net2wider` would. The authors'
    code takes B for A: leave out the "into" matrices for that, and the function changes at the start.

    Args:
        groups: of the small network.
        widths: group, by its number or by a tensor that makes its channels -> how many channels it is to have.
        depths: (new, old) matrices, one for each of `ligo`'s `layers`, such as `stack_layers` makes.
        seed: of the choice of copies, and of the noise.
        noise: upper end of the uniform noise that is added to each matrix where the matrix is zero, in the new rows;
            rows of depths are divided by their sum then. The authors' code has 0.03.
        dtype: of the matrices.

    Returns:
        name -> matrix, as the function that `ligo` returns takes them.

    Raises:
        TransferError: for a group that there is not, a fixed one, or fewer channels than there are.

    Example:
        >>> import torch, ttransfer as tt
        >>> hidden = tt.weights.Group((tt.weights.Axis("up.weight", 0, torch.arange(2)[:, None]),))
        >>> start = tt.weights.ligo_start([hidden], {0: 4}, depths=[tt.weights.stack_layers(1, 2)])
        >>> {name: tuple(x.shape) for name, x in start.items()}
        {'width0': (4, 2), 'into0': (4, 2), 'depth0': (2, 1)}
        >>> start["into0"].sum(0)
        tensor([1., 1.])

    References:
        Wang, Peihao, Panda, Rameswar, Hennigen, Lucas Torroba, Greengard, Philip, Karlinsky, Leonid, Feris, Rogerio,
        Cox, David Daniel, Wang, Zhangyang, Kim, Yoon. Learning to Grow Pretrained Models for Efficient Transformer
        Training. 2023.
    """
    generator = torch.Generator().manual_seed(seed)
    start: Params = {}
    for number, width in numbered("ligo_start", groups, widths).items():
        group = groups[number]
        if width < group.size:
            raise TransferError(f"ligo_start: group {number} has {group.size} channels, got {width} to grow to")
        origin = torch.arange(width) % group.size
        if not group.mixed:
            origin[group.size :] = torch.randint(group.size, (width - group.size,), generator=generator)
        matrix = torch.nn.functional.one_hot(origin, group.size).to(dtype)
        start[f"width{number}"] = matrix + _noise(matrix, generator, noise, group.size)
        start[f"into{number}"] = matrix / matrix.sum(0) + _noise(matrix, generator, noise, group.size)
    for i, matrix in enumerate(depths):
        noisy = matrix.to(dtype) + _noise(matrix, generator, noise, 0)
        start[f"depth{i}"] = noisy / noisy.sum(1, keepdim=True) if noise else noisy
    return start


def _noise(matrix: Tensor, generator: torch.Generator, noise: float, first: int) -> Tensor:
    by = noise * torch.rand(matrix.shape, generator=generator) * (matrix == 0)
    return by * (torch.arange(len(matrix)) >= first)[:, None]


def stack_layers(old: int, new: int) -> Tensor:
    r"""The layers over and over: :math:`D_{lj} = [j = l \bmod L]`.

    Args:
        old: number of layers that there are.
        new: number of layers that there are to be.

    Returns:
        (new, old) matrix for `ligo`.

    Example:
        >>> stack_layers(2, 4).argmax(1).tolist()
        [0, 1, 0, 1]

    References:
        Gong, Linyuan, He, Di, Li, Zhuohan, Qin, Tao, Wang, Liwei, Liu, Tie-Yan. Efficient Training of BERT by
        Progressively Stacking. 2019.
    """
    return torch.nn.functional.one_hot(torch.arange(new) % old, old).float()


def interlace_layers(old: int, new: int) -> Tensor:
    r"""Each layer several times in a row: :math:`D_{lj} = [j = \lfloor l L / L' \rfloor]`.

    Args:
        old: number of layers L that there are.
        new: number of layers L' that there are to be.

    Returns:
        (new, old) matrix for `ligo`.

    Example:
        >>> interlace_layers(2, 4).argmax(1).tolist()
        [0, 0, 1, 1]

    References:
        Chang, Bo, Meng, Lili, Haber, Eldad, Tung, Frederick, Begert, David. Multi-level Residual Networks from
        Dynamical Systems View. 2018.
    """
    return torch.nn.functional.one_hot(torch.arange(new) * old // new, old).float()
