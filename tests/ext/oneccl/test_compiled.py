"""Functional collectives in one compiled graph."""

from __future__ import annotations

import torch

from tests.ext.oneccl._ranks import Job, run


def test_functional_collectives_in_a_full_graph() -> None:
    (outcomes,) = run([Job("_programs:compiled", 2, limit=300)], TORCHINDUCTOR_COMPILE_THREADS="1")
    inputs = [2 * (torch.arange(8.0).reshape(4, 2) + 10 * rank) for rank in range(2)]
    total, own = inputs[0] + inputs[1], [x.chunk(2) for x in inputs]
    for rank, outcome in enumerate(outcomes):
        assert not outcome.error, outcome.error
        assert outcome.status == 0, outcome.said
        wanted = [
            total,
            total / 2,
            torch.cat(inputs),
            torch.cat(inputs, 1),
            total.chunk(2)[rank],
            inputs[0],
            torch.cat([own[0][rank], own[1][rank]]),
            inputs[1],
            inputs[1] + 1,
            torch.cat(inputs),
            torch.cat(inputs) + 1,
            total.chunk(2)[rank],
            total.chunk(2)[rank] + 2,
        ]
        assert outcome.value["eager"] == [w.tolist() for w in wanted]
        assert outcome.value["compiled"] == outcome.value["eager"]
