"""The step: named terms become one pure function from (state, batch) to (state, logs)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, nearest
from ttransfer.core import _tree as tree
from ttransfer.core._forward import bind, check_batch
from ttransfer.core._hyper import is_number, numbers
from ttransfer.core._infer import Fakes, device_of, infer, init_term
from ttransfer.core._options import as_groups, as_mapping, as_patterns, as_seed
from ttransfer.core._spec import Expression, Plan, declared, plan_of, slot_names
from ttransfer.core._transforms import Transform
from ttransfer.core._types import Batch, Ema, Fixed, Functional, Logs, Optimizer, Params, State, Term, Tree
from ttransfer.core._update import build_update

__all__ = ["Spec", "Step", "ema", "step"]

_OPTIONS = ("nets", "optimizer", "terms", "trainable", "joint", "buffers", "ema", "accumulate", "guard")


class Spec(NamedTuple):
    """How a step came about: what combinators rebuild it from.

    Attributes:
        expression: an Expression, or an Alternation of steps.
        transforms: what was done to it since, innermost first.

    Example:
        >>> Spec(None).transforms
        ()
    """

    expression: Any
    transforms: tuple[Transform, ...] = ()


class Step(NamedTuple):
    """A train step.

    Attributes:
        init: (example_batch, seed=0) -> State.
        update: (state, batch) -> (state, logs); pure.
        spec: the expression it was built from.

    Example:
        >>> Step._fields
        ('init', 'update', 'spec')
    """

    init: Callable[..., State]
    update: Callable[[State, Batch], tuple[State, Logs]]
    spec: Spec

    def __call__(self, state: State, batch: Batch) -> tuple[State, Logs]:
        """Run `update`, outside of inference mode: all gradients are zero there on torch 2.8."""
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return self.update(state, batch)
        with torch.inference_mode(False):
            return self.update(state, batch)


def ema(of: str, decay: Any = 0.999, *, buffers: str = "copy", mode: str | None = None) -> Ema:
    """Let a net be the exponential moving average of another: ``ema={"mean_teacher": tt.ema("student")}``.

    After each update its parameters move to the followed net's by the fraction ``1 - decay``. Terms read
    it as any net, and it gets no gradient.

    Args:
        of: the net that it follows.
        decay: a number or a schedule; the hyper-parameter "<name>.decay".
        buffers: "copy" takes the followed net's buffers, "lerp" averages them too, "own" lets its own
            forwards write them.
        mode: "train" or "eval"; eval unless its own forwards write its buffers.

    Example:
        >>> import ttransfer as tt
        >>> tt.ema("student", 0.99).decay
        0.99

    References:
        Tarvainen and Valpola, "Mean teachers are better role models", 2017.
    """
    policies = ("copy", "lerp", "own")
    if buffers not in policies:
        raise TransferError(f"ema: {buffers!r} is no policy for buffers{nearest(buffers, policies)}")
    if not is_number(decay):
        raise TransferError(f"ema: decay must be a number or a schedule, got {type(decay).__name__}")
    if mode not in (None, "train", "eval"):
        raise TransferError(f"ema: mode must be 'train', 'eval' or None, got {mode!r}")
    return Ema(of, decay, buffers, mode or ("train" if buffers == "own" else "eval"))


def step(
    nets: Mapping[str, Functional],
    optimizer: Optimizer,
    terms: Mapping[str, Term] | None = None,
    *,
    trainable: Sequence[str] | Mapping[str, str | Sequence[str]],
    joint: Sequence[Sequence[str]] = (),
    buffers: Mapping[str, str] | None = None,
    ema: Mapping[str, Ema] | None = None,
    accumulate: int = 1,
    guard: bool = True,
    **more_terms: Term,
) -> Step:
    """Combine networks, an optimizer and named terms into one pure train step.

    The loss is the sum of the terms, each times its weight. Which forwards run, and what is tapped in
    them, follows from what the terms read; their order is the order of first mention.

    Args:
        nets: name -> Functional.
        optimizer: for example `tt.optim.adamw(1e-3)`.
        terms: name -> Term, for those who compose by program; keywords do the same.
        trainable: names of nets, or net -> pattern(s) for parameter names. All else is frozen and outside
            the gradient. A bare name leaves out parameters that have requires_grad=False.
        joint: groups of domains that run through one concatenated forward.
        buffers: net -> "shared" (one set, written by each forward in turn), "per_domain", or "eval" (running
            statistics used and never written).
        ema: name -> `tt.ema(...)`, nets that follow others.
        accumulate: number of micro-batches; gradients are weighted by what each holds of a term's mean.
        guard: keep the old state where the loss or the new parameters are not finite; logs["finite"] tells.
        **more_terms: terms by keyword.

    Returns:
        A Step: ``state = step.init(example_batch, seed=0)``, then ``state, logs = step(state, batch)``. The
        logs are 0-d tensors: "loss", each term unweighted under its name, and the hyper-parameters' values.

    Raises:
        TransferError: for names, paths, taps or patterns that do not exist, with what is near.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> nets = {"student": tt.functional(torch.nn.Linear(4, 3)), "teacher": tt.functional(torch.nn.Linear(4, 3))}
        >>> train = tt.step(
        ...     nets, tt.optim.sgd(0.1), trainable=("student",),
        ...     task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        ...     kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=4.0, weight=0.5),
        ... )
        >>> batch = {"source": {"x": torch.randn(8, 4), "y": torch.arange(8) % 3}}
        >>> state = train.init(batch, seed=0)
        >>> state, logs = train(state, batch)
        >>> sorted(name for name in logs if not name.startswith("optim."))
        ['finite', 'kd', 'kd.temperature', 'kd.weight', 'loss', 'task', 'task.weight']
    """
    given = as_mapping("terms", terms)
    for name, term in more_terms.items():
        if name in given:
            raise TransferError(f"step: the term {name!r} is given twice")
        given[name] = term
    for name in given:
        if name in _OPTIONS:
            raise TransferError(f"step: a term cannot be named {name!r}: that is an option of tt.step")
        if not isinstance(cast(Any, given[name]), Term) and (near := get_close_matches(name, _OPTIONS, 1)):
            raise TransferError(f"step: no option {name!r}; did you mean {near[0]!r}? (Terms are made with tt.term)")
    expression = Expression(
        as_mapping("nets", nets), optimizer, given, as_patterns(trainable), as_groups(joint),
        as_mapping("buffers", buffers), as_mapping("ema", ema), accumulate, guard,
    )  # fmt: skip
    return build_step(expression)


def build_step(expression: Expression) -> Step:
    """Build a step from an expression, which is checked first."""
    plan = plan_of(expression)
    update = build_update(bind(expression, plan))

    def init(example_batch: Batch, seed: int = 0) -> State:
        return init_state(expression, plan, example_batch, seed)

    return Step(init, update, Spec(expression))


def generator_for(seed: int, *names: str) -> torch.Generator:
    """A generator of its own for each thing that is initialised: adding a term changes no other's start."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def init_nets(expression: Expression, seed: int) -> tuple[dict[str, Params], dict[str, Params]]:
    """Initialise every net, averaged nets as copies; all tensors with storage of their own."""
    params: dict[str, Params] = {}
    own: dict[str, Params] = {}
    for name, net in expression.nets.items():
        params[name], own[name] = net.init(generator_for(seed, "net", name))
    for name, follower in expression.ema.items():
        params[name] = tree.map(torch.clone, params[follower.of])
        own[name] = tree.map(torch.clone, own[follower.of])
    return params, own


def slots_of(expression: Expression, plan: Plan, own: Mapping[str, Params]) -> dict[str, Params]:
    """Lay out buffers by policy: one set for each net, or one for each net and domain."""
    buffers: dict[str, Params] = {}
    for net in own:
        for where in slot_names(expression, plan, net):
            buffers[where] = tree.map(torch.clone, own[net])
    return buffers


class Started(NamedTuple):
    """What initialising found out beside the state."""

    state: State
    fakes: Fakes
    static: dict[str, frozenset[str]]
    random: tuple[str, ...]


def init_state(expression: Expression, plan: Plan, example_batch: Batch, seed: int) -> State:
    """Make the first state."""
    return start(expression, plan, example_batch, seed).state


def start(expression: Expression, plan: Plan, example_batch: Batch, seed: int) -> Started:
    """Initialise nets, run them on fake tensors, initialise terms and optimizer on what was found."""
    batch, seed = check_batch(plan, example_batch), as_seed(seed)
    for domain in example_batch:
        if domain in expression.nets or domain in expression.ema:
            raise TransferError(f"init: {domain!r} names a net and a domain of the batch; rename one")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        params, own = init_nets(expression, seed)
        buffers = slots_of(expression, plan, own)
        device = device_of(params)
        fakes = infer(expression, plan, params, buffers, batch)
        owned: dict[str, Params] = {}
        memory: dict[str, Tree] = {}
        static: dict[str, frozenset[str]] = {}
        random = list(fakes.random)
        for name, term in expression.terms.items():
            generator = generator_for(seed, "term", name)
            # For an init that draws from the global generator: that too follows from the seed, and is put back.
            torch.default_generator.manual_seed(generator.initial_seed())
            made = init_term(name, term, generator, fakes, device)
            owned[name] = {k: v.detach().to(device) for k, v in made.params.items()}
            memory[name] = tree.map(lambda x, name=name: _only_tensor(name, x).detach().to(device), made.memory)
            static[name] = made.static
            random += made.random
        learned = {net: {k: v for k, v in params[net].items() if k in plan.learned[net]} for net in plan.learned}
        frozen = {
            net: {k: v for k, v in params[net].items() if k not in plan.learned.get(net, ())} for net in expression.nets
        }
        trainable: dict[str, Any] = {**learned, "terms": owned}
        hyper = _entries(expression, static, device)
        state = State(
            trainable,
            frozen,
            buffers,
            memory,
            expression.optimizer.init(trainable),
            {name: params[name] for name in expression.ema},
            hyper,
            torch.zeros((), dtype=torch.int64, device=device),
            torch.tensor(seed, dtype=torch.int64, device=device),
        )
    return Started(unshared(state), fakes, static, tuple(dict.fromkeys(random)))


def _entries(expression: Expression, static: Mapping[str, frozenset[str]], device: torch.device) -> dict[str, Tensor]:
    """The entries of `State.hyper`: every number that is not static."""
    fixed_names = {f"{term}.{key}" for term, keys in static.items() for key in keys}
    return {
        entry: torch.tensor(number, dtype=torch.float64, device=device)
        for name, value in declared(expression).items()
        if name not in fixed_names and not isinstance(value, Fixed)
        for entry, number in numbers(name, value).items()
    }


def _only_tensor(whose: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TransferError(f"a state holds tensors only, found {type(x).__name__} {x!r} in that of {whose!r}")
    return x


def unshared(state: State) -> State:
    """Give every leaf a storage of its own: a donated update of two slots in one storage is silently wrong."""
    seen: set[int] = set()

    def own(x: Any) -> Tensor:
        x = _only_tensor("optim", x)
        if x.untyped_storage().data_ptr() in seen and x.numel():
            x = x.clone()
        seen.add(x.untyped_storage().data_ptr())
        return x.clone() if x.untyped_storage().nbytes() != x.numel() * x.element_size() else x

    return tree.map(own, state)
