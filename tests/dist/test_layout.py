"""Which terms see the rows of all ranks, and where their reads are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.steps import small_step
from ttransfer.core._spec import plan_of
from ttransfer.dist._layout import Layout, layout_of


def found(term: tt.Term) -> Layout:
    step = small_step({"term": term}, {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))})
    batch = vectors(0)
    return layout_of(step.spec.expression, plan_of(step.spec.expression), step.init(batch), batch)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def picky(x: Tensor) -> Tensor:
    assert x.shape[0] == 6
    return x


def keeping(x: Tensor, *, state: Any) -> tuple[Tensor, Any]:
    return x.mean(), state


SOURCE, TARGET, LABELS = "student(source)", "student(target)", "source.y"


@pytest.mark.parametrize(
    ("term", "why"),
    [
        (tt.term(F.cross_entropy, SOURCE, LABELS), ""),
        (tt.term(F.mse_loss, SOURCE, "teacher(source)"), ""),
        (tt.term(lambda x: x.mean(), SOURCE), "couples rows, or does not say"),
        (tt.term(lambda x: x.mean(), SOURCE, coupled=False), ""),
        (tt.term(lambda p: p["fc.bias"].sum(), "student:params"), ""),
        (tt.term(keeping, SOURCE, coupled=False, state=lambda generator, x: {"n": torch.zeros(())}), "has a state"),
        (tt.term(lambda a, b: (a.mean() - b.mean()) ** 2, SOURCE, TARGET, coupled=False), "two domains"),
        (tt.term(F.mse_loss, tt.read(SOURCE) | centred, "teacher(source)"), "mixes rows"),
        (tt.term(F.mse_loss, tt.read(SOURCE) | picky, "teacher(source)"), "mixes rows"),
        (tt.term(F.mse_loss, tt.read(SOURCE) | torch.tanh | tt.detach, SOURCE + "#2"), ""),
        (tt.term(F.mse_loss, tt.read(SOURCE) | tt.adapters.linear(3) | tt.reverse(0.5), "teacher(source)"), ""),
    ],
    ids=[
        "labels",
        "rows",
        "undeclared",
        "declared",
        "parameters",
        "state",
        "domains",
        "mean",
        "picky",
        "apart",
        "adapter",
    ],
)
def test_a_term_is_gathered_where_it_must_be(term: tt.Term, why: str) -> None:
    gathered = found(term).gathered
    assert why in gathered["term"] if why else not gathered


def test_a_read_is_cut_before_the_stage_that_mixes_rows() -> None:
    read = tt.read(SOURCE) | tt.adapters.linear(4) | centred | torch.tanh
    layout = found(tt.term(tt.align.mmd, read, tt.read(TARGET) | tt.adapters.linear(4)))
    assert layout.cuts["term"] == (1, 1)


def test_the_form_of_readings_tells_rows_from_what_is_none() -> None:
    term = tt.term(lambda a, p, y: a.mean() + p["fc.bias"].sum() + y.sum(), SOURCE, "student:params", LABELS)
    layout = found(term)
    assert layout.forms["term"].leaves == (True, None, False)
    assert layout.forms["term"].reads == (0, 1, 2)
    assert layout.direct == {"student"}
