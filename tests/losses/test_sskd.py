"""`sskd` and `sskd_transformed` against slow loops and torchdistill."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value

from tests.support import peers
from ttransfer._errors import TransferError
from ttransfer.losses import kd
from ttransfer.losses._sskd import sskd, sskd_transformed
from ttransfer.testing import loss_trial, parametrize_with_checks


def cosine(a: Tensor, b: Tensor) -> Tensor:
    if not (a.any() and b.any()):
        return 0 * (a @ b)
    return a @ b / ((a @ a).sqrt() * (b @ b).sqrt())


def chosen(scores: list[list[float]], right: list[int], keep: float) -> list[int]:
    ranks = [sum(other > row[r] for other in row) for row, r in zip(scores, right, strict=True)]
    wrong = sum(rank > 0 for rank in ranks)
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], i))
    return order[: len(ranks) - wrong + math.floor(wrong * keep)]


def divergence(s: Tensor, t: Tensor, rows: list[int], temperature: float) -> Tensor:
    total = 0 * s.sum()
    for i in rows:
        log_p, log_q = (t[i] / temperature).log_softmax(0), (s[i] / temperature).log_softmax(0)
        for p, q in zip(log_p, log_q, strict=True):
            total = total + temperature**2 * p.exp() * (p - q)
    return total / max(len(rows), 1)


def slow(student: Tensor, teacher: Tensor, temperature: float = 0.5, keep: float = 0.75) -> Tensor:
    tables = []
    for x in (student, teacher.detach()):
        originals, versions = range(0, len(x), 4), [i for i in range(len(x)) if i % 4]
        tables.append(torch.stack([torch.stack([cosine(x[i], x[j]) for j in originals]) for i in versions]))
    # Rounding tells cosines apart that are equal.
    scores = [[round(value, 9) for value in row] for row in tables[1].tolist()]
    rows = chosen(scores, [i // 3 for i in range(len(scores))], keep)
    return divergence(tables[0], tables[1], rows, temperature)


def slow_transformed(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, keep: float = 1.0
) -> Tensor:
    rows = chosen(teacher.tolist(), labels.tolist(), keep)
    return divergence(student, teacher.detach(), rows, temperature)


def embeddings(rows: int = 8, width: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return student, teacher


EIGHT = tuple(x.float() for x in embeddings())
TRIALS = (
    loss_trial(
        functools.partial(sskd, keep=1.0), EIGHT, reference=functools.partial(slow, keep=1.0), name="sskd of all"
    ),
    loss_trial(sskd, EIGHT),
    loss_trial(
        sskd_transformed,
        reference=slow_transformed,
        expected_failed_checks={"every-argument": "where all rows are kept, as in the paper, labels choose none"},
    ),
    loss_trial(
        functools.partial(sskd_transformed, keep=0.5, temperature=1.0),
        reference=functools.partial(slow_transformed, keep=0.5, temperature=1.0),
        name="sskd_transformed of half",
        examples=8,
    ),
)


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_slow_loop_agrees(keep: float, seed: int) -> None:
    student, teacher = embeddings(24, 5, seed)
    got = grad_and_value(lambda s: sskd(s, teacher, keep=keep))(student)
    student = student.clone().requires_grad_()
    expected = slow(student, teacher, keep=keep)
    torch.testing.assert_close(got[1], expected.detach(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(got[0], torch.autograd.grad(expected, student)[0], rtol=1e-9, atol=1e-14)


def torchdistill(part: int, keep: float) -> Callable[..., Tensor]:
    paths = {f"{side}_{end}_module_path": end for side in ("student", "teacher") for end in ("linear", "ss")}
    weights = [float(i == part) for i in range(4)]
    peer = peers.theirs(
        "torchdistill.losses.mid_level",
        "SSKDLoss",
        **paths,
        kl_temp=4.0,
        ss_temp=0.5,
        tf_temp=4.0,
        ss_ratio=keep,
        tf_ratio=keep,
        loss_weights=weights,
    )

    def call(logits: tuple[Tensor, Tensor], labels: Tensor, features: tuple[Tensor, Tensor]) -> Tensor:
        sides = [{"linear": {"output": z}, "ss": {"output": x}} for z, x in zip(logits, features, strict=True)]
        return peer(*sides, labels)

    return call


@pytest.mark.parametrize("keep", [0.5, 0.75, 1.0])
def test_torchdistill_agrees(keep: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Theirs leaves open which of equal ranks come first.
    monkeypatch.setattr(torch, "argsort", functools.partial(torch.argsort, stable=True))
    generator = torch.Generator().manual_seed(0)
    f, g = torch.randn(2, 24, 5, dtype=torch.float64, generator=generator)
    s, t = torch.randn(2, 24, 4, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (6,), generator=generator)
    got = grad_and_value(lambda f: sskd(f, g, keep=keep))(f)
    expected = grad_and_value(lambda f: torchdistill(2, keep)((s, t), labels, (f, g)))(f)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)

    versions = torch.arange(24) % 4 != 0

    def ours(s: Tensor) -> Tensor:
        return sskd_transformed(s[versions], t[versions], labels.repeat_interleave(3), keep=keep)

    expected = grad_and_value(lambda s: torchdistill(3, keep)((s, t), labels, (f, g)))(s)
    torch.testing.assert_close(grad_and_value(ours)(s), expected, rtol=1e-9, atol=1e-12)


def test_all_kept_is_kd() -> None:
    student, teacher = embeddings(9, 4)
    labels = torch.arange(9) % 4
    torch.testing.assert_close(sskd_transformed(student, teacher, labels), kd(student, teacher), rtol=1e-12, atol=0)


def test_nothing_kept_is_0() -> None:
    teacher = torch.tensor([[0.0, 1.0]] * 3)
    got = grad_and_value(functools.partial(sskd_transformed, keep=0.0))(
        torch.randn(3, 2), teacher, torch.zeros(3).long()
    )
    assert got[1].item() == 0
    assert got[0].count_nonzero() == 0


def test_errors() -> None:
    with pytest.raises(TransferError, match=r"sskd: wanted embeddings \(4 n, d\).*student \(6, 3\)"):
        sskd(torch.zeros(6, 3), torch.zeros(8, 3))
    with pytest.raises(TransferError, match=r"sskd: wanted embeddings of the same rows"):
        sskd(torch.zeros(4, 3), torch.zeros(8, 3))
    with pytest.raises(TransferError, match=r"sskd_transformed: wanted logits \(n, classes\)"):
        sskd_transformed(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2), torch.zeros(4, 2).long())
