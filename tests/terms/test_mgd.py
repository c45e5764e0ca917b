"""The generator belongs to the term; the mask is drawn by keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from tests.support.compare import worst
from tests.support.games import obeys
from tests.support.nets import conv, images
from tests.support.peers import theirs
from tests.support.sharded import gap
from tests.support.steps import refused, run, small_step

READS = ("student(source).conv", "teacher(source).conv")
KEYS = torch.arange(4) * 7919
CONV: Callable[..., Tensor] = nn.functional.conv2d
both = pytest.mark.parametrize("make", [tt.terms.mgd, tt.terms.mgd_channels])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(n: int, c: int, seed: int) -> Tensor:
    return torch.randn(n, c, 5, 5, generator=seeded(seed), dtype=torch.float64)


@both
@pytest.mark.parametrize("width", [3, 6])
def test_beside_modelopt_with_the_same_mask(make: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = maps(4, 3, 0), maps(4, width, 1)
    term = make(*READS, hide=0.4)
    own, memory = term.init(seeded(), [student, teacher, KEYS])
    other = theirs("modelopt.torch.distill.losses", "MGDLoss", 3, width, lambda_mgd=0.4).double()
    named = {name.replace("align.0.", "align.").replace("generator.", "generation."): p for name, p in own.items()}
    other.load_state_dict(named)
    shape = (1, 5, 5) if make is tt.terms.mgd else (width, 1, 1)
    monkeypatch.setattr(torch, "rand", lambda *size, **options: 1 - tt.uniform(KEYS, *shape))
    numbers = {"hide": torch.tensor(0.4)}

    def ours(own: Any, s: Tensor) -> Tensor:
        return term.apply(own, memory, numbers, torch.tensor(0), [s, teacher, KEYS])[0]

    def wanted(own: Any, s: Tensor) -> Tensor:
        named = {name.replace("align.0.", "align.").replace("generator.", "generation."): p for name, p in own.items()}
        value = torch.func.functional_call(other, named, (s, teacher))
        return value * teacher[0].numel()  # modelopt takes the mean over entries

    for loss in (ours, wanted):
        assert loss(own, student).item() > 0
    mine, peers = (torch.func.grad_and_value(f, argnums=(0, 1))(own, student) for f in (ours, wanted))
    torch.testing.assert_close(mine, peers, rtol=1e-9, atol=1e-9)


@both
def test_it_hides_as_much_as_it_says_in_every_mode(make: Any) -> None:
    nets = {"student": tt.functional(conv(1)), "teacher": tt.functional(conv(2))}
    batches = [images(seed) for seed in range(3)]
    step = small_step({"t": make(*READS, hide=0.5, weight=1e-2)}, nets, buffers={"student": "eval"})
    wanted = run(step, step.init(batches[0]), *batches)
    compiled = tt.compile(step, backend="aot_eager")
    assert worst(run(compiled, compiled.init(batches[0]), *batches), wanted) < 1e-11
    assert gap(step, batches) < 1e-11
    seen = [step(step.init(batches[0], seed), batches[0])[1]["t"].item() for seed in (0, 1)]
    assert seen[0] != seen[1]


def test_positions_and_channels() -> None:
    x = torch.ones(4, 8, 5, 5)
    for make, axes in ((tt.terms.mgd, 1), (tt.terms.mgd_channels, (2, 3))):
        taken: list[Tensor] = []
        term = make(*READS, hide=0.5)
        own, _ = term.init(seeded(), [x, x, KEYS])

        def first_layer(x: Tensor, *args: Any, taken: list[Tensor] = taken, **more: Any) -> Tensor:
            taken.append(x)
            return CONV(x, *args, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.functional, "conv2d", first_layer)
            term.apply(own, {}, {"hide": torch.tensor(0.5)}, torch.tensor(0), [x, x, KEYS])
        mask = taken[0]
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(mask.amax(axes), mask.amin(axes))


@both
def test_it_obeys_the_laws_of_terms(make: Any) -> None:
    obeys(make(*READS), (torch.randn(4, 3, 4, 4), torch.randn(4, 5, 4, 4), KEYS), {})


def test_what_is_refused() -> None:
    refused(lambda: tt.terms.mgd(*READS, hide=1.0), "mgd: wanted hide from 0 to below 1, got 1.0")
    refused(lambda: tt.terms.mgd("student:params", READS[1]), "mgd: wanted a read of a domain's rows")
