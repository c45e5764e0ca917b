"""Two nets of different normalisation on one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

import ttransfer as tt
from ttransfer import TransferError
from ttransfer_ext import timm as ext
from ttransfer_ext import torchvision as tv
from ttransfer_ext._images import DataConfig, renormalise, renormalised
from ttransfer_ext._needed import needed

HERE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
THERE = DataConfig((8, 8), (0.5,), (0.25,), "bicubic", 1.0)
RAW = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def normal(x: Tensor, mean: Any, std: Any) -> Tensor:
    """As a data loader does it."""
    planes = [(x[:, i] - mean[i % len(mean)]) / std[i % len(std)] for i in range(x.shape[1])]
    return torch.stack(planes, 1)


def net(width: int) -> nn.Module:
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, 5)).double()


def test_it_is_what_the_data_would_be() -> None:
    x = normal(RAW, *HERE)
    wanted = normal(RAW, THERE.mean, THERE.std)
    torch.testing.assert_close(renormalise(x, given=HERE, wanted=THERE), wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(renormalise(wanted, given=THERE, wanted=HERE), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(renormalise(x, given=HERE, wanted=([0.0], [1.0])), RAW, rtol=0, atol=1e-14)
    assert renormalise(x.bfloat16(), given=HERE, wanted=THERE).dtype == torch.bfloat16
    volumes = RAW[:, :1, None]
    torch.testing.assert_close(renormalise(volumes, given=([0.5], [0.5]), wanted=([0.0], [1.0])), volumes / 2 + 0.5)


def test_under_transforms_and_in_one_graph() -> None:
    x = normal(RAW, *HERE)

    def total(x: Tensor) -> Tensor:
        return renormalise(x, given=HERE, wanted=THERE).square().sum()

    wanted = torch.stack([total(one[None]) for one in x])
    torch.testing.assert_close(vmap(lambda one: total(one[None]))(x), wanted)
    slope = 2 * normal(RAW, THERE.mean, THERE.std) * torch.tensor(HERE[1]).double().view(-1, 1, 1) / 0.25
    torch.testing.assert_close(grad(total)(x), slope)
    torch.compiler.reset()
    compiled = torch.compile(vmap(grad(lambda one: total(one[None]))), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), slope)


def train(student: nn.Module, teacher: tt.Functional, kd: str) -> tt.Step:
    return tt.step(
        {"student": tt.functional(student), "teacher": teacher},
        tt.optim.sgd(0.1),
        trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", kd, temperature=2.0),
        hint=tt.term(F.mse_loss, "student(source).0", tt.read("student(source).0") | tt.detach),
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_teacher_reads_the_students_batch(compiled: bool) -> None:
    student, teacher = net(4), net(6)
    x, y = normal(RAW, *HERE), torch.arange(4)
    batch = {"source": {"x": x, "y": y}}
    both = train(
        student, renormalised(tt.functional(teacher, mode="eval"), given=HERE, wanted=THERE), "teacher(source)"
    )
    apart = train(student, tt.functional(teacher, mode="eval"), "teacher(data)")
    two = {**batch, "data": {"x": normal(RAW, THERE.mean, THERE.std)}}
    if compiled:
        torch.compiler.reset()
        both = tt.compile(both, backend="aot_eager")
    one, other = both.init(batch, seed=0), apart.init(two, seed=0)
    for _ in range(2):
        one, logs = both(one, batch)
        other, wanted = apart(other, two)
    torch.testing.assert_close(logs["kd"], wanted["kd"], rtol=0, atol=1e-12)
    for name, value in other.trainable["student"].items():
        torch.testing.assert_close(one.trainable["student"][name], value, rtol=0, atol=1e-12)


def test_names_taps_and_other_inputs_are_the_nets_own() -> None:
    plain = tt.functional(net(4), inputs=("image",))
    around = renormalised(plain, given=HERE, wanted=THERE)
    assert around.layout is plain.layout
    assert around.inputs == ("image",)
    params, buffers = around.init(torch.Generator())
    tapped = around.bind(taps=[tt.read("n(d).0:in").path.tap])(params, buffers, normal(RAW, *HERE))
    torch.testing.assert_close(tapped.taps["0:in"], normal(RAW, THERE.mean, THERE.std), rtol=0, atol=1e-13)
    with pytest.raises(TransferError, match=r"renormalised: the net takes no 'x'.*image"):
        renormalised(plain, given=HERE, wanted=THERE, field="x")

    two = tt.functional(nn.Bilinear(3, 2, 2).double(), inputs=("a", "b"))
    a, b = RAW[:, :, 0, 0], RAW[:, :2, 1, 1]
    params, buffers = two.init(torch.Generator())
    got = renormalised(two, given=([0.0], [1.0]), wanted=([0.5], [0.5]), field="b").apply(params, buffers, a, b).value
    torch.testing.assert_close(got, two.apply(params, buffers, a, 2 * b - 1).value)


def test_refusals() -> None:
    with pytest.raises(TransferError, match=r"wanted real pictures .* got \(2, 3\) uint8"):
        renormalise(torch.zeros(2, 3, dtype=torch.uint8), given=HERE, wanted=THERE)
    with pytest.raises(TransferError, match=r"given has a mean of 3 channels, the pictures are \(2, 1, 4\) float32"):
        renormalise(torch.zeros(2, 1, 4), given=HERE, wanted=THERE)
    with pytest.raises(TransferError, match=r"wanted has a std of 0.0"):
        renormalise(torch.zeros(2, 1, 4), given=THERE, wanted=([0.0], [0.0]))


def test_both_packages_have_it() -> None:
    assert ext.renormalised is tv.renormalised is renormalised
    assert ext.DataConfig is tv.DataConfig is DataConfig


def test_what_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, use in (("timm", ext.model), ("torchvision.models", tv.model)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(TransferError, match=rf"{name.partition('.')[0]} is needed and not installed: pip install"):
            use("resnet18")
    # What fails inside a package that is there is its own error.
    monkeypatch.setattr(
        "importlib.import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name="other"))
    )
    with pytest.raises(ModuleNotFoundError):
        needed("timm", "vision")
