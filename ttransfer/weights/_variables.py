"""Variables that are found to be the same, many at a time."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CONSTANT", "POSITION", "Variables", "compact", "varying"]

CONSTANT = -1  # label of a number that is the same wherever it stands
POSITION = 0  # label of a number that belongs where it stands: the channels of inputs and of constants


class Variables:
    """A union-find over int64 labels; a class is called by its lowest label."""

    def __init__(self) -> None:
        self._root = torch.zeros(1, dtype=torch.int64)

    def fresh(self, *shape: int) -> Tensor:
        """Return labels that nothing has."""
        start, count = len(self._root), torch.Size(shape).numel()
        new = torch.arange(start, start + count)
        self._root = torch.cat([self._root, new])
        return new.reshape(shape)

    def of(self, labels: Tensor) -> Tensor:
        """The labels, each as its class is called."""
        return torch.where(labels >= 0, self._root[labels.clamp_min(0)], labels)

    def same(self, a: Tensor, b: Tensor) -> None:
        """Make the labels that stand beside each other the same; constants are left alone."""
        a, b = torch.broadcast_tensors(self.of(a), self.of(b))
        apart = (a != b) & (a >= 0) & (b >= 0)
        pairs = torch.stack([a[apart], b[apart]]).unique(dim=1)
        if not pairs.numel():
            return
        root = self._root
        while True:
            here, there = root[pairs[0]], root[pairs[1]]
            low, high = torch.minimum(here, there), torch.maximum(here, there)
            new = root.scatter_reduce(0, high, low, "amin")
            while not torch.equal(new, nearer := new[new]):
                new = nearer
            if torch.equal(new, root):
                break
            root = new
        self._root = root

    def pin(self, labels: Tensor) -> None:
        """Bind labels to where they stand."""
        self.same(labels, torch.tensor(POSITION))


def compact(labels: Tensor) -> Tensor:
    """Labels with size 1 in each axis along which they are the same."""
    for axis, size in enumerate(labels.shape):
        if size > 1:
            first = labels.narrow(axis, 0, 1)
            if labels.stride(axis) == 0 or bool((labels == first).all()):
                labels = first
    return labels


def varying(labels: Tensor) -> tuple[int, ...]:
    """The axes along which compact labels differ."""
    return tuple(axis for axis, size in enumerate(labels.shape) if size > 1)
