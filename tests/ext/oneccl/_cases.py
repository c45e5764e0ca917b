"""The calls on which gloo and ccl are compared, as Hypothesis draws them."""

from __future__ import annotations

from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int8", "uint8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
MOVED = (*FLOATS, *INTEGERS, "bool", "complex64")
REDUCING = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_coalesced",
)
MOVING = (
    "broadcast",
    "all_gather",
    "all_gather_single",
    "all_gather_coalesced",
    "all_to_all",
    "all_to_all_single",
    "all_to_all_splits",
    "gather",
    "scatter",
    "ring",
)
LAYOUTS = ("contiguous", "transposed", "strided")


class Case(NamedTuple):
    """One call: its name, reduction, dtype, the shape of one rank's part, its layout, who takes part, and the root."""

    call: str
    reduction: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    members: tuple[int, ...]
    root: int
    waited: bool

    @property
    def size(self) -> tuple[int, ...]:
        """What makes a failure easier to look at: fewer ranks, fewer elements."""
        elements = 1
        for length in self.shape:
            elements *= length
        return len(self.members), elements, len(self.shape), LAYOUTS.index(self.layout)


@st.composite
def cases(draw: Any, world: int) -> Case:
    """Draw a case for a world of that many ranks."""
    call = draw(st.sampled_from(REDUCING + MOVING))
    reduction, dtypes = "SUM", MOVED
    if call in REDUCING:
        reduction = draw(st.sampled_from(("SUM", "AVG", "PRODUCT", "MIN", "MAX")))
        dtypes = FLOATS if reduction == "AVG" else (*FLOATS, *INTEGERS, "bool")
    small = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)
    large = st.sampled_from([(1000,), (257, 33), (40_000,)])
    members = draw(st.sampled_from([tuple(range(world)), (0, world - 1)]))
    return Case(
        call,
        reduction,
        draw(st.sampled_from(dtypes)),
        draw(st.one_of(small, small, small, large)),
        draw(st.sampled_from(LAYOUTS)),
        members,
        draw(st.integers(0, len(members) - 1)),
        draw(st.booleans()),
    )


def drawn(world: int, number: int) -> list[Case]:
    """Return different cases, the same ones each time."""
    found: dict[Case, None] = {}

    @hypothesis.settings(
        max_examples=number, derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.generate]
    )
    @hypothesis.given(cases(world))
    def collect(case: Case) -> None:
        found[case] = None

    collect()
    return list(found)
