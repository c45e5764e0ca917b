"""Contrastive representation distillation with its embeddings, its memories and its negatives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError, shown
from ttransfer._numeric import unit, wide
from ttransfer.adapters import linear
from ttransfer.core import Params, Term, term, uniform
from ttransfer.losses._crd import contrast, log_partition
from ttransfer.terms._parts import keys_of, part, under

__all__ = ["crd"]

Memory = dict[str, Tensor]


def crd(
    student: Any,
    teacher: Any,
    index: Any,
    *,
    size: int,
    negatives: Any = 16384,
    dim: int = 128,
    temperature: Any = 0.07,
    momentum: Any = 0.5,
    weight: Any = 0.8,
) -> Term:
    r"""Contrast each example's embedding with a memory of the whole data set: `tt.losses.crd` with all it needs.

    Two linear layers embed both features in `dim` dimensions. Two memories, a row for each example of the data set, are
    what the embeddings are contrasted with. After that a row that was seen becomes

    .. math:: m \leftarrow \frac{\mu m + (1 - \mu) v}{\| \mu m + (1 - \mu) v \|}

    The constants Z are taken from the first batch and then kept. The memories start uniformly in ±√(3 / dim), as the
    authors have it, and are written by the rows of all ranks of a sharded step.

    Args:
        student: the read of the student's features, (n, d).
        teacher: the read of the teacher's features, (n, d').
        index: the read of the examples' numbers in the data set, (n,) whole numbers from 0 to size - 1, such as
            "source.index". Of two rows of one number only one is remembered.
        size: how many examples the data set has.
        negatives: how many others each example is contrasted with, drawn uniformly from all others by keys, with
            replacement; or the read of their numbers, (n, K), for those who draw them with the data: the authors draw
            them from other classes.
        dim: of the embeddings.
        temperature: τ > 0.
        momentum: μ.
        weight: of the term; 0.8 is the authors'.

    Returns:
        A Term. The scores of a batch take n · size numbers where size is below 16 K, else n · (1 + K) · dim.

    Raises:
        TransferError: for a size below 2 or no negatives; when the step starts, for features that are not (n, d), or an
            index of another shape.

    Example:
        >>> import ttransfer as tt
        >>> term = tt.terms.crd("student(source).fc:in", "teacher(source).fc:in", "source.index", size=50_000)
        >>> [str(r) for r in term.reads][2:], sorted(term.hyper)
        (['source.index', 'source:keys'], ['momentum', 'temperature', 'weight'])

    Checked against:
        torchdistill's CRDLoss, three batches long, memories and Z included.

    Peers:
        torchdistill, mdistiller, RepDistiller, MMRazor and zhijian; all gather (n, 1 + K, dim) numbers of each memory.

    References:
        Yonglong Tian, Dilip Krishnan, Phillip Isola. Contrastive Representation Distillation. 2020.
    """
    drawn = isinstance(negatives, int)
    if size < 2 or dim < 1 or (drawn and negatives < 1):
        raise TransferError(
            f"crd: wanted at least 2 examples, 1 negative and 1 dimension, got size={size}, negatives={negatives}, "
            f"dim={dim}"
        )

    @claims(coupled=True, about=crd)
    def loss(
        student: Tensor,
        teacher: Tensor,
        index: Tensor,
        others: Tensor,
        *,
        params: Mapping[str, Tensor],
        state: Memory,
        temperature: float | Tensor,
        momentum: float | Tensor,
    ) -> tuple[Tensor, Memory]:
        index = index.long()
        if drawn:
            # From 1 to size - 1 on: never the example itself.
            step = (uniform(others, negatives, dtype=torch.float64) * (size - 1)).long() + 1
            others = (index[:, None] + step) % size
        rows = torch.cat([index[:, None], others.long()], 1)
        s, t = (
            unit(linear(dim).apply(part(params, side), *wide(x)))
            for side, x in (("student", student), ("teacher", teacher.detach()))
        )
        scores = [_scores(s, state["teacher"], rows) / temperature, _scores(t, state["student"], rows) / temperature]
        estimates = torch.stack([log_partition(x, size) for x in scores])
        log_z = torch.where(state["seen"] > 0, state["log_z"], estimates.to(state["log_z"].dtype))
        value = contrast(scores[0], log_z[0], size) + contrast(scores[1], log_z[1], size)
        memory = {
            "student": _remembered(state["student"], index, s.detach(), momentum),
            "teacher": _remembered(state["teacher"], index, t.detach(), momentum),
            "log_z": log_z,
            "seen": torch.ones_like(state["seen"]),
        }
        return value.to(student.dtype), memory

    def init(generator: torch.Generator, student: Tensor, teacher: Tensor, index: Tensor, others: Tensor) -> Params:
        if index.shape != student.shape[:1] or index.is_floating_point():
            raise TransferError(f"crd: wanted the numbers of the examples, (n,) integers, got index {shown(index)}")
        if not drawn and (others.ndim != 2 or others.is_floating_point()):
            raise TransferError(f"crd: wanted the numbers of the negatives, (n, K) integers, got {shown(others)}")
        sides = (("student", student), ("teacher", teacher))
        return {k: p for side, like in sides for k, p in under(side, linear(dim).init(generator, like)).items()}

    def start(generator: torch.Generator, student: Tensor, teacher: Tensor, index: Tensor, others: Tensor) -> Memory:
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        empty = torch.empty(size, dim, dtype=dtype, device=generator.device)
        bound = math.sqrt(3 / dim)
        memories = {
            side: torch.empty_like(empty).uniform_(-bound, bound, generator=generator)
            for side in ("student", "teacher")
        }
        return {**memories, "log_z": empty.new_zeros(2), "seen": empty.new_zeros((), dtype=torch.int64)}

    reads = (student, teacher, index, keys_of("crd", student) if drawn else negatives)
    return term(loss, *reads, weight=weight, params=init, state=start, temperature=temperature, momentum=momentum)


def _scores(anchor: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
    """Inner products with rows of a memory, (n, d), (N, d) and (n, 1 + K) -> (n, 1 + K)."""
    if memory.shape[0] <= 16 * rows.shape[1]:
        # All products, of which some are picked: rows picked first would be n (1 + K) d numbers.
        return (anchor @ memory.mT).gather(1, rows)
    return (memory[rows] @ anchor[:, :, None]).squeeze(2)


def _remembered(memory: Tensor, index: Tensor, new: Tensor, momentum: float | Tensor) -> Tensor:
    mixed = momentum * memory[index] + (1 - momentum) * new
    return memory.index_copy(0, index, unit(mixed).to(memory.dtype))
