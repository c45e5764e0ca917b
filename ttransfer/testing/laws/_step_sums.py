"""Laws on what a step computes: the sum of its terms, its gradient, its averages, and a guard."""

from __future__ import annotations

import torch
from torch import Tensor

import ttransfer.core._tree as tree
from ttransfer._errors import TransferError
from ttransfer.core._hyper import resolve, set_hyper
from ttransfer.core._inputs import inputs_of
from ttransfer.core._predict import predict
from ttransfer.core._rebuild import replace
from ttransfer.core._spec import Expression, declared
from ttransfer.core._step import Step
from ttransfer.core._types import Fixed, Logs, State, Tree
from ttransfer.optim._apply import apply_updates
from ttransfer.testing._law import Broken, law
from ttransfer.testing.laws._step_tools import Batch, StepSubject, agree, copied, trying

__all__ = ["LAWS"]


@law()
def loss_is_the_sum(subject: StepSubject) -> None:
    """The loss in the logs is the sum of the terms, each times its weight; of phases, the sum of theirs.

    Broken by: a term counted twice or not at all, a weight applied twice or never.
    """
    for t, (_, logs) in enumerate(subject.eager()):
        wanted: dict[str, Tensor] = {}
        for phase, name, expression in subject.terms():
            prefix = f"{phase}." if phase else ""
            value = logs[f"{prefix}{name}"].double() * _weight(logs, prefix, name, expression)
            wanted[f"{prefix}loss"] = wanted.get(f"{prefix}loss", torch.zeros_like(value)) + value
        if "" not in subject.parts:
            wanted["loss"] = torch.stack([logs[f"{phase}.loss"].double() for phase in subject.parts]).sum(0)
        for name, total in wanted.items():
            agree(f"at step {t + 1} {name} and the sum", {name: logs[name]}, {name: total}, relative=1e-5, least=1e-7)


def _weight(logs: Logs, prefix: str, name: str, expression: Expression) -> Tensor | float:
    given = expression.terms[name].hyper["weight"]
    return float(given.value) if isinstance(given, Fixed) else logs[f"{prefix}{name}.weight"].double()


@law(lambda s: s.depth == 0 and s.sole() is not None)
def follows_the_gradient(subject: StepSubject) -> None:
    """New parameters are what the optimizer makes of the gradient of the loss in the logs.

    Broken by: a term that is logged and not learned from, or the other way; a gradient of another weight; micro-batches
    summed where their mean is meant.
    """
    expression = subject.sole()
    assert expression is not None
    for t, batch in enumerate(subject.batches()):
        state = subject.eager()[t - 1][0] if t else subject.first()

        def loss(trainable: Tree, state: State = state, batch: Batch = batch) -> Tensor:
            return subject.step(state._replace(trainable=trainable), copied(batch))[1]["loss"]

        grads = trying("the gradient of a step's loss", lambda loss=loss, s=state: torch.func.grad(loss)(s.trainable))
        numbers = resolve(declared(expression), state.hyper, state.step)
        own = {name[len("optim.") :]: x for name, x in numbers.items() if name.startswith("optim.")}
        updates, _ = expression.optimizer.update(grads, state.opt, state.trainable, own)
        wanted, found = apply_updates(state.trainable, updates), subject.eager()[t][0].trainable
        subject.near(f"the parameters after step {t + 1}, and by the loss's gradient", found, wanted)


def _without(subject: StepSubject, phase: str, name: str) -> Step | None:
    """The step without a term, if that leaves it a step with the same forwards, or none that keep count."""
    try:
        if phase:
            game = subject.step.spec.expression
            step = replace(subject.step, **{phase: replace(game.phases[phase], **{name: None})})
        else:
            step = replace(subject.step, **{name: None})
        state = subject.start(step)
    except TransferError:  # it was the only term, or all that some net or optimizer was for
        return None
    fewer = {n: plan.passes for n, (_, plan) in inputs_of(step.spec).parts.items()}
    same = fewer == {n: plan.passes for n, (_, plan) in subject.parts.items()}
    return step if same or not tree.leaves(state.buffers) else None


@law(lambda s: sum(1 for _ in s.terms()) > 1)
def no_weight_no_term(subject: StepSubject) -> None:
    """A term of weight 0 is as good as absent, for all parameters but its own.

    Broken by: a gradient that bypasses the weight (a reversal, a custom backward), a value that is not finite.
    """
    for phase, name, _ in subject.terms():
        full = f"{phase}.{name}" if phase else name
        start = subject.first()
        entries = [e for e in start.hyper if e == f"{full}.weight" or e.startswith(f"{full}.weight.")]
        step = _without(subject, phase, name) if entries else None
        if step is None:
            continue
        mute = set_hyper(start, dict.fromkeys(entries, 0.0))
        with_it = trying("a step", lambda mute=mute: subject.run(subject.step, mute))
        if any(bool((logs[f"{full}.weight"] != 0).any()) for _, logs in with_it):
            continue  # a schedule that 0 does not silence
        without = trying(f"a step without {full!r}", lambda s=step: subject.run(s, subject.start(s)))
        for t, ((a, _), (b, _)) in enumerate(zip(with_it, without, strict=True)):
            what = f"after step {t + 1}, with {full!r} at weight 0 and without it"
            subject.near(what, _others(a, full), _others(b, full))


def _others(state: State, term: str) -> Tree:
    trainable = dict(state.trainable)
    trainable["terms"] = {name: flat for name, flat in trainable["terms"].items() if name != term}
    return trainable, state.ema


def _guards(subject: StepSubject) -> bool:
    floating = any(x.is_floating_point() for x in tree.leaves(subject.batch))
    return floating and all(expression.guard for expression, _ in subject.parts.values())


@law(_guards)
def guarded(subject: StepSubject) -> None:
    """A batch with a NaN in it changes nothing, unless all stays finite in spite of it.

    Broken by: an update outside the guard: of buffers, of a term's state, of a net kept elsewhere.
    """

    def spoilt(x: Tensor) -> Tensor:
        x = x.clone()
        if x.is_floating_point():
            x.select(subject.stacked, 0).fill_(float("nan"))
        return x

    start = subject.eager()[0][0]
    after, logs = trying(
        "on a batch with NaN, a step", lambda: subject.step(copied(start), tree.map(spoilt, subject.batch))
    )
    if bool(logs["finite"].all()):
        for path, x in tree.paths(after).items():
            if not bool(x.isfinite().all()) and bool(tree.paths(start)[path].isfinite().all()):
                raise Broken(f"a batch with NaN counted as finite, and {path} of the state is not")
    elif not bool(logs["finite"].any()):
        agree("after a step on a batch with NaN, and before it, the state", after, start)


@law(lambda s: any(e.ema for e, _ in s.parts.values()) and s.sole() is not None)
def averages_follow(subject: StepSubject) -> None:
    """An averaged net is ``decay * old + (1 - decay) * new``, by the new parameters.

    Broken by: the decay and its rest exchanged, the old parameters taken, an average updated twice.
    """
    expression = subject.sole()
    assert expression is not None
    before = subject.first()
    for t, (state, logs) in enumerate(subject.eager()):
        for name, follower in expression.ema.items():
            decay = logs[f"{name}.decay"]
            new = {**state.frozen.get(follower.of, {}), **state.trainable.get(follower.of, {})}
            for path, old in before.ema[name].items():
                kept = decay.to(old).reshape(decay.shape + (1,) * (old.ndim - decay.ndim))
                wanted = {path: kept * old + (1 - kept) * new[path]}
                agree(f"after step {t + 1} {name!r}", {path: state.ema[name][path]}, wanted, relative=1e-5, least=1e-9)
        before = state


@law()
def prediction_changes_nothing(subject: StepSubject) -> None:
    """Taking a net out and calling it gives the same bits each time, and leaves the state alone.

    Broken by: a net left in train mode, a buffer written in a forward.
    """
    state = subject.eager()[0][0]
    given = copied(state)
    for expression, plan in subject.parts.values():
        for one in plan.passes:
            net, domain = one.net, one.domains[0]
            source = expression.ema[net].of if net in expression.ema else net
            fields = [subject.batch[domain][field] for field in expression.nets[source].inputs]
            for _ in range(subject.stacked):
                fields = [x[0] for x in fields]
            path = f"{net}({domain})"

            def out(path: str = path, fields: list[Tensor] = fields) -> Tree:
                return predict(subject.step, given, path)(*(x.clone() for x in fields))

            drawn = torch.get_rng_state()
            once, twice = (trying(f"predict({path!r})", out) for _ in range(2))
            tensors = [tree.map(lambda x: x if isinstance(x, Tensor) else torch.zeros(()), x) for x in (once, twice)]
            agree(f"two predictions of {path}", tensors[0], tensors[1])
            if not torch.equal(drawn, torch.get_rng_state()):
                raise Broken(f"predicting {path} draws from the global generator")
            agree(f"the state after predicting {path}, and before", given, state)


@law(lambda s: None)
def rows_may_change_places(subject: StepSubject) -> None:
    """The order of rows within a domain does not matter.

    Broken by: dropout, whose masks go by row, or a loss that pairs rows of two domains.
    """
    turned = tree.map(lambda x: x.flip(subject.stacked), subject.batch)
    other = trying("a step", lambda: subject.step(subject.first(), turned))[0]
    subject.near("with the rows in reverse, and as given", other.trainable, _once(subject))


def _once(subject: StepSubject) -> Tree:
    return subject.eager()[0][0].trainable


def _splits(subject: StepSubject) -> bool | None:
    expression = subject.sole()
    if expression is None or expression.accumulate > 1:
        return False
    if any(term.coupled for term in expression.terms.values()):
        return False
    return None if tree.leaves(subject.first().buffers) else True


@law(_splits)
def micro_batches(subject: StepSubject) -> None:
    """Two micro-batches make the step that the whole batch makes, where no term couples rows and no net counts them.

    Broken by: a mean of means, a term that says coupled=False and is none over what it counts, or masks that go by the
    place in the micro-batch.
    """
    split = trying(
        "with accumulate=2, a step", lambda: replace(subject.step, accumulate=2)(subject.first(), copied(subject.batch))
    )
    subject.near("in two micro-batches, and whole", split[0].trainable, _once(subject))


@law(lambda s: None)
def descends(subject: StepSubject) -> None:
    """Steps on one batch bring the loss down.

    Broken by: a game, a weight below 0, a rate too large.
    """
    runs = subject.run(subject.step, subject.first(), [subject.batch] * (subject.steps + 3))
    first, last = runs[0][1]["loss"], runs[-1][1]["loss"]
    if not bool((last < first).all()):
        raise Broken(f"from {first.tolist()} to {last.tolist()} in {len(runs)} steps")


@law(lambda s: None if s.depth == 0 and s.double else False)
def meta_gradient(subject: StepSubject) -> None:
    """The derivative of the loss after two steps, by every number, is right.

    Broken by: a detached part, a reversed gradient, running statistics, a number that a loss takes as a float.
    """
    start, batches = subject.first(), subject.batches()[:2]

    def later(hyper: dict[str, Tensor]) -> Tensor:
        state, logs = start._replace(hyper=hyper), {}
        for batch in batches:
            state, logs = subject.step(state, batch)
        return logs["loss"]

    said = torch.func.grad(later)(start.hyper)
    for name, value in start.hyper.items():
        step = 1e-5 * max(1e-2, abs(value.item()))
        up, down = (later({**start.hyper, name: value + by}).item() for by in (step, -step))
        seen = (up - down) / (2 * step)
        if not abs(seen - said[name].item()) <= 1e-3 * abs(seen) + 1e-6:
            raise Broken(f"with {name} the loss changes by {seen:.6g}, and the derivative says {said[name].item():.6g}")


LAWS = (
    loss_is_the_sum,
    follows_the_gradient,
    no_weight_no_term,
    guarded,
    averages_follow,
    prediction_changes_nothing,
    rows_may_change_places,
    micro_batches,
    descends,
    meta_gradient,
)
