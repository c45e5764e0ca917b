"""Merged low-rank changes: against our own reparametrisation, and PEFT's two branches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    weight_map_trial(
        merge_lora(alpha=6.0),
        PEFT | drawn(fc__lora_magnitude_vector__default__weight=(4,)),
        drawn(fc__weight=(4, 5), fc__bias=(4,), stem__weight=(3,)),
        name="dora",
        examples=4,
    ),
]


@parametrize_with_checks(TRIALS)
def test_laws(check: Callable[[], None]) -> None:
    check()


def test_one_graph() -> None:
    assert not judge(TRIALS[0], only=["one-graph"]).failed
    assert not judge(TRIALS[2], only=["one-graph"]).failed


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


DORAS = {
    "fc": (drawn(fc__weight=(4, 5), fc__lora_A__weight=(2, 5), fc__lora_B__weight=(4, 2)), (4,), 0),
    "conv": (
        drawn(c__weight=(6, 4, 3, 2), c__lora_A__weight=(2, 4, 3, 2), c__lora_B__weight=(6, 2, 1, 1)),
        (1, 6, 1, 1),
        0,
    ),
    "conv1d": (drawn(c__weight=(6, 4, 3), c__lora_A__weight=(2, 4, 3), c__lora_B__weight=(6, 2, 1)), (1, 6, 1), 0),
    "table": (drawn(e__weight=(9, 5), e__lora_embedding_A=(2, 9), e__lora_embedding_B=(5, 2)), (5,), 1),
}


def slow_dora(src: dict[str, Tensor], axis: int) -> Tensor:
    """One output at a time, or one column of a table."""
    weight, a, b, m = src.values()
    change = 6.0 / 2 * (b.flatten(1) @ a.flatten(1))
    whole = weight + (change.T if axis else change).reshape(weight.shape)
    lengths = [sum(float(v) ** 2 for v in x.flatten()) ** 0.5 for x in whole.unbind(axis)]
    new = [m * x / length for m, x, length in zip(m.flatten(), whole.unbind(axis), lengths, strict=True)]
    return torch.stack(new, axis)


@pytest.mark.parametrize("suffix", ["", ".weight", ".default", ".default.weight"])
@pytest.mark.parametrize("kind", DORAS)
def test_dora(kind: str, suffix: str) -> None:
    src, shape, axis = DORAS[kind]
    module = next(iter(src)).partition(".")[0]
    adapter = ".default" if "default" in suffix else ""
    src = {
        name.replace(".weight", f"{adapter}.weight") if ".lora_A." in name or ".lora_B." in name
        else name + adapter if "embedding" in name else name: x
        for name, x in src.items()
    }  # fmt: skip
    lengths = drawn(m=shape)["m"].abs() + 0.5
    src[f"{module}.lora_magnitude_vector{suffix}"] = lengths
    map = merge_lora(alpha=6.0)
    new = map.apply(src, {})
    assert list(new) == [f"{module}.weight"]
    torch.testing.assert_close(new[f"{module}.weight"], slow_dora(src, axis), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(new[f"{module}.weight"].movedim(axis, 0).flatten(1).norm(dim=1), lengths.flatten())
    made = map.plan(src, {}).made[f"{module}.weight"]
    assert made.sources == tuple(src)
    what = "column" if axis else "output"
    assert made.how == f"low-rank change added, times 6/2, then each {what} of the length that DoRA gives it"


def test_as_peft_merges_dora() -> None:
    peft = pytest.importorskip("peft")
    parts = {"e": nn.Embedding(7, 5), "c": nn.Conv2d(3, 6, 3), "g": nn.Conv1d(4, 4, 2), "fc": nn.Linear(5, 4)}
    net = nn.ModuleDict(parts).double()
    for use_dora in (False, True):
        config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=list(parts), use_dora=use_dora)
        tuned = peft.get_peft_model(copy.deepcopy(net), config).double()
        with torch.no_grad():
            for name, x in tuned.named_parameters():
                if "lora" in name:
                    x.add_(torch.rand(x.shape, generator=torch.Generator().manual_seed(len(name)), dtype=x.dtype))
        inside = {name: x.clone() for name, x in tuned.state_dict().items()}
        file = {**net.state_dict(), **peft.utils.get_peft_model_state_dict(tuned)}
        file = {name: x.clone() for name, x in file.items()}
        wanted = tuned.merge_and_unload().state_dict()
        for src in (inside, file):
            torch.testing.assert_close(merge_lora(alpha=6.0).apply(src, {}), dict(wanted), rtol=1e-9, atol=1e-9)


def test_as_the_authors_of_dora_name_it() -> None:
    src, _, _ = DORAS["fc"]
    m = drawn(m=(4, 1))["m"]
    new = merge_lora(alpha=6.0).apply({**src, "fc.weight_m_wdecomp.weight": m}, {})
    torch.testing.assert_close(new["fc.weight"], slow_dora({**src, "m": m}, 0), rtol=1e-9, atol=1e-9)


def test_dora_of_nothing_and_in_half() -> None:
    src = {**DORA, "fc.lora_magnitude_vector": 2 * M, "fc.lora_B.weight": torch.zeros(4, 2)}
    dead = {**src, "fc.weight": torch.cat([torch.zeros(1, 5), torch.ones(3, 5)])}

    def total(weight: Tensor) -> Tensor:
        return merge_lora().apply({**dead, "fc.weight": weight}, {})["fc.weight"].sum()

    new = merge_lora().apply(dead, {})["fc.weight"]
    assert new[0].tolist() == [0.0] * 5
    torch.testing.assert_close(new[1:], torch.full((3, 5), 2 / 5**0.5))
    assert torch.func.grad(total)(dead["fc.weight"]).isfinite().all()
    half = merge_lora().apply({name: x.half() * (300 if name == "fc.weight" else 1) for name, x in src.items()}, {})
    torch.testing.assert_close(half["fc.weight"], torch.full((4, 5), 2 / 5**0.5).half())


def test_the_plan_says_how_much() -> None:
    src = {**BASE, **OURS}
    for alpha, told in ((None, "2/2"), (3.5, "3.5/2"), ({"fc.weight": 8.0}, "8/2"), (torch.tensor(3.0), "alpha/2")):
        made = merge_lora(alpha=alpha).plan(src, {}).made
        assert made["fc.weight"].how == f"low-rank change added, times {told}"


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
M = torch.ones(4)
DORA = {**W, "fc.lora_A.weight": A, "fc.lora_B.weight": B}


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
        ({**W, "fc.lora_magnitude.weight": A}, "'fc.lora_magnitude.weight' is no factor"),
        (
            {**DORA, "fk.lora_magnitude_vector": M},
            "'fk.lora_magnitude_vector' is the length of 'fk.weight', which no",
        ),
        (
            {**DORA, "fc.lora_magnitude_vector": M[:3]},
            r"'fc.lora_magnitude_vector' \(3,\) float32 wanted 4 lengths",
        ),
        ({**DORA, "fc.lora_magnitude_vector": M.reshape(2, 2)}, r"\(2, 2\) float32 wanted 4 lengths for 'fc.weight'"),
        (
            {**DORA, "fc.lora_magnitude_vector.x.weight": M},
            "'fc.lora_A.weight' and 'fc.lora_magnitude_vector.x.weight'",
        ),
        (
            {**DORA, "fc.lora_magnitude_vector": M, "fc.lora_magnitude_vector.weight": M},
            "two adapters change 'fc.weight', 'fc.lora_magnitude_vector' and 'fc.lora_magnitude_vector.weight'; drop",
        ),
        (
            {**DORA, "fc.weight": W["fc.weight"].to(torch.int8)},
            r"'fc.weight' is \(4, 5\) int8, which is quantised",
        ),
        (
            {**DORA, "fc.weight": torch.ones(10, 1).to(torch.uint8)},
            r"'fc.weight' is \(10, 1\) uint8, which is",
        ),
        (
            {**DORA, "fc.weight": W["fc.weight"].to(torch.float8_e4m3fn)},
            r"'fc.weight' is \(4, 5\) float8_e4m3fn, which is quantised .* dequantise it first",
        ),
        (
            {**DORA, "fc.lora_A.weight": A.long()},
            r"'fc.lora_A.weight' is \(2, 5\) int64, which is quantised or",
        ),
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


@pytest.mark.parametrize("dynamic", [None, True])
def test_other_numbers_compile_too(dynamic: bool | None) -> None:
    compiled = torch.compile(
        lambda src, alpha: merge_lora(alpha=alpha).apply(src, {}), fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for alpha in (2.0, 3.0, 6.0):
        torch.testing.assert_close(compiled(DORA, alpha), merge_lora(alpha=alpha).apply(DORA, {}))


def test_in_a_compiled_step() -> None:
    src = {name: x.float() for name, x in {**BASE, **OURS}.items() if name.startswith("fc")}
    merge = tt.as_reparam(lambda alpha: merge_lora(alpha=alpha), src, alpha=3.0)
    plain = nn.Sequential()
    plain.add_module("fc", nn.Linear(5, 4))
    net = tt.reparam(tt.functional(plain), merge)
    term = tt.term(F.mse_loss, "net(data)", "data.y")
    train = tt.step({"net": net}, tt.optim.sgd(0.1), trainable=("net",), fit=term)
    batch = {"data": {"x": torch.ones(3, 5), "y": torch.ones(3, 4)}}
    state = train.init(batch)
    wanted, _ = train(state, batch)
    found, _ = tt.compile(train, backend="aot_eager")(state, batch)
    torch.testing.assert_close(found.trainable["net"]["alpha"], wanted.trainable["net"]["alpha"])
    assert wanted.trainable["net"]["alpha"].item() != 3.0


@pytest.mark.parametrize("alpha", ["x", {"fc.weight": None}, [1.0]])
def test_alpha_is_a_number(alpha: Any) -> None:
    with pytest.raises(TransferError, match="merge_lora: wanted a number or a tensor for 'alpha', got"):
        merge_lora(alpha=alpha)
