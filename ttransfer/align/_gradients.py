"""Domains compared by the gradients of a whole net: inter-gradient alignment and meta-learning over domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ttransfer._claims import claims
from ttransfer._errors import TransferError

Risk = Callable[[dict[str, Tensor], Any], Tensor]


@claims(coupled=True, non_negative=True)
def iga(risk: Risk, params: Mapping[str, Tensor], domains: Sequence[Any]) -> Tensor:
    r"""Variance over domains of the gradient of the risk.

    .. math:: \mathrm{tr} \, \mathrm{Var}_e (\nabla_\theta R_e)
        = \frac1{|E|} \sum_e \| \nabla_\theta R_e - \nabla_\theta \bar R \|^2

    Its own gradient is of second order: the net must be twice differentiable.

    Args:
        risk: (params, domain) -> scalar. In a term the params are what "net:params" reads, and the risk calls
            ``tt.functional(module).apply(params, {}, x).value``.
        params: name -> tensor.
        domains: what the risk takes of each domain, such as (x, y).

    Returns:
        A scalar, at least 0; 0 for a single domain.

    Raises:
        TransferError: without domains.

    Example:
        >>> import torch, ttransfer as tt
        >>> risk = lambda params, x: (params["w"] * x).sum()
        >>> params = {"w": torch.tensor(1.0)}
        >>> tt.align.iga(risk, params, [torch.tensor(1.0), torch.tensor(3.0)]).item()  # gradients 1 and 3
        1.0

    Checked against:
        Gradients by `torch.autograd.grad` in a loop over domains.

    Peers:
        DomainBed has the sum over domains where this has the mean, so that its weight of 1000 counts for more with
        more domains. Its early versions took the gradients without a graph, so that the penalty did nothing.

    References:
        Masanori Koyama, Shoichiro Yamaguchi. When is invariance useful in an Out-of-Distribution Generalization
        problem? 2020.
    """
    if not domains:
        raise TransferError("iga: wanted at least one domain, got none")
    slopes = [torch.func.grad(risk)(dict(params), domain) for domain in domains]
    spreads = [torch.stack([one[name] for one in slopes]).var(0, correction=0).sum() for name in params]
    return torch.stack(spreads).sum()


@claims(coupled=True)
def mldg(
    risk: Risk,
    params: Mapping[str, Tensor],
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    inner: float | Tensor,
    beta: float | Tensor = 1.0,
    variant: str = "paper",
) -> Tensor:
    r"""Risk of some domains, and that of others after a step of gradient descent on the first.

    .. math:: F(\theta) + \beta \, G \bigl( \theta - \alpha \nabla F(\theta) \bigr), \qquad
        F = \frac1{|S|} \sum_{e \in S} R_e, \quad G = \frac1{|T|} \sum_{e \in T} R_e

    It stands in the place of the task's own term. The paper draws the test domains anew in each step; here they are
    given, and a sum of terms over several divisions takes them all.

    Args:
        risk: (params, domain) -> scalar, as for `iga`.
        params: name -> tensor.
        train: what the risk takes of each meta-train domain.
        test: what it takes of each meta-test domain.
        inner: α, the rate of the step within, as large as the net's own rate.
        beta: β, the weight of the second risk.
        variant: "paper", or "code" as DomainBed's: the derivative stops at the inner gradient, which saves the second
            derivative. The value is the same, the gradient is not.

    Returns:
        A scalar in the units of the risk.

    Raises:
        TransferError: without train or test domains, or for another variant.

    Example:
        >>> import torch, ttransfer as tt
        >>> risk = lambda params, x: (params["w"] - x).square()
        >>> value = tt.align.mldg(risk, {"w": torch.tensor(0.0)}, [1.0], [2.0], inner=0.25)
        >>> value.item()  # 1, and (0.5 - 2)²
        3.25

    Checked against:
        A step of `torch.autograd.grad` by hand, with and without its graph.

    Peers:
        DomainBed makes the inner step by Adam and not by gradient descent, and takes the first order.

    References:
        Da Li, Yongxin Yang, Yi-Zhe Song, Timothy M. Hospedales.
        Learning to Generalize: Meta-Learning for Domain Generalization. 2018.
    """
    if not train or not test:
        raise TransferError(f"mldg: wanted train and test domains, got {len(train)} and {len(test)}")
    if variant not in ("paper", "code"):
        raise TransferError(f"mldg: wanted variant 'paper' or 'code', got {variant!r}")

    def mean(params: dict[str, Tensor], domains: Sequence[Any]) -> Tensor:
        return torch.stack([risk(params, domain) for domain in domains]).mean()

    slopes, first = torch.func.grad_and_value(mean)(dict(params), train)
    slopes = {name: g.detach() if variant == "code" else g for name, g in slopes.items()}
    moved = {name: (p - inner * slopes[name]).to(p.dtype) for name, p in params.items()}
    return first + (beta * mean(moved, test)).to(first.dtype)
