"""Renaming: by name, by prefix, by expression."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from ttransfer._errors import TransferError
from ttransfer.core._maps import Made, WeightMap
from ttransfer.weights import rename

SOURCE = {
    "module.conv.weight": torch.ones(2, 3),
    "module.conv.bias": torch.ones(2),
    "module.conv2.weight": torch.ones(4),
    "fc": torch.ones(5),
}

CASES = [
    (rename({"fc": "head"}), ["module.conv.weight", "module.conv.bias", "module.conv2.weight", "head"]),
    (rename({"module.conv": "stem"}), ["stem.weight", "stem.bias", "module.conv2.weight", "fc"]),
    (
        rename({"module": "net", "module.conv": "stem", "module.conv.bias": "b"}),
        ["stem.weight", "b", "net.conv2.weight", "fc"],
    ),
    (rename({"fc": "module.fc", "module": "fc"}), ["fc.conv.weight", "fc.conv.bias", "fc.conv2.weight", "module.fc"]),
    (rename(r"module\.(.*)", r"\1"), ["conv.weight", "conv.bias", "conv2.weight", "fc"]),
    (
        rename(r"module\.(\w+)\.(\w+)", r"\2.\1"),
        ["weight.conv", "bias.conv", "weight.conv2", "fc"],
    ),
    (rename({"fc": "fc"}), list(SOURCE)),
    (rename({"module": ""}), ["conv.weight", "conv.bias", "conv2.weight", "fc"]),
    (rename({"module": "", "module.conv": "stem"}), ["stem.weight", "stem.bias", "conv2.weight", "fc"]),
    (rename({"module.conv": "", "module": "net"}), ["weight", "bias", "net.conv2.weight", "fc"]),
]


@pytest.mark.parametrize(("mapping", "names"), CASES)
def test_names(mapping: WeightMap, names: list[str]) -> None:
    new = mapping.apply(SOURCE, {})
    assert list(new) == names
    assert all(new[name] is tensor for name, tensor in zip(names, SOURCE.values(), strict=True))


@pytest.mark.parametrize(("mapping", "names"), CASES)
def test_plan_agrees(mapping: WeightMap, names: list[str]) -> None:
    like = {names[0]: torch.ones(3, 2), names[1]: torch.ones(2), "extra": torch.ones(1)}
    plan = mapping.plan({k: v.to("meta") for k, v in SOURCE.items()}, like)
    assert plan.made == {new: Made((old,)) for new, old in zip(names, SOURCE, strict=True)}
    assert plan.unused == {}
    assert plan.missing == ("extra",)
    assert plan.mismatched == {names[0]: "source (2, 3), target (3, 2)"}


def test_gradient_goes_through() -> None:
    def loss(src: dict[str, Tensor]) -> Tensor:
        return (3 * rename({"fc": "head"}).apply(src, {})["head"]).sum()

    slope = grad(loss)(SOURCE)
    assert slope["fc"].tolist() == [3.0] * 5
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(grad(loss), backend="aot_eager", fullgraph=True)(SOURCE), slope)
    stacked = {k: torch.stack([v, v]) for k, v in SOURCE.items()}
    assert vmap(grad(loss))(stacked)["fc"].tolist() == [[3.0] * 5] * 2


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (rename({"modul": "net"}), "rename: the source has no 'modul'"),
        (rename({"module.con": "net"}), "the source has no 'module.con'; did you mean 'module.conv"),
        (rename("conv.*", "x"), "pattern 'conv.*' matches none of 4 names"),
        (rename({"module.conv2": "module.conv"}), "both 'module.conv.weight' and 'module.conv2.weight' would become"),
        (rename({"fc": ""}), "rename: 'fc' would become an empty name; tt.weights.drop leaves a tensor out"),
        (rename("(.*)fc", r"\1"), "rename: 'fc' would become an empty name"),
        (rename({"module.": ""}), "rename: the source has no 'module.'; a prefix is given without its dot, 'module'"),
        (rename({"module": "net."}), "'module.conv.weight' would become 'net..conv.weight', of which a part between"),
        (rename(r"module(.*)", r"\1"), "'module.conv.weight' would become '.conv.weight', of which a part between"),
        (rename("module.*", "one"), "both 'module.conv.weight' and 'module.conv.bias' would become 'one'"),
        (rename("module(", "x"), r"rename: cannot make 'x' of pattern 'module\('"),
        (rename("module.*", r"\2"), r"rename: cannot make '\\\\2' of pattern"),
    ],
)
def test_mistakes_are_named(mapping: WeightMap, message: str, dry: bool) -> None:
    with pytest.raises(TransferError, match=message):
        (mapping.plan if dry else mapping.apply)(SOURCE, {})


def test_arguments_that_do_not_go_together() -> None:
    with pytest.raises(TransferError, match="rename: wanted a mapping, or a pattern and what to make of it"):
        rename("fc")
    with pytest.raises(TransferError, match="rename: wanted a mapping"):
        rename({"fc": "head"}, "head")
    with pytest.raises(TransferError, match="rename: wanted a name for 'fc', got NoneType"):
        rename({"fc": None})  # type: ignore[dict-item]
