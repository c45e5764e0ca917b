"""What batch norm has counted, counted anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ttransfer._errors import TransferError
from ttransfer.weights import batch_statistics
from ttransfer.weights._batch_statistics import moments, pooled


def module(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5),
        nn.Dropout(0.5),
        nn.Linear(5, 2),
    ).double()


def data(rows: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 1


@pytest.mark.parametrize("sizes", [[20], [10, 10], [13, 1, 6], [1] * 20])
def test_they_are_those_of_one_batch_in_train_mode(sizes: list[int]) -> None:
    """In eval mode the net does to all rows what it does to them at once in train mode, however they came."""
    net, x = module(), data(20)
    params = net.state_dict()
    stats = batch_statistics(net, params, x.split(sizes))
    after = copy.deepcopy(net)
    after.load_state_dict({**params, **stats})
    once = copy.deepcopy(net).train()
    once[9].eval()
    torch.testing.assert_close(after.eval()(x), once(x), rtol=0, atol=1e-12)


def test_they_are_those_of_torch_but_for_the_divisor() -> None:
    net, x = module(), data(20)
    stats = batch_statistics(net, net.state_dict(), [x])
    once = copy.deepcopy(net).train()
    once[9].eval()
    for i in (1, 4, 8):
        layer = once[i]
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        layer.momentum = None
    once(x)
    for i, places in ((1, 9), (4, 4), (8, 1)):
        n = 20 * places
        found, wanted = (state[f"{i}.running_var"] for state in (stats, once.state_dict()))
        torch.testing.assert_close(found * n / (n - 1), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            stats[f"{i}.running_mean"], once.state_dict()[f"{i}.running_mean"], rtol=0, atol=1e-12
        )


def test_torch_update_bn_is_off() -> None:
    """torch.optim.swa_utils.update_bn averages batches of any size alike, and variances without what lies between.

    By how much depends on the data: here the batches differ in mean.
    """
    norm, batches = nn.Sequential(nn.BatchNorm1d(1)).double(), [torch.full((3, 1), 1.0), torch.tensor([[5.0], [7.0]])]
    batches = [batch.double() for batch in batches]
    stats = batch_statistics(norm, norm.state_dict(), batches)
    rows = torch.cat(batches)
    assert stats["0.running_mean"].item() == pytest.approx(rows.mean().item(), abs=1e-12)
    assert stats["0.running_var"].item() == pytest.approx(rows.var(correction=0).item(), abs=1e-12)
    torch.optim.swa_utils.update_bn(batches, norm)
    layer = norm[0]
    assert isinstance(layer, nn.BatchNorm1d)
    assert isinstance(layer.running_mean, Tensor)
    assert isinstance(layer.running_var, Tensor)
    # 3.5 for 3, and 1 for 6.4.
    assert layer.running_mean.item() == 3.5
    assert layer.running_var.item() == 1.0
    assert (stats["0.running_mean"].item(), stats["0.running_var"].item()) == pytest.approx((3.0, 6.4), abs=1e-12)


def test_large_means_leave_the_variance_alone() -> None:
    x = (torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) + 1e4).float()
    norm = nn.BatchNorm1d(2)
    stats = batch_statistics(norm, norm.state_dict(), x.split(7))
    torch.testing.assert_close(stats["running_var"], x.double().var(0, correction=0).float(), rtol=1e-4, atol=0)


def test_moments_are_pooled() -> None:
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    whole, parts = moments(x), pooled(pooled(pooled(None, moments(x[:1])), moments(x[1:3])), moments(x[3:]))
    assert whole.count == parts.count == 20
    torch.testing.assert_close(parts.mean, whole.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts.squares, whole.squares, rtol=0, atol=1e-12)


def test_nothing_else_changes() -> None:
    net, x = module().train(), data(8)
    params = {name: t.clone() for name, t in module(1).state_dict().items()}
    before = [{name: t.clone() for name, t in state.items()} for state in (net.state_dict(), params)]
    stats = batch_statistics(net, params, x.split(3))
    assert set(stats) == {f"{i}.{leaf}" for i in (1, 4, 8) for leaf in ("running_mean", "running_var")}
    for state, kept in zip((net.state_dict(), params), before, strict=True):
        assert all(torch.equal(state[name], t) for name, t in kept.items())
    assert net.training
    assert not any(layer._forward_pre_hooks for layer in net.modules())
    assert not batch_statistics(nn.Linear(1, 1), nn.Linear(1, 1).state_dict(), [torch.ones(1, 1)])


class Twice(nn.Module):
    """One batch norm for two places, and two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x) + self.norm(y)


def test_a_layer_that_runs_twice_counts_both() -> None:
    x, y = torch.randn(6, 2), torch.randn(6, 2) + 3
    net = Twice()
    stats = batch_statistics(net, net.state_dict(), [(x[:4], y[:4]), (x[4:], y[4:])])
    torch.testing.assert_close(stats["norm.running_mean"], torch.cat([x, y]).mean(0))
    torch.testing.assert_close(stats["norm.running_var"], torch.cat([x, y]).var(0, correction=0))


def test_refusals() -> None:
    net = module()
    with pytest.raises(TransferError, match="batch_statistics: there are no batches"):
        batch_statistics(net, net.state_dict(), [])
    with pytest.raises(TransferError, match="batch_statistics: the module has no 'head'"):
        batch_statistics(net, {**net.state_dict(), "head": torch.ones(1)}, [data(2)])
    with pytest.raises(TransferError, match=r"batch_statistics: the module's '0\.weight' is missing, one of 14"):
        batch_statistics(net, {}, [data(2)])
    with pytest.raises(TransferError, match=r"'0\.bias' is \(1,\), the module's \(3,\)"):
        batch_statistics(net, {**net.state_dict(), "0.bias": torch.ones(1)}, [data(2)])


def test_a_tensor_or_a_dict_is_one_batch() -> None:
    net, x = module(), data(8)
    wanted = batch_statistics(net, net.state_dict(), [x])
    torch.testing.assert_close(batch_statistics(net, net.state_dict(), x), wanted, rtol=0, atol=0)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.net(batch["image"])

    found = batch_statistics(Named(), Named().state_dict(), {"image": x})
    torch.testing.assert_close(found, {f"net.{name}": value for name, value in wanted.items()}, rtol=0, atol=0)
    for wrong in (3, None, "x"):
        with pytest.raises(TransferError, match="batch_statistics: wanted batches, such as a list of tensors, got"):
            batch_statistics(net, net.state_dict(), wrong)  # pyright: ignore[reportArgumentType]
