"""Losses of ours beside the same losses of other packages, at realistic sizes."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import ttransfer as tt

Loss = Callable[..., Tensor]
TORCHDISTILL, ZHIJIAN, MODELOPT, TORCH = "torchdistill", "zhijian", "modelopt", "torch"


class Pair(NamedTuple):
    """A loss of ours and a peer's.

    Attributes:
        name: of ours.
        ours: it.
        peer: the package.
        make: -> the peer's, called with the same tensors.
        shapes: of the tensors; the first gets a gradient.
        factor: ours by the peer's value.
        loops: the peer goes over rows or channels in Python; unrolled, its graph takes many minutes to compile, so that
            its eager time stands for its compiled one.
    """

    name: str
    ours: Loss
    peer: str
    make: Callable[[], Loss]
    shapes: tuple[tuple[int, ...], ...]
    factor: float = 1.0
    loops: bool = False


def made(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Make a peer's loss."""
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def tapped(name: str, *args: Any, **kwargs: Any) -> Loss:
    """A loss of torchdistill, which reads what hooks saw at a path, here called x."""
    loss = made("torchdistill.losses.mid_level", name, *args, **kwargs)
    return lambda s, t: loss({"x": {"output": s}}, {"x": {"output": t}})


def zhijian(module: str, name: str, *args: Any, **kwargs: Any) -> Loss:
    return made(f"zhijian.models.kd.loss.{module}", name, *args, **kwargs)


def labels(classes: int, n: int) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(0))


ONE = {"pair": {side: {"io": "output", "path": "x"} for side in ("student", "teacher")}}
ENDS = ("x", "output", "x", "output")
BY_MODULE = {
    f"{side}_module_{end}": value for side in ("student", "teacher") for end, value in (("path", "x"), ("io", "output"))
}
LOGITS, FEATURES, MAPS = ((128, 1000),) * 2, ((64, 512),) * 2, ((32, 64, 16, 16),) * 2
losses, partial = tt.losses, functools.partial
# Made here, for a graph can make no generator.
OF_8, OF_100, OF_1000 = labels(8, 64), labels(100, 128), labels(1000, 128)


def hcl() -> Loss:
    loss = made("torchdistill.losses.mid_level", "HierarchicalContextLoss", *ENDS)
    return lambda s, t: loss({"x": {"output": (s, None)}}, {"x": {"output": t}})


def irg() -> Loss:
    loss = zhijian("irg", "IRG", 0.0, 1.0, 0.0)
    return lambda s, t: loss(*([x[:, :, None, None], x[:, :, None, None], x, x[:, :1]] for x in (s, t)))


def vid() -> Loss:
    loss = made("torchdistill.losses.mid_level", "VIDLoss", ONE)
    return lambda m, t, v: loss({"x": {"output": (m, v.abs()[:, None, None])}}, {"x": {"output": t}})


def bss() -> Loss:
    return made("zhijian.models.regularization.loss.bss", "BSS", 1)


def cckd() -> Loss:
    """It takes features of length 1."""
    loss = tapped("CCKDLoss", "x", "x", {"type": "gaussian", "gamma": 0.4, "max_p": 2}, "batchmean")
    return lambda s, t: loss(F.normalize(s), F.normalize(t))


def kta() -> Loss:
    loss = made("torchdistill.losses.mid_level", "KTALoss", knowledge_translator_path="t", feature_adapter_path="s")
    return lambda s, t: loss({"s": {"output": s}}, {"t": {"output": t}})


def pad() -> Loss:
    loss = made("torchdistill.losses.mid_level", "PADL2Loss", "s", "t", module_path="v")
    return lambda s, t, v: loss({"s": {"output": s}, "v": {"output": v}}, {"t": {"output": t}})


def sskd() -> Loss:
    """The part on similarities; the rest of its loss takes logits, given once, and weighs nothing."""
    paths = {f"{side}_{end}_module_path": end for side in ("student", "teacher") for end in ("linear", "ss")}
    temperatures = {"kl_temp": 4.0, "ss_temp": 0.5, "tf_temp": 4.0, "ss_ratio": 0.75, "tf_ratio": 0.75}
    loss = made("torchdistill.losses.mid_level", "SSKDLoss", **paths, **temperatures, loss_weights=[0.0, 0.0, 1.0, 0.0])
    logits, classes = torch.zeros(256, 10), labels(10, 64)

    def call(s: Tensor, t: Tensor) -> Tensor:
        z = logits.to(s.dtype)
        # It leaves open which of equal ranks come first; ours keeps their order.
        sort, torch.argsort = torch.argsort, functools.partial(torch.argsort, stable=True)
        try:
            return loss(*({"linear": {"output": z}, "ss": {"output": x}} for x in (s, t)), classes)
        finally:
            torch.argsort = sort

    return call


def mutual() -> Loss:
    loss = zhijian("dml", "DML")
    return lambda a, b: loss(a, b.detach()) + loss(b.detach(), a.detach())


def delta() -> Loss:
    loss = made("zhijian.models.regularization.loss.delta", "DELTA", [])
    return lambda s, t: loss.reg_fea_map([t], [s])


def irg_transform() -> Loss:
    loss = zhijian("irg", "IRG", 0.0, 0.0, 1.0)
    return lambda s, s2, t, t2: loss([s, s2, s.flatten(1), s[:, 0, 0]], [t, t2, t.flatten(1), t[:, 0, 0]])


def refilled(stage: int, temperature: float, how: Callable[..., Tensor]) -> Loss:
    """It moves what it makes to a GPU, whatever there is."""
    loss = zhijian("refilled", f"Refilled_stage{stage}", temperature)

    def call(s: Tensor, t: Tensor) -> Tensor:
        moved, torch.Tensor.cuda = torch.Tensor.cuda, lambda self, *_: self
        try:
            return how(loss, s, t)
        finally:
            torch.Tensor.cuda = moved

    return call


def memories(size: int, negatives: int, dim: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    first, second = (F.normalize(torch.randn(size, dim, generator=g)) for _ in range(2))
    own = torch.arange(n)[:, None]
    return first, second, torch.cat([own, torch.randint(n, size, (n, negatives), generator=g)], 1)


CRD = memories(50_000, 4096, 128, 64)


def crd_peer() -> Loss:
    loss = made("torchdistill.losses.mid_level", "CRDLoss", "norm", "empty", "norm", 128, 50_000, 4096, 50_000, eps=0.0)
    read = {"empty": {"input": {"pos_idx": CRD[2][:, 0], "contrast_idx": CRD[2]}}}

    def call(s: Tensor, t: Tensor) -> Tensor:
        loss.to(s.dtype).memory_v1.copy_(CRD[0])
        loss.memory_v2.copy_(CRD[1])
        loss.params[2:4] = -1
        s, t = F.normalize(s), F.normalize(t)
        return loss({"norm": {"output": s}, **read}, {"norm": {"output": t}}).squeeze()

    return call


def crd_ours() -> Loss:
    """The term, its memories set as the peer's are; the layers are the identity."""
    term = tt.terms.crd("a(d)", "b(d)", "d.i", size=50_000, negatives="d.o", dim=128)
    tau, mu, zero = torch.tensor(0.07), torch.tensor(0.5), torch.tensor(0)

    def call(s: Tensor, t: Tensor) -> Tensor:
        own = {
            f"{side}.{k}": x
            for side in ("student", "teacher")
            for k, x in (("weight", torch.eye(128, dtype=s.dtype)), ("bias", s.new_zeros(128)))
        }
        memory = {"student": CRD[0].to(s.dtype), "teacher": CRD[1].to(s.dtype), "log_z": s.new_zeros(2), "seen": zero}
        numbers = {"temperature": tau.to(s.dtype), "momentum": mu}
        return term.apply(own, memory, numbers, zero, [s, t, CRD[2][:, 0], CRD[2][:, 1:]])[0]

    return call


PAIRS = (
    Pair(
        "losses.kd",
        losses.kd,
        MODELOPT,
        lambda: made("modelopt.torch.distill", "LogitsDistillationLoss", 4.0, "batchmean"),
        LOGITS,
    ),
    Pair("losses.logit_mse", losses.logit_mse, "torch", lambda: F.mse_loss, LOGITS),
    Pair(
        "losses.dist",
        losses.dist,
        TORCHDISTILL,
        lambda: tapped("DISTLoss", **BY_MODULE, beta=1.0, gamma=1.0, tau=1.0),
        LOGITS,
    ),
    # Without labels it drops T².
    Pair(
        "losses.standardized_kd",
        losses.standardized_kd,
        TORCHDISTILL,
        lambda: tapped("LogitStdKDLoss", **BY_MODULE, temperature=2, alpha=0.0),
        LOGITS,
        4.0,
    ),
    Pair("losses.fitnet", losses.fitnet, ZHIJIAN, lambda: zhijian("fitnet", "Hint"), MAPS),
    Pair(
        "losses.at", partial(losses.at, variant="code"), TORCHDISTILL, lambda: tapped("ATLoss", ONE, mode="code"), MAPS
    ),
    Pair("losses.nst", losses.nst, ZHIJIAN, lambda: zhijian("nst", "NST"), MAPS),
    Pair("losses.ab", losses.ab, TORCHDISTILL, lambda: tapped("AltActTransferLoss", ONE, 1.0, "mean"), MAPS),
    Pair("losses.hcl", losses.hcl, TORCHDISTILL, hcl, MAPS),
    # It divides by the number of rows once more.
    Pair(
        "losses.ickd", partial(losses.ickd, variant="code"), TORCHDISTILL, lambda: tapped("ChSimLoss", ONE), MAPS, 32.0
    ),
    Pair(
        "losses.affinity",
        partial(losses.affinity, variant="code"),
        TORCHDISTILL,
        lambda: tapped("AffinityLoss", "x", "x"),
        ((8, 32, 14, 14),) * 2,
    ),
    Pair("losses.ft", losses.ft, ZHIJIAN, lambda: zhijian("ft", "FT"), MAPS),
    Pair("losses.vid", lambda m, t, v: losses.vid(m, t, v.abs()), TORCHDISTILL, vid, (*MAPS, (64,))),
    Pair("losses.sp", losses.sp, ZHIJIAN, lambda: zhijian("sp", "SP"), FEATURES),
    Pair("losses.pkt", partial(losses.pkt, variant="code"), TORCHDISTILL, lambda: tapped("PKTLoss", *ENDS), FEATURES),
    Pair("losses.rkd", losses.rkd, TORCHDISTILL, lambda: tapped("RKDLoss", "x", "x", 25.0, 50.0, "mean"), FEATURES),
    Pair("losses.cc", losses.cc, ZHIJIAN, lambda: zhijian("cc", "CC", gamma=0.4, P_order=2), FEATURES),
    Pair(
        "losses.skd_instance",
        losses.skd_instance,
        TORCHDISTILL,
        lambda: tapped("SKDInstanceLoss", *ENDS, mode="paper"),
        FEATURES,
    ),
    Pair("losses.irg", losses.irg, ZHIJIAN, irg, FEATURES),
    Pair("losses.bss", losses.bss, ZHIJIAN, bss, ((32, 512),)),
    # Theirs is the root, divided by n once more.
    Pair("losses.cc", lambda s, t: losses.cc(s, t).sqrt() / 256, TORCHDISTILL, cckd, ((256, 512),) * 2, loops=True),
    Pair("losses.rkd", losses.rkd, ZHIJIAN, lambda: zhijian("rkd", "RKD", 25.0, 50.0), FEATURES),
    Pair("losses.ab", losses.ab, ZHIJIAN, lambda: zhijian("ab", "AB", 1.0), MAPS, 64.0 * 16 * 16),
    Pair(
        "losses.pkt",
        partial(losses.pkt, variant="code", eps=1e-6),
        ZHIJIAN,
        lambda: zhijian("pkt", "PKTCosSim"),
        FEATURES,
    ),
    Pair("losses.fsp", losses.fsp, ZHIJIAN, lambda: zhijian("fsp", "FSP"), ((32, 64, 16, 16),) * 4, 64.0 * 64.0),
    Pair("losses.kta", losses.kta, TORCHDISTILL, kta, MAPS),
    Pair("losses.pad", losses.pad, TORCHDISTILL, pad, ((64, 512),) * 3),
    Pair("losses.sskd", losses.sskd, TORCHDISTILL, sskd, ((256, 128),) * 2),
    Pair(
        "losses.skd_direction",
        losses.skd_direction,
        TORCHDISTILL,
        lambda: tapped("SKDDirectionLoss", *ENDS, mode="paper"),
        FEATURES,
    ),
    Pair("losses.mutual", losses.mutual, ZHIJIAN, mutual, LOGITS),
    Pair("losses.delta", losses.delta, ZHIJIAN, delta, MAPS, 1 / (32 * 256)),
    Pair("losses.irg_transform", losses.irg_transform, ZHIJIAN, irg_transform, ((32, 64, 16, 16), (32, 128, 8, 8)) * 2),
    Pair(
        "losses.refilled",
        lambda s, t: losses.refilled(s, t, OF_8),
        ZHIJIAN,
        lambda: refilled(1, 4.0, lambda loss, s, t: loss(s, t, OF_8)),
        FEATURES,
        1 / 500,
    ),
    Pair(
        "losses.refilled_local",
        lambda s, t: losses.refilled_local(s, t, OF_100),
        ZHIJIAN,
        lambda: refilled(2, 2.0, lambda loss, s, t: loss(s, t, 100, OF_100)),
        ((128, 100),) * 2,
    ),
    Pair(
        "losses.label_smoothing",
        lambda z: losses.label_smoothing(z, OF_1000),
        TORCH,
        lambda: lambda z: F.cross_entropy(z, OF_1000, label_smoothing=0.1),
        LOGITS[:1],
    ),
    Pair("terms.crd", crd_ours(), TORCHDISTILL, crd_peer, ((64, 128),) * 2),
)
