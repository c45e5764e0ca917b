"""Merged low-rank changes: against our own reparametrisation, and PEFT's two branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ttransfer as tt
from ttransfer._errors import TransferError
from ttransfer.testing import judge, parametrize_with_checks, weight_map_trial
from ttransfer.weights import merge_lora


def drawn(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name.replace("__", "."): torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


BASE = drawn(conv__weight=(6, 3, 3, 2), fc__weight=(4, 5), fc__bias=(4,))
OURS = {
    **drawn(fc__weight__lora_a=(2, 5), fc__weight__lora_b=(4, 2)),
    **drawn(conv__weight__lora_a=(2, 18), conv__weight__lora_b=(6, 2)),
}
PEFT = drawn(
    fc__base_layer__weight=(4, 5),
    fc__base_layer__bias=(4,),
    fc__lora_A__default__weight=(2, 5),
    fc__lora_B__default__weight=(4, 2),
    stem__weight=(3,),
)


def slow(src: dict[str, Tensor], like: Any) -> dict[str, Tensor]:
    a, b = src["fc.lora_A.default.weight"], src["fc.lora_B.default.weight"]
    change = sum(torch.outer(b[:, k], a[k]) for k in range(2)) * (6.0 / 2)
    weight, bias = src["fc.base_layer.weight"], src["fc.base_layer.bias"]
    return {"fc.weight": weight + change, "fc.bias": bias, "stem.weight": src["stem.weight"]}


TRIALS = [
    weight_map_trial(merge_lora(), {**BASE, **OURS}, BASE, name="ours", examples=4),
    weight_map_trial(
        merge_lora(alpha=6.0),
        PEFT,
        drawn(fc__weight=(4, 5), fc__bias=(4,), stem__weight=(3,)),
        reference=slow,
        name="peft",
        examples=4,
    ),
]


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[0], only=["one-graph"]).failed


@pytest.mark.parametrize("alpha", [None, 4.0, torch.tensor(3.0)])
def test_as_our_reparametrisation(alpha: float | Tensor | None) -> None:
    adapt = tt.adapters.lora(".*weight", rank=2, alpha=alpha)
    merged = merge_lora(alpha=alpha).apply({**BASE, **OURS}, {})
    wanted = adapt.apply(BASE, OURS)
    assert list(merged) == list(wanted)
    torch.testing.assert_close(merged, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["", "base_model.model."])
@pytest.mark.parametrize("adapter", ["", "default."])
@pytest.mark.parametrize("around", ["", "base_layer."])
def test_as_the_two_branches_of_peft(wrapper: str, adapter: str, around: str) -> None:
    parts = drawn(w=(4, 5), bias=(4,), a=(3, 5), b=(4, 3), x=(7, 5))
    src = {
        f"{wrapper}layers.0.q.{around}weight": parts["w"],
        f"{wrapper}layers.0.q.{around}bias": parts["bias"],
        f"{wrapper}layers.0.q.lora_A.{adapter}weight": parts["a"],
        f"{wrapper}layers.0.q.lora_B.{adapter}weight": parts["b"],
    }
    new = merge_lora(alpha=12).apply(src, {})
    assert list(new) == ["layers.0.q.weight", "layers.0.q.bias"]
    x = parts["x"]
    wanted = F.linear(x, parts["w"], parts["bias"]) + 12 / 3 * F.linear(F.linear(x, parts["a"]), parts["b"])
    torch.testing.assert_close(F.linear(x, *new.values()), wanted, rtol=1e-9, atol=1e-9)


def test_an_adapter_file_beside_its_base() -> None:
    parts = drawn(w=(4, 5), a=(3, 5), b=(4, 3))
    file = {"base_model.model.q.lora_A.weight": parts["a"], "base_model.model.q.lora_B.weight": parts["b"]}
    new = merge_lora().apply({"q.weight": parts["w"], **file}, {})
    torch.testing.assert_close(new, {"q.weight": parts["w"] + parts["b"] @ parts["a"]})


def test_convolutions_of_peft() -> None:
    parts = drawn(w=(6, 4, 3, 3), a=(2, 4, 3, 3), b=(6, 2, 1, 1), x=(2, 4, 8, 8))
    src = {"c.weight": parts["w"], "c.lora_A.weight": parts["a"], "c.lora_B.weight": parts["b"]}
    new = merge_lora(alpha=4).apply(src, {})["c.weight"]
    wanted = F.conv2d(parts["x"], parts["w"]) + 2 * F.conv2d(F.conv2d(parts["x"], parts["a"]), parts["b"])
    torch.testing.assert_close(F.conv2d(parts["x"], new), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adapter", ["", ".default"])
def test_embeddings_of_peft(adapter: str) -> None:
    parts = drawn(w=(9, 5), a=(2, 9), b=(5, 2))
    src = {
        "e.base_layer.weight": parts["w"],
        f"e.lora_embedding_A{adapter}": parts["a"],
        f"e.lora_embedding_B{adapter}": parts["b"],
    }
    new = merge_lora(alpha=3).apply(src, {})["e.weight"]
    rows = torch.tensor([1, 8, 0])
    wanted = F.embedding(rows, parts["w"]) + 1.5 * F.embedding(rows, parts["a"].T) @ parts["b"].T
    torch.testing.assert_close(new[rows], wanted, rtol=1e-9, atol=1e-9)


def test_alphas_of_their_own() -> None:
    new = merge_lora(alpha={"fc.weight": 8.0}).apply({**BASE, **OURS}, {})
    each = tt.adapters.lora("fc.*", rank=2, alpha=8.0).apply(BASE, {k: x for k, x in OURS.items() if "fc" in k})
    assert torch.equal(new["fc.weight"], each["fc.weight"])
    assert torch.equal(new["conv.weight"], merge_lora().apply({**BASE, **OURS}, {})["conv.weight"])


def test_alpha_is_learned() -> None:
    src = {name: x.float() for name, x in {**BASE, **OURS}.items() if "fc" in name}
    reparam = tt.as_reparam(merge_lora, src, alpha=2.0)
    base = {"fc.weight": src["fc.weight"], "fc.bias": src["fc.bias"]}

    def total(alpha: Tensor) -> Tensor:
        return reparam.apply(base, {"alpha": alpha})["fc.weight"].sum()

    slope = torch.func.grad(total)(torch.tensor(2.0))
    torch.testing.assert_close(slope, (src["fc.weight.lora_b"] @ src["fc.weight.lora_a"]).sum() / 2)


def test_half_precision() -> None:
    src = {"w": torch.ones(3, 4).bfloat16(), "w.lora_a": torch.ones(2, 4), "w.lora_b": torch.ones(3, 2)}
    new = merge_lora().apply(src, {})["w"]
    assert new.dtype == torch.bfloat16
    assert new[0, 0] == 3


A, B = torch.ones(2, 5), torch.ones(4, 2)
W = {"fc.weight": torch.ones(4, 5)}


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("src", "message"),
    [
        (W, "the source has no factors"),
        ({**W, "fc.lora_A.weight": A}, "'fc.lora_A.weight' is one factor, and the other is not there"),
        ({**W, "fc.weight.lora_b": B}, "'fc.weight.lora_b' is one factor, and the other is not there"),
        ({**W, "fk.lora_A.weight": A, "fk.lora_B.weight": B}, "'fk.lora_A.weight' changes no tensor .* 'fc.weight'"),
        (
            {**W, "fc.lora_A.x.weight": A, "fc.lora_B.x.weight": B, "fc.lora_A.y.weight": A, "fc.lora_B.y.weight": B},
            "two adapters change 'fc.weight', 'fc.lora_A.x.weight' and 'fc.lora_A.y.weight'; drop one",
        ),
        ({**W, "fc.lora_A.x.weight": A, "fc.lora_B.y.weight": B}, "are of two adapters"),
        (
            {**W, "fc.lora_A.weight": B.T, "fc.lora_B.weight": A.T},
            r"'fc.lora_B.weight' \(5, 2\) float32 times 'fc.lora_A.weight' \(2, 4\) float32 is no change of 'fc.w",
        ),
        ({**W, "fc.lora_magnitude_vector.weight": A}, "'fc.lora_magnitude_vector.weight' is no factor"),
        ({**W, "fc.lora_B.default.bias": A}, "'fc.lora_B.default.bias' is no factor"),
        ({**W, "fc.base_layer.weight": A}, "both 'fc.weight' and 'fc.base_layer.weight' would become 'fc.weight'"),
    ],
)
def test_mistakes_are_named(src: dict[str, Tensor], message: str, dry: bool) -> None:
    map = merge_lora()
    with pytest.raises(TransferError, match=f"merge_lora: .*{message}"):
        (map.plan if dry else map.apply)(src, {})


def test_alpha_for_nothing() -> None:
    with pytest.raises(TransferError, match=r"merge_lora: alpha for 'fk.weight', which nothing changes; did you mean"):
        merge_lora(alpha={"fk.weight": 1.0}).plan({**BASE, **OURS}, {})
