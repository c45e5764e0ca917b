"""Laws on what any step is: a pure function of state and batch that changes what it should and nothing else."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer.core._types import State, Tree
from ttransfer.run._checkpoint import load, save
from ttransfer.testing._law import Broken, law
from ttransfer.testing.laws._optimizer_tools import kinds
from ttransfer.testing.laws._step_tools import StepSubject, agree, copied, trying

__all__ = ["LAWS"]


def _drawing(what: str, before: Tensor) -> None:
    if not torch.equal(before, torch.get_rng_state()):
        raise Broken(f"{what} draws from the global generator")


@law()
def first_state(subject: StepSubject) -> None:
    """The first state follows from the seed alone, and each of its tensors is nobody else's.

    Broken by: an initialisation that draws without its generator, or that keeps a module's own tensors.
    """
    drawn = torch.get_rng_state()
    one = subject.first()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        other = subject.start()
    agree("two first states of one seed", other, one)
    _drawing("init", drawn)
    raw, again = (tree.paths(subject.step.init(subject.batch, subject.seed)) for _ in range(2))
    owners: dict[int, str] = {}
    for path, x in raw.items():
        where = x.untyped_storage().data_ptr()
        if x.numel() and where in owners:
            raise Broken(f"{path} and {owners[where]} of the first state share their storage")
        owners[where] = path
    for path, x in again.items():
        if x.numel() and x.untyped_storage().data_ptr() in owners:
            raise Broken(f"two first states share the storage of {path}")


@law()
def deterministic(subject: StepSubject) -> None:
    """A step is a function of state and batch: whatever was run between, the same step gives the same bits.

    Broken by: dropout or noise from the global generator, a counter or a queue kept outside the state.
    """
    drawn = torch.get_rng_state()
    once = subject.eager()
    again = trying("a step", lambda: subject.run(subject.step, subject.first()))
    _drawing("a step", drawn)
    for t, (a, b) in enumerate(zip(again, once, strict=True)):
        agree(f"step {t + 1} of two like runs", a, b)


@law()
def structure(subject: StepSubject) -> None:
    """A step keeps its state's names, shapes and dtypes, and logs numbers, the same ones each time.

    Broken by: a term's state that grows or changes its dtype, an optimizer's likewise, a log that is no number. Such a
    step is compiled again and cannot be donated or resumed.
    """
    before, first = kinds(subject.first()), subject.eager()[0][1].keys()
    for t, (state, logs) in enumerate(subject.eager()):
        after = kinds(state)
        for path in before.keys() | after.keys():
            old, new = before.get(path, "not there"), after.get(path, "not there")
            if old != new:
                raise Broken(f"after step {t + 1} the state has {path} {new}, wanted {old}")
        if logs.keys() != first:
            raise Broken(f"step {t + 1} logs other names: {sorted(logs.keys() ^ first)}")
        for name, x in logs.items():
            if x.ndim != subject.depth:
                raise Broken(f"the log {name} has shape {tuple(x.shape)}, wanted one number for each run")


@law()
def inputs_untouched(subject: StepSubject) -> None:
    """A step leaves the state and the batch that it is given as they were.

    Broken by: an operation in place in a loss, an optimizer, or a net on its input or its buffers.
    """
    state, batch = subject.first(), copied(subject.batch)
    given = copied((state, batch))
    trying("a step", lambda: subject.step(*given))
    for what, before, after in (("state", state, given[0]), ("batch", batch, given[1])):
        agree(f"before and after a step the {what} that was given", after, before)


@law()
def frozen_stays(subject: StepSubject) -> None:
    """What is frozen stays bit for bit, hyper-parameters and the seed too, and the count goes up by one.

    Broken by: an update of all parameters, weight decay on frozen ones, a net that is trained under two names.
    """
    start = subject.first()
    for t, (state, _) in enumerate(subject.eager()):
        when = f"after step {t + 1}"
        agree(f"{when} what was frozen", state.frozen, start.frozen)
        agree(f"{when} the hyper-parameters", state.hyper, start.hyper)
        agree(f"{when} the seed", {"seed": state.seed}, {"seed": start.seed})
        agree(f"{when} the count", {"step": state.step}, {"step": start.step + t + 1})


@law()
def is_finite(subject: StepSubject) -> None:
    """On the batch as given, loss and state stay finite.

    Broken by: a logarithm or root of zero in a loss, a rate too large.
    """
    for t, (state, logs) in enumerate(subject.eager()):
        for name, x in logs.items():
            if not bool(x.isfinite().all()):
                raise Broken(f"at step {t + 1} the log {name} is {x.tolist()}")
        if "finite" in logs and not bool(logs["finite"].all()):
            raise Broken(f"step {t + 1} was not made: the loss or the new parameters are not finite")
        for path, x in tree.paths(state.trainable).items():
            if not bool(x.isfinite().all()):
                raise Broken(f"after step {t + 1} the parameter {path} is not finite")


def _moved(subject: StepSubject) -> dict[str, dict[str, bool]]:
    """net, or "terms.<term>" -> parameter -> whether it moved."""
    start, end = subject.first(), subject.eager()[-1][0]

    def groups(state: State) -> dict[str, Tree]:
        nets = {name: flat for name, flat in state.trainable.items() if name != "terms"}
        return {**nets, **{f"terms.{name}": flat for name, flat in state.trainable["terms"].items() if flat}}

    later = groups(end)
    return {
        group: {name: not torch.equal(x, later[group][name]) for name, x in flat.items()}
        for group, flat in groups(start).items()
    }


def _idle(subject: StepSubject) -> set[str]:
    """Terms of weight 0, whose own parameters need not move."""
    logs = [logs for _, logs in subject.eager()]
    prefixed = {f"{phase}.{name}" if phase else name for phase, name, _ in subject.terms()}
    return {f"terms.{n}" for n in prefixed if all(f"{n}.weight" in x and not x[f"{n}.weight"].any() for x in logs)}


@law()
def every_net_learns(subject: StepSubject) -> None:
    """Of every net that trains, and of every term with parameters, something moves.

    Broken by: a detach between a net and its loss, a pattern of names that leaves out what learns, a rate of 0.
    """
    for group, names in _moved(subject).items():
        if names and not any(names.values()) and group not in _idle(subject):
            raise Broken(f"after {subject.steps} steps no parameter of {group!r} has moved")


@law(lambda s: None)
def every_parameter_learns(subject: StepSubject) -> None:
    """Every parameter that trains moves.

    Broken by: a layer that no term reaches, one that a normalisation cancels.
    """
    still = [
        f"{group}.{name}" for group, names in _moved(subject).items() for name, moved in names.items() if not moved
    ]
    if still:
        raise Broken(f"after {subject.steps} steps these have not moved: {', '.join(still[:8])}")


@law()
def saved_and_loaded(subject: StepSubject) -> None:
    """A state that was saved and loaded is the same, and so is the next step.

    Broken by: anything that a run needs and the state does not hold.
    """
    state, batch = subject.eager()[0][0], subject.batches()[-1]
    without = trying("a step", lambda: subject.step(copied(state), copied(batch)))

    def back() -> State:
        with tempfile.TemporaryDirectory() as folder:
            return load(save(f"{folder}/state", state), subject.start())[0]

    loaded = trying("saving and loading", back)
    agree("the state, loaded and as it was", loaded, state)
    after = trying("a step", lambda: subject.step(loaded, copied(batch)))
    agree("the step after loading, and without", after, without)


def _fewer(subject: StepSubject) -> bool:
    if any(expression.accumulate > 1 for expression, _ in subject.parts.values()):
        return False
    return min(x.shape[subject.stacked] for x in tree.leaves(subject.batch)) >= 4


@law(_fewer)
def other_numbers_of_rows(subject: StepSubject) -> None:
    """A smaller last batch is stepped on as any other.

    Broken by: a batch size written into a net or a loss, a state in the shape of the batch.
    """
    axis = subject.stacked
    few = tree.map(lambda x: x.narrow(axis, 0, x.shape[axis] - 1).clone(), subject.batch)
    state, logs = trying("with one row less in each domain, a step", lambda: subject.step(subject.first(), few))
    before, after = kinds(subject.first()), kinds(state)
    for path in before:
        if after.get(path) != before[path]:
            raise Broken(f"with one row less in each domain the state has {path} {after.get(path)}, not {before[path]}")
    if not bool(logs["loss"].isfinite().all()):
        raise Broken(f"with one row less in each domain the loss is {logs['loss'].tolist()}")


LAWS = (
    first_state,
    deterministic,
    structure,
    inputs_untouched,
    frozen_stays,
    is_finite,
    every_net_learns,
    every_parameter_learns,
    saved_and_loaded,
    other_numbers_of_rows,
)
