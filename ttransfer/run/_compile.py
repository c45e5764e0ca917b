"""Compiling a step: forwards, losses, gradients, optimizer, buffers and guard become one graph."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttransfer._errors import TransferError
from ttransfer.core import _tree as tree
from ttransfer.core._alternate import Alternation
from ttransfer.core._inputs import Labels, check, check_labels, inputs_of, label_checks, leaf_ids, unshared
from ttransfer.core._rebuild import rebuild, replace
from ttransfer.core._spec import Expression
from ttransfer.core._step import Spec, Step
from ttransfer.core._transforms import SHARDS, TOTALS, Transform, outside_of
from ttransfer.core._types import Batch, Functional, Logs, State
from ttransfer.run._backends import Compiler, backend_of
from ttransfer.run._inductor import has_halves, inductor_options

__all__ = ["compile"]

_serial = itertools.count()


def compile(
    step: Step,
    *,
    backend: str = "inductor",
    donate: bool = False,
    precision: str | None = None,
    rows: str = "static",
) -> Step:
    """Compile the whole update into one graph.

    One graph serves a whole run: schedules, changed hyper-parameters and reloaded states included. What
    would make another is normalised before the call: gradient mode, an outer autocast, the default dtype,
    the number of threads, the batch's memory format, fields of the batch that no term reads.

    Args:
        step: any step; an ensemble or a sweep is compiled whole.
        backend: "inductor", "aot_eager" (one graph, eager kernels: quick to compile, for tests), "ipex" (see
            docs/ipex.md), or any other that `torch.compile` knows or an installed package adds.
        donate: write the new state into the old one's storage. The state that is returned is then the one that
            was passed in: there is no old one any more, and peak memory is lower. Without it the update is pure.
        precision: "bfloat16" or "float16" runs every net under autocast; parameters, gradients, losses and
            normalisation layers stay in float32.
        rows: "static" compiles for the number of rows of the first batch, and once more, for any number from 2,
            when another comes; "dynamic" compiles for any number from 2 at once, which is a little slower.

    Returns:
        A Step. The first call of its update compiles, which takes 10 to 60 s with inductor.

    Raises:
        TransferError: for a backend that is unknown or that cannot run here; at the first call, if the step is
            not one graph.

    Example:
        >>> import torch, torch.nn.functional as F, ttransfer as tt
        >>> train = tt.step({"net": tt.functional(torch.nn.Linear(2, 2))}, tt.optim.sgd(0.1), trainable=("net",),
        ...                 task=tt.term(F.cross_entropy, "net(source)", "source.y"))
        >>> batch = {"source": {"x": torch.ones(4, 2), "y": torch.tensor([0, 1, 0, 1])}}
        >>> fast = tt.compile(train, backend="aot_eager")
        >>> state, logs = fast(fast.init(batch), batch)
        >>> int(state.step)
        1
    """
    compiler = backend_of(backend)
    if rows not in ("static", "dynamic"):
        raise TransferError(f"compile: rows must be 'static' or 'dynamic', got {rows!r}")
    if any(transform.name == "compile" for transform in step.spec.transforms):
        raise TransferError("compile: this step is compiled already; compile the step it was made from")
    options = {"backend": backend, "donate": donate, "precision": precision, "rows": rows}
    again = Transform("compile", options, lambda base: compile(base, **options), outer=True)
    plain = step if precision is None else _in_precision(step, precision)
    outside = outside_of(plain.spec.transforms)
    if outside is not None and (why := outside.uncompiled()):
        raise TransferError(f"compile: {why}")
    update = _outer(plain, compiler, donate, rows, precision is not None)
    return Step(plain.init, update, Spec(step.spec.expression, (*step.spec.transforms, again)))


def _in_precision(step: Step, precision: str) -> Step:
    """Rebuild a step with every net under autocast."""
    if precision not in ("bfloat16", "float16"):
        raise TransferError(f"compile: precision must be 'bfloat16' or 'float16', got {precision!r}")
    dtype = getattr(torch, precision)

    def cast(net: Functional) -> Functional:
        def bind(*args: Any, **kwargs: Any) -> Any:
            return net.bind(*args, **{"precision": dtype, **kwargs})

        return Functional(net.init, net.apply, bind, net.merged, net.layout, net.mode, net.inputs)

    def changed(expression: Expression, made: dict[int, Functional]) -> dict[str, Functional]:
        return {name: made.setdefault(id(net), cast(net)) for name, net in expression.nets.items()}

    made: dict[int, Functional] = {}  # phases share nets, and must go on sharing them
    expression = step.spec.expression
    if isinstance(expression, Alternation):
        phases = {n: replace(p, nets=changed(p.spec.expression, made)) for n, p in expression.phases.items()}
        return rebuild(Alternation(phases, expression.order), step.spec.transforms)
    return replace(step, nets=changed(expression, made))


def _with_hyper(state: State, hyper: dict[str, Tensor]) -> State:
    return State(
        state.trainable, state.frozen, state.buffers, state.terms, state.opt, state.ema, hyper, state.step, state.seed
    )


def _graph(
    step: Step, backend: Compiler, donate: bool, device: torch.device, dynamic: bool | None, halves: bool
) -> Callable[..., Any]:
    """Compile the update."""
    options: dict[str, Any] = {"guard_filter_fn": _guarded}
    if backend == "inductor":
        options.update(inductor_options(device, halves))
    return torch.compile(_entry(step, donate), backend=backend, fullgraph=True, dynamic=dynamic, options=options)


def _guarded(entries: Sequence[Any]) -> list[bool]:
    """Say which of the compiler's guards to keep: it would check all of them in every call.

    What cannot change goes: skeletons, which nobody else holds, and the modules of torch and of ours.
    What a user's loss closes over stays, and so does every input.
    """
    ours = ("G['__import_torch_dot_", "G['__import_ttransfer_dot_", "G['__builtins_dict", "__import__('torch")
    return [not (entry.name.startswith(ours) or ".applies[" in entry.name) for entry in entries]


def _entry(step: Step, donate: bool) -> Callable[..., Any]:
    """Return what is compiled, as a function with code of its own.

    The compiler keeps its graphs by code object and limits their number; steps must not share one.
    Hyper-parameters come in as one tensor: the compiler traces everything twice for a float64 scalar
    on the CPU. They do not come out, since an update does not change them.
    """

    def pure(names: tuple[str, ...], numbers: Tensor, state: State, batch: Batch) -> Any:
        new, logs = step.update(_with_hyper(state, dict(zip(names, numbers.unbind(-1), strict=True))), batch)
        return _with_hyper(new, {}), logs

    def donated(names: tuple[str, ...], numbers: Tensor, state: State, batch: Batch) -> Any:
        new, logs = pure(names, numbers, state, batch)
        for old, fresh in zip(tree.leaves(state), tree.leaves(new), strict=True):
            if fresh is not old:
                old.copy_(fresh)
        return logs

    entry = donated if donate else pure
    code = entry.__code__.replace(co_name=f"ttransfer_step_{next(_serial)}")
    return types.FunctionType(code, entry.__globals__, code.co_name, entry.__defaults__, entry.__closure__)


class _Setting(NamedTuple):
    """What the first call ran under; later calls run under the same."""

    threads: int
    dtype: torch.dtype
    shapes: tuple[torch.Size, ...]


@contextmanager
def _normal(setting: _Setting) -> Iterator[None]:
    """Put the process into the state that the graph was made for, and back."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    if threads != setting.threads:
        torch.set_num_threads(setting.threads)
    if dtype != setting.dtype:
        torch.set_default_dtype(setting.dtype)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if torch.is_autocast_enabled("cuda"):
                with torch.autocast("cuda", enabled=False):
                    yield
            else:
                yield
    finally:
        if threads != setting.threads:
            torch.set_num_threads(threads)
        if dtype != setting.dtype:
            torch.set_default_dtype(dtype)


def _outer(
    step: Step, backend: Compiler, donate: bool, rows: str, halves: bool
) -> Callable[[State, Batch], tuple[State, Logs]]:
    """Return the function that users call: it checks and normalises, then runs the graph.

    The first batch's shapes have a graph of their own, and all others share a second one: left to itself
    the compiler would run the second for every batch once it has it.
    """
    inputs = inputs_of(step.spec)
    outside = outside_of(step.spec.transforms)
    setting: list[_Setting] = []
    labels: list[list[Labels]] = []
    written: list[tuple[Any, ...]] = [()]
    graphs: dict[bool, Callable[..., Any]] = {}

    def checked(state: State, batch: Batch) -> Batch:
        wanted = {
            domain: {field: _plain(x) for field, x in fields.items()}
            for domain, fields in check(inputs, state, batch).items()
        }
        if not labels:
            labels.append(label_checks(inputs, state, wanted))
        check_labels(labels[0], wanted)
        return wanted

    def update(state: State, batch: Batch) -> tuple[State, Logs]:
        if outside is None:
            wanted = checked(state, batch)
        else:
            wanted = outside.prepare(state, batch, lambda: checked(state, batch))
        if not setting:
            setting.append(_Setting(torch.get_num_threads(), torch.get_default_dtype(), _shapes(wanted)))
        if donate and leaf_ids(state) != written[0]:
            unshared(state)
            written[0] = leaf_ids(state)
        dynamic = rows == "dynamic" or _shapes(wanted) != setting[0].shapes
        if dynamic:
            _mark_rows(wanted, inputs.stacked)
        if dynamic not in graphs:
            low = halves or has_halves([*tree.leaves(state), *tree.leaves(wanted)])
            graphs[dynamic] = _graph(step, backend, donate, state.step.device, None if dynamic else False, low)
        names = tuple(state.hyper)
        with _normal(setting[0]):
            # A step all of whose numbers are fixed has none.
            numbers = torch.stack([state.hyper[name] for name in names], -1) if names else torch.empty(0)
            try:
                out = graphs[dynamic](names, numbers, _with_hyper(state, {}), wanted)
            except Exception as error:
                _explain(step, state, wanted, error)
                raise
        return (state, out) if donate else (_with_hyper(out[0], state.hyper), out[1])

    return update


def _plain(x: Tensor) -> Tensor:
    """A batch tensor as the graph was made for: without a gradient, contiguous, with the strides that says."""
    x = x.detach().contiguous() if x.requires_grad or not x.is_contiguous() else x
    # An axis of size 1 may have any stride, and the graph asks for the one it saw.
    return x if x.stride() == _strides(x.shape) else x.flatten().view(x.shape)


def _shapes(batch: Mapping[str, Mapping[str, Tensor]]) -> tuple[torch.Size, ...]:
    return tuple(x.shape for fields in batch.values() for x in fields.values())


def _mark_rows(batch: Mapping[str, Mapping[str, Tensor]], axis: int) -> None:
    """Let the compiler leave the number of rows open; one row is a case of its own for it."""
    for domain, fields in batch.items():
        at = 0 if domain == TOTALS else axis
        for x in fields.values() if domain != SHARDS else ():
            if x.shape[at] > 1:
                torch._dynamo.mark_dynamic(x, at)


def _strides(shape: torch.Size) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _explain(step: Step, state: State, batch: Batch, error: Exception) -> None:
    """Raise a clear error for what the compiler raised, if there is one to give.

    An error raised while a graph is traced loses its words, so the step is run once without compiling.
    """
    from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return
    try:
        step.update(state, batch)
    except TransferError as plain:
        raise plain from error
    if isinstance(error, BackendCompilerFailed):
        return  # the graph is whole; what the backend says of it stands
    reason = str(error).split("\n\nfrom user code")[0].strip()
    where = [line.strip() for line in str(error).splitlines() if line.strip().startswith("File ")]
    last = f" ({where[-1]})" if where else ""
    raise TransferError(
        f"compile: the step is not one graph: {reason}{last}. Use tensor operations without .item(), Python "
        "branches on values, or shapes that depend on values; or run the step without compiling it"
    ) from error
