"""What the domain distances refuse, in words, and the dtype they compute in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ttransfer import align
from ttransfer._errors import TransferError
from ttransfer.align._check import classes_of, features, in_range, row_labels, rows_of, whole

DISTANCES = [align.mmd, align.mmd_unbiased, align.mmd_linear, align.coral]


@pytest.mark.parametrize(
    ("source", "target", "dtype"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_dtype(source: torch.dtype, target: torch.dtype, dtype: torch.dtype) -> None:
    pair = features("distance", torch.zeros(2, 3, dtype=source), torch.zeros(4, 3, dtype=target), rows=1)
    assert [x.dtype for x in pair] == [dtype, dtype]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2), r"source \(4, 3, 2, 2\) float32 .*pool the map first"),
        (torch.zeros(4, 3), torch.zeros(4, 3, 2), r"target \(4, 3, 2\) float32; pool the map first"),
        (torch.zeros(4), torch.zeros(4), r"wanted features \(n, d\), got source \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 5), r"one width d, got source \(4, 3\) float32 and target \(4, 5\) float32"),
        (torch.zeros(4, 3), torch.zeros(4, 3).long(), r"wanted floating features.*target \(4, 3\) int64"),
        (torch.zeros(4, 3), torch.zeros(0, 3), r"wanted at least \d rows in each domain.*target \(0, 3\)"),
    ],
)
def test_refused(distance: Callable[..., Tensor], source: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(TransferError, match=rf"{distance.__name__}: .*{message}"):
        distance(source, target)


@pytest.mark.parametrize("distance", [align.mmd_unbiased, align.mmd_linear, align.coral])
def test_one_row_is_too_few_for_an_unbiased_estimate(distance: Callable[..., Tensor]) -> None:
    with pytest.raises(TransferError, match=r"wanted at least 2 rows in each domain, got source \(1, 3\)"):
        distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(TransferError, match=r"target \(1, 3\)"):
        distance(torch.zeros(4, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(3).long(), torch.zeros(4, 1).long()])
def test_labels_are_refused(labels: Tensor) -> None:
    with pytest.raises(TransferError, match=r"loss: wanted labels \(n,\) .*, got features \(4, 2\) float32 and labels"):
        row_labels("loss", torch.zeros(4, 2), labels)


def test_rows_of() -> None:
    assert rows_of("loss", torch.zeros(4, 2).bfloat16()).dtype == torch.float32
    for bad in (torch.zeros(4), torch.zeros(4, 2, 3, 3), torch.zeros(4, 2).long(), torch.zeros(0, 2)):
        with pytest.raises(TransferError, match=r"loss: wanted floating features \(n, d\), got"):
            rows_of("loss", bad)


X, Y, Z = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5, 3)
LABELLED: dict[str, Callable[[Tensor], Tensor]] = {
    "lmmd": lambda y: align.lmmd(X, Y, y, Z),
    "cst": lambda y: align.cst(X, Y, y, Z),
    "deepjdot": lambda y: align.deepjdot(X, Y, y, Z),
    "nearest_class_mean": lambda y: align.nearest_class_mean(Y, X, y, classes=3),
    "symnets_category": lambda y: align.symnets_category(X, X, y),
    "irm": lambda y: align.irm(X, y),
    "irm_unbiased": lambda y: align.irm_unbiased(X, y),
    "vrex": lambda y: align.vrex([X, X], [y, y]),
    "fishr": lambda y: align.fishr(X, X, y),
    "map_labels": lambda y: align.map_labels(y, torch.tensor([1, 0, 1])),
    "mixup": lambda y: align.mixup(X[:3], y[:3], ratio=0.5),
    "neighbourhood": lambda y: align.neighbourhood(X, y, align.Memory(X[:3], X[:3]), neighbours=1),
    "remember": lambda y: align.remember(align.Memory(X[:3], X[:3]), X, X, y).features,
}
LEFT_OUT = ("irm", "irm_unbiased", "vrex", "fishr", "map_labels", "lmmd")


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_no_class_are_named(name: str) -> None:
    fn = LABELLED[name]
    assert fn(torch.tensor([0, 1, 2, 0])).isfinite().all()
    with pytest.raises(TransferError, match=rf"{name}: wanted \w+ from 0 to 2.*, got 3 at \[1\]"):
        fn(torch.tensor([0, 3, 2, 0]))
    ignoring = torch.tensor([0, -100, 2, 0])
    if name in LEFT_OUT:
        assert fn(ignoring).isfinite().all()
    else:
        with pytest.raises(TransferError, match=rf"{name}: wanted \w+ from 0 to 2, got -100 at \[1\]"):
            fn(ignoring)


def test_labels_are_looked_at_only_where_they_can_be() -> None:
    wrong = torch.tensor([[0, 3], [1, 2]])

    def loss(y: Tensor) -> Tensor:
        classes_of("loss", 3, labels=y)
        return y.sum()

    assert torch.vmap(loss)(wrong).tolist() == [3, 3]
    torch.compiler.reset()
    assert torch.compile(loss, backend="eager", fullgraph=True)(wrong) == 6
    assert loss(wrong.to("meta")).shape == ()
    with pytest.raises(TransferError, match=r"got 3 at \[0, 1\]"):
        torch.vmap(lambda x: x * loss(wrong))(torch.ones(2))
    with pytest.raises(TransferError, match=r"got 3 at \[0, 1\]"):
        torch.func.grad(lambda x: x * loss(wrong))(torch.ones(()))
    classes_of("loss", 3, labels=wrong[:0])


def calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments that each public function takes."""
    x, y, head, rows = torch.randn(8, 4), torch.randn(6, 4), torch.randn(4, 3), torch.arange(8)
    p, one, other, matrix, labels = x.softmax(1), x[:, :1], y[:, :1], torch.eye(4), rows % 4
    memory = align.Memory(torch.nn.functional.normalize(x, dim=1), p)

    def risk(params: dict[str, Tensor], domain: Tensor) -> Tensor:
        return (params["w"] * domain).sum()

    pair: Any = dict.fromkeys(
        (
            "mmd",
            "mmd_unbiased",
            "mmd_linear",
            "coral",
            "coral_mean",
            "energy_distance",
            "sinkhorn_divergence",
            "rsd",
            "median_bandwidth",
            "bridge",
            "homm",
            "cmd",
        ),
        ((x, y), {}),
    )
    alone: Any = dict.fromkeys(
        (
            "afn",
            "afn_hard",
            "bnm",
            "bsp",
            "mcc",
            "sd",
            "diversity",
            "infomax",
            "pseudo_label",
            "tsallis",
            "osbp",
            "tsallis_balanced",
            "self_information",
            "class_weights",
            "entropy_weights",
            "normalize_features",
            "variance_gap",
        ),
        ((x,), {}),
    )
    views: Any = dict.fromkeys(
        (
            "consistency",
            "uda",
            "fixmatch",
            "mcd",
            "symnets_confusion",
            "symnets_entropy",
            "multilinear",
            "shot_labels",
            "atdoc",
            "atdoc_normalized",
            "self_ensembling",
        ),
        ((x, p), {}),
    )
    critics: Any = dict.fromkeys(("domain_adversarial", "domain_confusion", "wdgrl"), ((one, other), {}))
    risks: Any = dict.fromkeys(("irm", "irm_unbiased", "vrex", "domain_risks"), ((x, labels), {}))
    return {
        **pair,
        **alone,
        **views,
        **critics,
        **risks,
        "adda": ((one,), {}),
        "atdoc_nc": ((x, x, x[:4]), {}),
        "cdd": ((x, y, labels, labels[:6]), {}),
        "class_matrix": ((labels,), {"classes": 4}),
        "cst": ((x, y, labels, y), {}),
        "deepjdot": ((x, y, labels, y), {}),
        "fishr": ((x, x, labels), {}),
        "flexible_thresholds": ((labels,), {"classes": 4}),
        "flexmatch": ((x, x, x[0].sigmoid()), {}),
        "fourier_swap": ((x[None], x[None]), {}),
        "gradient_penalty": ((lambda h: h.sum(1), x, y, x[:, 0]), {}),
        "gradient_reversal": ((x, 1.0), {}),
        "group_weights": ((p[:, 0], x[:, 0]), {}),
        "head_variances": ((x, x, labels), {}),
        "iga": ((risk, {"w": x}, [x]), {}),
        "importance_weights": ((one,), {}),
        "jmmd": ((x[:, None], y[:, None]), {}),
        "jmmd_unbiased": ((x[:, None], y[:, None]), {}),
        "lmmd": ((x, y, labels, y), {}),
        "map_labels": ((labels, rows[:4]), {}),
        "map_logits": ((x, matrix), {}),
        "map_probabilities": ((p, matrix), {}),
        "mdd": ((x, y, x, y), {}),
        "mixup": ((x, rows), {"ratio": 0.5}),
        "mldg": ((risk, {"w": x}, [x], [x]), {"inner": 0.1}),
        "multilinear_random": ((x, x, head, head), {}),
        "nearest_class_mean": ((y, x, labels), {"classes": 4}),
        "neighbourhood": ((x, rows, memory), {}),
        "remember": ((memory, x, x, rows), {}),
        "remember_centres": ((x[:4], x, x), {}),
        "remember_labels": ((labels, x, rows), {}),
        "sliced_wasserstein": ((x, y, head), {}),
        "symnets_category": ((x, x, labels), {}),
        "symnets_domain": ((x, y, x, y), {}),
        "vat": ((torch.tanh, x, x), {}),
        "weighted_domain_adversarial": ((one, other, x[:, 0], y[:, 0]), {}),
    }


CALLS = calls()


def test_all_are_called() -> None:
    assert set(CALLS) == {name for name in align.__all__ if name != "Memory"}


@pytest.mark.parametrize("name", CALLS)
def test_arrays_and_lists_are_no_tensors(name: str) -> None:
    given, keywords = CALLS[name]
    fn = getattr(align, name)
    fn(*given, **keywords)
    for i, x in enumerate(given):
        for bad in (x.tolist(), x.numpy(), None) if isinstance(x, Tensor) else ():
            if name == "normalize_features" and bad is None and i:
                continue
            with pytest.raises(TransferError, match=rf"^{name}: wanted .*got "):
                fn(*given[:i], bad, *given[i + 1 :], **keywords)


NUMBERS: tuple[tuple[str, str, Any], ...] = (
    *(("mmd", "bandwidth", x) for x in (0.0, -1.0, "median", True)),
    ("jmmd", "bandwidth", [0.0]),
    ("lmmd", "bandwidth", 0),
    ("cdd", "bandwidth", -2.0),
    ("mmd", "scales", (1.0, 0.0)),
    *(("mmd", "chunk", x) for x in (0, 2.5, "a")),
    *((name, "threshold", x) for name in ("pseudo_label", "fixmatch", "uda", "osbp") for x in (-0.1, 1.5, "0.9")),
    *((name, "temperature", x) for name in ("uda", "mcc", "tsallis", "tsallis_balanced") for x in (0.0, -1, "2")),
    *((name, "temperature", 0.0) for name in ("class_weights", "remember")),
    *((name, "alpha", 0.0) for name in ("tsallis", "tsallis_balanced")),
    ("tsallis_balanced", "alpha", 1.0),
    *((name, "epsilon", x) for name in ("sinkhorn_divergence", "deepjdot") for x in (0.0, -1.0, "1")),
    *((name, "iterations", x) for name in ("sinkhorn_divergence", "deepjdot", "vat") for x in (0, 2.5)),
    ("cst", "ridge", 0.0),
    ("mdd", "gamma", -1.0),
    ("group_weights", "eta", -0.1),
    ("mixup", "ratio", 1.5),
    ("fourier_swap", "beta", -0.1),
    *(("neighbourhood", "neighbours", x) for x in (0, 1.5, 8)),
    ("shot_labels", "rounds", -1),
    *(("bsp", "k", x) for x in (0, 1.5)),
    ("nearest_class_mean", "classes", 2.5),
)


@pytest.mark.parametrize(("name", "keyword", "value"), NUMBERS)
def test_numbers_out_of_range(name: str, keyword: str, value: Any) -> None:
    given, keywords = CALLS[name]
    with pytest.raises(TransferError, match=rf"^{name}: wanted .*{keyword[:5]}"):
        getattr(align, name)(*given, **{**keywords, keyword: value})


def test_numbers_of_numpy_and_tensors_pass() -> None:
    in_range("loss", t=np.float32(0.5), u=torch.tensor(-1.0), v=None, w=3)
    in_range("loss", 0.0, 1.0, closed=True, t=0, u=1)
    with pytest.raises(TransferError, match=r"loss: wanted a number from 0 to 1 for u, got 2$"):
        in_range("loss", 0.0, 1.0, closed=True, t=0, u=2)
    with pytest.raises(TransferError, match=r"loss: wanted a number above 0 for t, got nan$"):
        in_range("loss", t=float("nan"))
    with pytest.raises(TransferError, match=r"loss: wanted a whole number of at least 1 for t, got True$"):
        whole("loss", 1, t=True)


def test_a_number_that_was_a_tensor_s_passes_in_a_graph() -> None:
    def loss(source: Tensor, target: Tensor) -> Tensor:
        return align.mmd_unbiased(source, target, bandwidth=source.square().mean().item())

    s, t = torch.randn(6, 3), torch.randn(5, 3)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(s, t), loss(s, t))
