"""The table of all laws in docs/laws.md, made from the code; run as a script it writes it.

Who claims a law is found by asking it: every law's claim is put to parts of several kinds, with and without each tag.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import nn

import ttransfer as tt
from ttransfer.testing import Law, Tags, Trial, loss_trial
from ttransfer.testing._adapters import adapter_trial
from ttransfer.testing._optimizers import optimizer_trial
from ttransfer.testing._reparams import reparam_trial
from ttransfer.testing._steps import step_trial
from ttransfer.testing._terms import term_trial
from ttransfer.testing._weight_maps import weight_map_trial

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "laws.md"
BEGIN, END = "<!-- laws: python -m tests.support.laws_table -->\n", "<!-- /laws -->\n"


class Kind(NamedTuple):
    """A kind of part.

    Attributes:
        one: it, in words.
        several: of it.
        plain: a part in words, "" if there is but one -> a trial without claims.
        claimed: a claim, as it is written -> trials of the same parts with that claim.
    """

    one: str
    several: str
    plain: Mapping[str, Trial]
    claimed: Mapping[str, Mapping[str, Trial]]


def compared(student: Any, teacher: Any) -> Any:
    return (student - teacher.detach()).square().mean()


def aligned(source: Any, target: Any) -> Any:
    return (source.mean(0) - target.mean(0)).square().sum()


def supervised(logits: Any, labels: Any) -> Any:
    return nn.functional.cross_entropy(logits, labels)


def of_features(features: Any) -> Any:
    return features.square().mean()


LOSSES = {
    "arguments `student, teacher`": compared,
    "arguments `source, target`": aligned,
    "arguments `logits, labels`": supervised,
    "argument `features`": of_features,
}


def losses() -> Kind:
    values: dict[str, Any] = {"min_batch": 2, "not_stationary": "why", "ignore_index": -100, "coupled": False}
    claimed: dict[str, dict[str, Trial]] = {}
    for tag, hint in get_type_hints(Tags).items():
        if tag in ("count", "detaches"):
            continue  # these say how, not whether
        value = values.get(tag, True)
        assert tag in values or "bool" in str(hint), tag
        written = f"tag `{tag}`" if value is True else f"tag `{tag}={value}`"
        written = written if tag not in ("not_stationary", "min_batch", "ignore_index") else f"tag `{tag}`"
        claimed[written] = {}
        for name, fn in LOSSES.items():
            with contextlib.suppress(tt.TransferError):  # a claim that says nothing of such arguments
                claimed[written][name] = loss_trial(fn, tags=Tags(**{tag: value}))
    claimed["`reference=`"] = {name: loss_trial(fn, reference=fn) for name, fn in LOSSES.items()}
    return Kind("loss", "Losses", {name: loss_trial(fn) for name, fn in LOSSES.items()}, claimed)


def terms() -> Kind:
    readings = (torch.randn(4, 3), torch.randn(4, 3))
    critic = tt.terms.dann("a(x)", "a(y)", critic=tt.adapters.linear(1))
    plain = {
        "such as `kd`": term_trial(tt.term(tt.losses.kd, "a(x)", "b(x)", temperature=2.0), readings),
        "such as `dann`": term_trial(critic, readings),
    }
    return Kind("term", "Terms", plain, {})


def adapters() -> Kind:
    adapter, like = tt.adapters.linear(3), torch.empty(4, 2)
    claimed = {
        "`identity=True`": {"": adapter_trial(adapter, like, identity=True)},
        "`rows_apart=False`": {"": adapter_trial(adapter, like, rows_apart=False)},
        "`reference=`": {"": adapter_trial(adapter, like, reference=adapter.apply)},
    }
    return Kind("adapter", "Adapters", {"": adapter_trial(adapter, like)}, claimed)


def reparams() -> Kind:
    reparam = tt.adapters.lora(".*weight", rank=2)
    params = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
    claimed = {
        "`identity=None`": {"": reparam_trial(reparam, params, identity=None)},
        "`reference=`": {"": reparam_trial(reparam, params, reference=reparam.apply)},
    }
    return Kind("reparam", "Reparams", {"": reparam_trial(reparam, params)}, claimed)


def weight_maps() -> Kind:
    map = tt.weights.rename({"a": "b"})
    src, like = {"a": torch.randn(2, 3)}, {"b": torch.randn(2, 3)}
    claimed = {
        "`verbatim=None`": {"": weight_map_trial(map, src, like, verbatim=None)},
        "`reference=`": {"": weight_map_trial(map, src, like, reference=map.apply)},
    }
    return Kind("weight map", "Weight maps", {"": weight_map_trial(map, src, like)}, claimed)


def optimizers() -> Kind:
    plain = {
        "such as `sgd`": optimizer_trial(tt.optim.sgd(0.1, momentum=0.9)),
        "such as `adam`": optimizer_trial(tt.optim.adam(0.1)),
        "such as `adamw`": optimizer_trial(tt.optim.adamw(0.1)),
        "such as `clip_by_norm`": optimizer_trial(tt.optim.clip_by_norm(1.0)),
    }
    same = optimizer_trial(tt.optim.sgd(0.1, momentum=0.9), reference=lambda params: torch.optim.SGD(params, 0.1, 0.9))
    reference = {"such as `sgd`": same}
    return Kind("optimizer", "Optimizers", plain, {"`reference=`": reference})


def steps() -> Kind:
    nets = {"a": tt.functional(nn.Linear(3, 2))}
    task = tt.term(nn.functional.cross_entropy, "a(x)", "x.y")
    batch = {"x": {"x": torch.randn(4, 3), "y": torch.tensor([0, 1, 1, 0])}}
    return Kind(
        "step", "Steps", {"": step_trial(tt.step(nets, tt.optim.sgd(0.1), trainable=("a",), task=task), batch)}, {}
    )


KINDS = (losses, terms, adapters, reparams, weight_maps, optimizers, steps)


def who(kind: Kind, law: Law) -> str:
    """Who claims a law, in words."""
    asked = {name: law.claim(trial.subject) for name, trial in kind.plain.items()}
    by_kind = [name for name, claim in asked.items() if claim]
    words = []
    if len(by_kind) == len(asked):
        words.append(f"every {kind.one}")
    elif by_kind:
        first, *others = by_kind
        lead = first.split("`")[0]
        words.append(", ".join([first, *(name.removeprefix(lead) for name in others)]))
    for claim, trials in kind.claimed.items():
        after = {name: law.claim(trial.subject) for name, trial in trials.items()}
        if any(after[name] and not asked.get(name) for name in after):
            words.append(claim)
    text = "; ".join(words) or ("nobody" if None in asked.values() else "parts that have what it speaks of")
    away = [
        claim
        for claim, trials in kind.claimed.items()
        if any(asked.get(name) for name in trials)
        and not any(law.claim(trial.subject) for name, trial in trials.items() if asked.get(name))
    ]
    return text + (f", unless {' or '.join(away)}" if away else "")


def table(kind: Kind) -> Iterator[str]:
    laws = {law.name: law for trial in kind.plain.values() for law in trial.laws}
    yield f"### {kind.several}\n\n"
    if kind.one == "term":
        of_losses = {law.name for trial in losses().plain.values() for law in trial.laws}
        laws = {name: law for name, law in laws.items() if name not in of_losses}
        yield "A term obeys the laws of losses, as a loss of its readings, and these:\n\n"
    yield "| law | says | claimed by |\n|---|---|---|\n"
    for law in laws.values():
        yield f"| `{law.name}` | {law.says} | {who(kind, law)} |\n"


def tables() -> str:
    """All tables."""
    return "\n" + "\n".join("".join(table(kind())) for kind in KINDS) + "\n"


def with_tables(page: str) -> str:
    """The page with the tables as they should be."""
    begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return page[:begin] + tables() + page[end:]


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
