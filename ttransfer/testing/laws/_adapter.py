"""Laws on adapters: rows in, rows out, whatever their number."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from ttransfer.testing._law import Broken
from ttransfer.testing.laws import _map_gradient, _map_modes, _map_pure, _map_start
from ttransfer.testing.laws._map_pure import close_to_double, for_inputs
from ttransfer.testing.laws._map_start import made
from ttransfer.testing.laws._map_subject import MapSubject, Trees, asked, first_line, pull, run, runs, told
from ttransfer.testing.laws._map_trees import Tensors, change, equal, gap, moved, seeded, unlike
from ttransfer.testing.strategies import features, generic

__all__ = ["ARGUMENTS", "FAMILIES", "LAWS", "feature", "feature_cases"]

ARGUMENTS = ("params", "feature")
FAMILIES = ("zero", "constant", "collapsed", "duplicated", "large")


def feature(shape: tuple[int, ...], seed: int) -> Tensor:
    """A feature of normal numbers, float64."""
    return (torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * 2000).round() / 1000


@st.composite
def feature_cases(
    draw: DrawFn, starts: tuple[Tensors, ...], shape: tuple[int, ...], family: str, rows: tuple[int, int]
) -> tuple[int, Trees]:
    """Draw parameters, moved from their start or not, and a feature.

    Args:
        draw: how.
        starts: parameters as init makes them under several seeds.
        shape: of the feature, without its rows.
        family: of the feature; "start" is a plain feature, for parameters as they are made.
        rows: the fewest and the most.
    """
    n, seed = draw(st.integers(*rows)), draw(st.integers(0, 7))
    strategy: SearchStrategy[Tensor] = (
        generic((n, *shape)) if family in ("generic", "start") else features((n, *shape), family=family)
    )
    params = starts[seed % len(starts)]
    return seed, (params if family == "start" else moved(params, seed), {"feature": draw(strategy)})


def _result(tree: Tensors) -> Tensor:
    return tree["feature"]


def _like(subject: MapSubject, rows: int, dtype: torch.dtype, *, meta: bool) -> Tensor:
    shape = (rows, *subject.example.shape[1:])
    return torch.empty(shape, dtype=dtype, device="meta") if meta else feature(shape, rows).to(dtype)


@asked()
def init_by_shape(subject: MapSubject) -> None:
    """Init looks at the feature's shape and dtype alone, and not at the number of rows.

    Broken by: like.mean() or another value of what is a meta tensor, a width taken from like.shape[0], parameters
    for one batch size.
    """
    wanted = made(subject)
    for rows in (1, 3, 7):
        for meta in (True, False):
            like = _like(subject, rows, torch.float64, meta=meta)
            what = f"for {rows} rows, {'on the meta device' if meta else 'with values'}"
            try:
                found = subject.part.init(seeded(0), like)
            except Exception as error:
                raise Broken(f"{what}, init raised {first_line(error)}") from error
            if not equal(found, wanted):
                name = unlike(found, wanted, 0.0) or ""
                shown = [str(tuple(tree[name].shape)) if name in tree else "none" for tree in (found, wanted)]
                raise Broken(f"{what}, {name!r} is another: shape {shown[0]}, and for 4 rows {shown[1]}")


@asked()
def rows_kept(subject: MapSubject) -> None:
    """As many rows come out as went in, one row and many, and each is of the same shape.

    Broken by: squeeze() or a mean that takes the rows' axis too, flatten(), a number of rows fixed at init.
    """
    widths: set[tuple[int, ...]] = set()

    def test(inputs: Trees) -> None:
        n, result = inputs[1]["feature"].shape[0], _result(run(subject, inputs))
        if result.ndim == 0 or result.shape[0] != n:
            raise Broken(f"{n} rows became a result of shape {tuple(result.shape)}\n{told(subject, inputs)}")
        widths.add(tuple(result.shape[1:]))
        if len(widths) > 1:
            raise Broken(f"one row of the result is of shape {' or '.join(map(str, sorted(widths)))}, by their number")

    for_inputs(subject, test, "moderate", rows=(1, 6))


@asked()
def feature_dtype(subject: MapSubject) -> None:
    """The result has the feature's dtype.

    Broken by: a constant made without dtype=, .float() or .double().
    """

    def test(inputs: Trees) -> None:
        for wanted in (torch.float32, torch.float64):
            result = _result(run(subject, tuple(change(tree, lambda x, d=wanted: x.to(d)) for tree in inputs)))
            if result.dtype != wanted:
                raise Broken(f"a feature of {wanted} gave {result.dtype}\n{told(subject, inputs)}")

    for_inputs(subject, test, "generic")


@asked(lambda s: s.claims["rows apart"])
def rows_apart(subject: MapSubject) -> None:
    """What becomes of a row does not depend on the others: alone and among them it is the same.

    Broken by: statistics of the batch (a mean, a norm, a softmax over axis 0), rows compared with rows, a row's
    number used. Say rows_apart=False where it is meant.
    """

    def test(inputs: Trees) -> None:
        x, whole = inputs[1]["feature"], _result(run(subject, inputs))
        for i in range(x.shape[0]):
            alone = _result(run(subject, (inputs[0], {"feature": x[i : i + 1]})))
            if alone.shape[:1] != (1,) or whole.shape[:1] != x.shape[:1] or gap(alone[0], whole[i]) > 1e-9:
                found = {"alone": alone, "among_the_others": whole[i : i + 1] if whole.ndim else whole}
                raise Broken(f"row {i} becomes another\n{told(subject, inputs, **found)}")

    for_inputs(subject, test, "moderate", "generic", rows=(2, 5))


@asked(lambda s: False if s.claims["rows apart"] else None)
def row_order(subject: MapSubject) -> None:
    """Where rows change places, so do their results.

    Broken by: a row compared with the next one, a row's number used.
    """

    def test(inputs: Trees) -> None:
        x = inputs[1]["feature"]
        order = torch.randperm(x.shape[0], generator=seeded(x.shape[0]))
        here = _result(run(subject, inputs))
        there = _result(run(subject, (inputs[0], {"feature": x[order]})))
        if here.shape != there.shape or gap(there, here[order]) > 1e-9:
            raise Broken(f"it becomes another\n{told(subject, inputs)}")

    for_inputs(subject, test, "generic", rows=(3, 5))


@asked()
def hard_inputs(subject: MapSubject) -> None:
    """Result and gradients are finite for features that are zero, constant, collapsed, doubled or large.

    Broken by: a root or a norm at zero, 0/0, exp without its largest value taken off, a variance of one value.
    """
    for_inputs(subject, lambda inputs: _map_gradient.check_finite(subject, inputs), *FAMILIES, rows=(1, 3))


@asked(lambda s: s.claims["identity"])
def identity(subject: MapSubject) -> None:
    """An adapter that has just been made changes nothing.

    Broken by: a last layer that does not start at zero, a scale that does not start at one, a norm on the way.
    """

    def test(inputs: Trees) -> None:
        result = _result(run(subject, inputs))
        if gap(result, inputs[1]["feature"]) > 1e-12:
            raise Broken(f"at the start it changes the feature\n{told(subject, inputs, result=result)}")

    for_inputs(subject, test, "start")


@asked()
def feature_gradient(subject: MapSubject) -> None:
    """Every row of the feature gets a gradient.

    Broken by: detach(), .data or no_grad on the way, a rounding or a comparison, rows left out by an index.
    """
    reached = torch.zeros(4, dtype=torch.bool)
    for seed in range(6):
        inputs = subject.sample(seed, 4, False)
        grad = pull(subject, inputs, (1,))[1][1]["feature"]
        reached |= (grad != 0).reshape(4, -1).any(1)
    if not bool(reached.all()):
        rows = ", ".join(str(i) for i, there in enumerate(reached.tolist()) if not there)
        raise Broken(f"of 4 rows these never get a gradient: {rows}")


@asked()
def bfloat16(subject: MapSubject) -> None:
    """With feature and parameters in bfloat16 the result is finite, and near what it is in float64.

    Broken by: an eps below what 8 bits can tell from 0, a sum that is rounded away, a cast that overflows.
    """

    def test(inputs: Trees) -> None:
        close_to_double(subject, tuple(change(tree, Tensor.bfloat16) for tree in inputs), 0.15, "bfloat16")

    for_inputs(subject, test, "generic")


LAWS = (
    runs,
    *_map_start.LAWS,
    init_by_shape,
    rows_kept,
    feature_dtype,
    rows_apart,
    row_order,
    hard_inputs,
    identity,
    *_map_pure.LAWS,
    bfloat16,
    *_map_gradient.OWN,
    *_map_gradient.LAWS,
    feature_gradient,
    *_map_modes.LAWS,
)
