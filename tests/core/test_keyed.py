"""Keyed dropout: the masks are random enough, follow from their keys alone, and mean what torch's mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

import ttransfer as tt
from tests.support.compare import worst
from ttransfer._errors import TransferError
from ttransfer.core._keyed import Box, drops, fold, key_modules, row_keys, salt

ROWS, WIDTH = 64, 512


def keys(n: int = ROWS, *, seed: int = 0, step: int = 0, forward: str = "net", start: int = 0) -> Tensor:
    whole = torch.arange(start, start + n)
    return row_keys(torch.tensor(seed), torch.tensor(step), salt(forward, 1, "source"), whole)


class Twice(nn.Module):
    """One module called twice, then another of the same kind."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.again = nn.Dropout(p)
        self.other = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.again(x), self.again(x), self.other(x)])


def masks(p: float = 0.5, **of: Any) -> Tensor:
    """Three masks of 64 rows and 512 elements: a module's first and second call, and another module's."""
    module = tt.functional(Twice(p), mode="train")
    return (module.apply({}, {}, torch.ones(ROWS, WIDTH), keys=keys(**of)).value > 0).double()


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_elements_are_kept_as_often_as_they_should_be(p: float) -> None:
    """Within four standard deviations over all, chi-square over rows and over columns."""
    for mask in masks(p):
        spread = math.sqrt(p * (1 - p) / mask.numel())
        assert abs(mask.mean().item() - (1 - p)) < 4 * spread
        for dim, n in ((0, ROWS), (1, WIDTH)):
            z = (mask.mean(dim) - (1 - p)) / math.sqrt(p * (1 - p) / n)
            chi, degrees = z.square().sum().item(), len(z)
            assert abs(chi - degrees) < 5 * math.sqrt(2 * degrees)


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard deviations of what independent masks would give."""
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    return ((a @ b) / (a.norm() * b.norm())).item() * math.sqrt(a.numel())


def test_masks_are_not_correlated() -> None:
    """Between rows, elements, calls, modules, steps, seeds, forwards."""
    mask, second, other = masks()
    pairs = {
        "calls": (mask, second),
        "modules": (mask, other),
        "calls of modules": (second, other),
        "steps": (mask, masks(step=1)[0]),
        "far steps": (mask, masks(step=2**20)[0]),
        "seeds": (mask, masks(seed=1)[0]),
        "large seeds": (masks(seed=2**40)[0], masks(seed=2**41)[0]),
        "seed for step": (masks(seed=1)[0], masks(step=1)[0]),
        "nets": (mask, masks(forward="other")[0]),
    }
    pairs |= {f"rows {d} apart": (mask[:-d], mask[d:]) for d in (1, 2, 3, 8, 16, 32)}
    pairs |= {f"elements {d} apart": (mask[:, :-d], mask[:, d:]) for d in (1, 2, 3, 4, 7, 16, 64, 256)}
    pairs |= {"mirror": (mask, mask.flip(1)), "diagonal": (mask[:-1, :-1], mask[1:, 1:])}
    pairs |= {f"bit {d}": (mask, mask[:, torch.arange(WIDTH) ^ d]) for d in (1, 2, 32, 256)}
    found = {name: correlation(*pair) for name, pair in pairs.items()}
    # "mirror" and "bit" count each pair twice, which doubles the variance.
    assert {name: z for name, z in found.items() if abs(z) > 4.5} == {}
    assert correlation(mask, mask) > 100


def test_triples_are_not_correlated() -> None:
    """A linear generator passes pairs and fails here: the parity of neighbours is a coin too."""
    mask = 2 * masks()[0] - 1
    for a, b, c in ((0, 1, 2), (0, 1, 3), (0, 2, 5), (0, 8, 16)):
        parity = mask[:, a : WIDTH - 16 + a] * mask[:, b : WIDTH - 16 + b] * mask[:, c : WIDTH - 16 + c]
        assert abs(parity.sum().item()) < 4 * math.sqrt(parity.numel())


def test_no_two_rows_steps_or_forwards_share_a_key() -> None:
    found = torch.cat([keys(256, step=step, forward=net) for step in range(100) for net in ("student", "teacher")])
    expected = len(found) ** 2 / 2 / 2**32
    assert len(found) - len(found.unique()) <= 3 * expected + 3
    for bit in range(32):
        share = ((found >> bit) & 1).double().mean().item()
        assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(len(found))


def test_salts_tell_forwards_apart() -> None:
    forwards = list(itertools.product(("a", "b", "ab"), (0, 1, 2), ("a", "b", "fn")))
    assert len({salt(*one) for one in forwards}) == len(forwards)


def test_seeds_beyond_a_word_are_seeds_of_their_own() -> None:
    seeds = [0, 1, -1, 2**32, 2**32 + 1, 2**63 - 1, -(2**63)]
    zero = torch.zeros((), dtype=torch.int64)
    assert len({fold(zero, torch.tensor(seed)).item() for seed in seeds}) == len(seeds)


EXTREMES = [0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**62 + 12345, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("data", EXTREMES)
@pytest.mark.parametrize("key", EXTREMES)
def test_words_stay_words_and_nothing_overflows(key: int, data: int) -> None:
    """In tensors as in Python, whose integers cannot overflow."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x21F0AAAD & 0xFFFFFFFF
        x = (x ^ (x >> 15)) * 0x735A2D97 & 0xFFFFFFFF
        return x ^ (x >> 15)

    def word(x: int) -> int:
        return (x & 0xFFFFFFFF) ^ mix((x >> 32) & 0xFFFFFFFF)

    expected = mix(word(key) ^ mix((word(data) + 0x9E3779B9) & 0xFFFFFFFF))
    assert fold(torch.tensor(key), torch.tensor(data)).item() == expected
    assert fold(torch.tensor(key), data).item() == expected
    assert 0 <= expected < 2**32
    assert 0xFFFFFFFF * 0x735A2D97 < 2**63


def test_any_int64_is_a_key() -> None:
    module = tt.functional(nn.Dropout(0.5), mode="train")
    given = torch.tensor(EXTREMES)
    mask = module.apply({}, {}, torch.ones(len(given), 256), keys=given).value > 0
    # 0 and -1 fold to one word, and so do others: what matters is that all masks are masks.
    assert ((mask.double().mean(1) - 0.5).abs() < 0.15).all()


class DropPath(nn.Module):
    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep


class StochasticDepth(nn.Module):
    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode


KINDS: dict[str, tuple[Callable[[float], nn.Module], tuple[int, ...], float]] = {
    "elements": (nn.Dropout, (16, 6, 5, 4), 2.0),
    "elements of vectors": (nn.Dropout, (16, 6), 2.0),
    "channels 1d": (nn.Dropout1d, (16, 6, 1), 2.0),
    "channels 2d": (nn.Dropout2d, (16, 6, 1, 1), 2.0),
    "channels 3d": (nn.Dropout3d, (16, 6, 1, 1, 1), 2.0),
    "paths": (DropPath, (16, 1, 1, 1), 2.0),
    "paths unscaled": (lambda p: DropPath(p, scale_by_keep=False), (16, 1, 1, 1), 1.0),
    "depth by rows": (lambda p: StochasticDepth(p, "row"), (16, 1, 1, 1), 2.0),
    "depth of the batch": (lambda p: StochasticDepth(p, "batch"), (1, 1, 1, 1), 2.0),
}


@pytest.mark.parametrize("name", KINDS)
def test_shapes_and_scales(name: str) -> None:
    """What is dropped together is dropped together, and what is kept keeps the mean."""
    make, shape, scale = KINDS[name]
    x = torch.ones(16, *(s if s > 1 else 7 for s in shape[1:]), dtype=torch.float64)
    seen: set[float] = set()
    varies: set[int] = set()
    for step in range(6):
        out = tt.functional(make(0.5), mode="train").apply({}, {}, x, keys=keys(16, step=step)).value
        first = out[tuple(slice(0, s) for s in shape)]
        assert worst(out, first.expand_as(out)) == 0.0
        seen |= set(first.flatten().tolist())
        varies |= {dim for dim in range(x.ndim) if (first.amin(dim) != first.amax(dim)).any()}
    assert seen == {0.0, scale}
    assert varies == {dim for dim, size in enumerate(shape) if size > 1}


@pytest.mark.parametrize("name", KINDS)
def test_certainties(name: str) -> None:
    make = KINDS[name][0]
    x = torch.linspace(1, 2, 8).reshape(4, 2, 1, 1).expand(4, 2, 3, 3)
    x = x[..., 0] if name == "channels 1d" else x[..., None] if name == "channels 3d" else x
    never, always, still = (tt.functional(make(p), mode=m) for p, m in ((0.0, "train"), (1.0, "train"), (0.5, "eval")))
    assert torch.equal(never.apply({}, {}, x).value, x)
    assert torch.equal(still.apply({}, {}, x).value, x)
    assert not always.apply({}, {}, x, keys=keys(4)).value.any()


@pytest.mark.parametrize("kind", [nn.AlphaDropout, nn.FeatureAlphaDropout])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_alpha_dropout_has_the_two_values_of_torch(kind: type[nn.Module], p: float) -> None:
    x = torch.full((64, 8, 4), 0.7, dtype=torch.float64)
    out = tt.functional(kind(p), mode="train").apply({}, {}, x, keys=keys()).value
    expected = kind(p).train()(x)
    assert len(out.unique()) == 2
    assert (out.unique() - expected.unique()).abs().max() < 1e-12
    together = out.amin(2) == out.amax(2)
    assert together.all() == (kind is nn.FeatureAlphaDropout)


class Own(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return input * 3.0


class Renamed(nn.Dropout):
    pass


def test_what_is_keyed() -> None:
    net = nn.ModuleDict(
        {
            "plain": nn.Dropout(0.5), "renamed": Renamed(0.5), "own": Own(0.5), "never": nn.Dropout(0.0),
            "path": DropPath(0.5), "none": nn.Identity(), "deep": nn.Sequential(nn.Dropout2d(0.5)),
        }
    )  # fmt: skip
    assert drops(net)
    assert not drops(nn.Sequential(Own(0.5), nn.Linear(2, 2)))
    keyed = key_modules(net, Box())
    kinds = {name: type(module).__name__ for name, module in keyed.named_modules() if not list(module.children())}
    assert {name for name, kind in kinds.items() if kind == "_Keyed"} == {
        "plain", "renamed", "never", "path", "deep.0"
    }  # fmt: skip
    assert kinds["own"] == "Own"


def test_an_own_forward_is_left_alone() -> None:
    net = tt.functional(nn.Sequential(Own(0.5), nn.Linear(2, 2)), mode="train")
    assert not net.layout.drops
    params, _ = net.init(torch.Generator())
    x = torch.randn(3, 2)
    assert torch.equal(net.apply(params, {}, x).value, 3 * x @ params["1.weight"].T + params["1.bias"])


def test_one_module_under_two_names_is_keyed_under_both() -> None:
    drop = nn.Dropout(0.5)
    net = tt.functional(nn.Sequential(drop, nn.ReLU(), drop, nn.Sequential(drop)), mode="train")
    before = torch.get_rng_state()
    out = net.apply({}, {}, torch.ones(ROWS, WIDTH), keys=keys()).value
    assert torch.equal(out, net.apply({}, {}, torch.ones(ROWS, WIDTH), keys=keys()).value)
    assert torch.equal(before, torch.get_rng_state())
    # Three draws, each anew: an element survives all of them one time in eight.
    assert set(out.unique().tolist()) == {0.0, 8.0}
    share = (out > 0).double().mean().item()
    assert abs(share - 1 / 8) < 4 * math.sqrt(7 / 64 / out.numel())


@pytest.mark.parametrize(
    "given", [None, torch.ones(4), torch.arange(4, dtype=torch.int32), torch.tensor(3), torch.ones(4, 1).long()]
)  # fmt: skip
def test_wrong_keys_are_refused(given: Tensor | None) -> None:
    net = tt.functional(nn.Dropout(0.5), mode="train")
    with pytest.raises(TransferError, match=r"this net drops at random: apply it with keys=\.\.\., one int64 per row"):
        net.apply({}, {}, torch.ones(4, 2), keys=given)


class Mixed(nn.Module):
    """Dropout of every kind, windows folded into the batch, and one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.drop, self.channels, self.alpha = nn.Dropout(0.3), nn.Dropout1d(0.3), nn.AlphaDropout(0.3)
        self.path = DropPath(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.fc(x)) + self.path(self.drop(x))
        x = self.channels(x).unflatten(1, (2, 2)).flatten(0, 1)  # (2 n, 2, 6)
        return self.alpha(self.drop(x)).unflatten(0, (-1, 2))


def test_every_mode_draws_the_same_masks() -> None:
    torch.manual_seed(0)
    net = tt.functional(Mixed().double(), mode="train")
    params, _ = net.init(torch.Generator())
    x = torch.randn(6, 4, 6, dtype=torch.float64)

    def run(params: tt.Params, keys: Tensor) -> Tensor:
        return net.apply(params, {}, x[: len(keys)], keys=keys).value

    rng = torch.get_rng_state()
    own = keys(6)
    eager = run(params, own)
    assert worst(run(params, own), eager) == 0.0
    assert worst(torch.compile(run, backend="aot_eager", fullgraph=True)(params, own), eager) == 0.0
    each = torch.stack([own, keys(6, seed=1), keys(6, step=1)])
    stacked = vmap(run, in_dims=(None, 0))(params, each)
    for i in range(3):
        assert worst(stacked[i], run(params, each[i])) < 1e-12
    assert worst(stacked[0], stacked[1]) > 0.1
    # A slice of the batch, with its rows' keys, is the slice of the whole.
    assert worst(net.apply(params, {}, x[2:5], keys=keys(3, start=2)).value, eager[2:5]) < 1e-12
    assert torch.equal(rng, torch.get_rng_state())
