"""Every ready term that couples rows, and some that do not, sharded: equal to one process that has all rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ttransfer as tt
from tests.support.nets import mlp, vectors
from tests.support.sharded import gap
from tests.support.steps import small_step

FEATURES = "student(source).fc:in", "student(target).fc:in"
LOGITS = "student(source)", "student(target)"
SOURCE, TARGET = ("student(source)[0]", "student(source)[1]"), ("student(target)[0]", "student(target)[1]")
CRITIC, FN = tt.adapters.mlp(4), "critic:fn"


class Two(nn.Module):
    """Two classifiers of one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x).relu()
        return self.one(x), self.two(x)


def two() -> dict[str, tt.Functional]:
    torch.manual_seed(0)
    return {"student": tt.functional(Two().double())}


def judged(width: int) -> dict[str, tt.Functional]:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return {"student": tt.functional(mlp(1)), "critic": tt.functional(critic, mode="train")}


TERMS: dict[str, Callable[[], tt.Term]] = {
    "cdan": lambda: tt.terms.cdan(*FEATURES, *LOGITS, critic=CRITIC),
    "cdan, random": lambda: tt.terms.cdan(*FEATURES, *LOGITS, critic=CRITIC, random=8),
    "cdan_e": lambda: tt.terms.cdan_e(*FEATURES, *LOGITS, critic=CRITIC),
    "ctkd": lambda: tt.terms.ctkd(LOGITS[0], "teacher(source)"),
    "dann": lambda: tt.terms.dann(*FEATURES, critic=CRITIC),
    "gvb": lambda: tt.terms.gvb(
        *LOGITS, *(tt.read(x) | tt.adapters.linear(3) for x in FEATURES), critic=CRITIC, critic_bridge=CRITIC
    ),
    "gvb_e": lambda: tt.terms.gvb_e(
        *LOGITS, *(tt.read(x) | tt.adapters.linear(3) for x in FEATURES), critic=CRITIC, critic_bridge=CRITIC
    ),
    "iwan": lambda: tt.terms.iwan(*FEATURES, first=CRITIC, critic=CRITIC),
    "mdd": lambda: tt.terms.mdd(*FEATURES, *LOGITS, adversary=tt.adapters.mlp(4, out=3)),
    "pada": lambda: tt.terms.pada(*FEATURES, *LOGITS, "source.y", critic=CRITIC),
    "vid": lambda: tt.terms.vid(FEATURES[0], "teacher(source).fc:in", mean=tt.adapters.linear(6)),
    "wdgrl": lambda: tt.terms.wdgrl(*FEATURES, critic=CRITIC),
}
PHASES: dict[str, tuple[Callable[[], dict[str, tt.Functional]], dict[str, dict[str, tt.Term]]]] = {
    "adda": (lambda: judged(6), tt.terms.adda(*FEATURES, FN)),
    "domain_confusion": (lambda: judged(6), tt.terms.domain_confusion(*FEATURES, FN)),
    "mcd": (two, tt.terms.mcd(SOURCE, TARGET, "source.y")),
    "symnets": (two, tt.terms.symnets(SOURCE, TARGET, "source.y")),
    "wdgrl_phases": (lambda: judged(6), tt.terms.wdgrl_phases(*FEATURES, FN)),
}
BATCHES = [vectors(seed) for seed in range(2)]
CUTS = [{d: [0, len(f["x"]) - 1, len(f["x"])] for d, f in batch.items()} for batch in BATCHES]


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_one_gradient(name: str) -> None:
    nets = {"student": tt.functional(mlp(1)), "teacher": tt.functional(mlp(2))}
    assert gap(small_step({"t": TERMS[name]()}, nets), BATCHES, CUTS) < 1e-11


@pytest.mark.parametrize(("name", "phase"), [(name, phase) for name, (_, phases) in PHASES.items() for phase in phases])
def test_a_phase_of_a_game(name: str, phase: str) -> None:
    make, phases = PHASES[name]
    nets = make()
    assert gap(small_step(phases[phase], nets, trainable=tuple(nets)), BATCHES, CUTS) < 1e-11


def test_no_game_is_left_out() -> None:
    """Those that want images or other batches are sharded in their own tests, `advent` is these losses of maps."""
    elsewhere = {"advent", "afd", "atdoc", "atdoc_nc", "crd", "fishr", "flexmatch", "groupdro", "mgd", "mgd_channels"}
    elsewhere |= {"multilevel", "ofd", "osbp", "reviewkd", "sliced_wasserstein", "vat"}
    own = {name.partition(",")[0] for name in TERMS} | set(PHASES) | elsewhere
    assert own == set(tt.terms.__all__)
