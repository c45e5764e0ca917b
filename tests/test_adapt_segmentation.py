"""The segmentation of brains runs, on volumes made here, and is measured as it says."""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import ttransfer as tt
from tests.support.examples import imported

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def segment() -> Iterator[Any]:
    with imported("adapt_segmentation") as module:
        yield module


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Write a head of balls in balls, 2 mm wide voxels, with its left side first: to be turned when it is read."""
    import nibabel
    import numpy as np

    folder = tmp_path_factory.mktemp("head")
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 32, 40)), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    tissues = np.select([radius < 0.35, radius < 0.55, radius < 0.62], [3, 2, 1], 0)
    image = np.select([tissues == 3, tissues == 2, tissues == 1], [90, 65, 20], 0)
    image = image + np.random.default_rng(0).normal(0, 2, image.shape) * (tissues > 0)
    skull = image + 80 * ((radius > 0.7) & (radius < 0.85)) + 1
    for name, values in (("t1_stripped", image), ("t1", skull), ("tissues", tissues)):
        volume = nibabel.Nifti1Image(values[::-1].astype(np.float32), np.diag([-2.0, 2.0, 2.0, 1.0]))
        nibabel.save(volume, folder / f"mni_icbm152_{name}.nii.gz")
    return folder


def test_a_quick_run_makes_the_table_and_the_picture(
    segment: Any, head: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["adapt_segmentation.py", "--quick", "--quiet", "--atlas", str(head), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    segment.main()
    table = (tmp_path / "table.txt").read_text()
    rows = [re.findall(r"\d\.\d+", line) for line in table.splitlines() if "+-" in line]
    assert [len(row) for row in rows] == [5] * 6  # of each tissue, their mean, its spread
    for *tissues, mean, _ in rows:
        assert float(mean) == pytest.approx(sum(map(float, tissues)) / 3, abs=2e-3)
    assert float(rows[-1][3]) > float(rows[0][3])
    assert rows[0] != rows[1]
    assert "one head, no patients" in table
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_slices_are_the_volumes(segment: Any, head: pathlib.Path) -> None:
    data = segment.load(head, "range", 2.0)
    assert data.source["x"].shape[1:] == data.test["x"].shape[1:] == (1, 32, 32)
    assert type(data.source["x"]) is torch.Tensor
    slices = len(data.source["x"]) + len(data.test["x"])
    assert 0 < slices < 40  # those with a brain
    assert data.source["x"][data.source["y"][:, None] == 0].mean() < 0.01  # but for what resampling smears
    assert torch.equal(data.source["y"], data.target["y"])
    assert max(data.target["x"].amax(), data.test["x"].amax()) == 1
    whole = segment.load(head, "volume", 2.0)
    assert torch.equal(whole.source["y"], data.source["y"])


def test_the_rate_is_chosen_on_the_source(segment: Any, head: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = segment.load(head, "volume", 2.0)
    nothing = {"x": data.target["x"][:0]}
    segment.choose(segment.Data(data.source, nothing, nothing), 2, 2)
    assert re.findall(r"rate ([\d.]+): loss [\d.]+ on the source", capsys.readouterr().out) == [
        "0.002",
        "0.005",
        "0.01",
    ]


def test_only_the_run_on_the_targets_labels_sees_them(segment: Any) -> None:
    x, y = torch.randn(2, 1, 32, 32), torch.randint(4, (2, 32, 32))
    runs = segment.steps_of(10, 2, 100.0)
    assert {run for run, _ in segment.ROWS.values()} == set(runs)
    for name, step in runs.items():
        target = {"x": x + 1, "y": y} if name == "target labels" else {"x": x + 1}
        batch = {"source": {"x": x, "y": y}, "target": target}
        state, logs = step(step.init(batch, seed=0), batch)
        assert logs["finite"].all()
        for run, net in segment.ROWS.values():
            if run == name:
                assert tt.predict(step, state, net)(x).shape == (2, 2, 4, 32, 32)


def test_the_first_two_rows_are_one_net_with_two_sets_of_statistics(segment: Any) -> None:
    x, y = torch.randn(2, 1, 32, 32), torch.randint(4, (2, 32, 32))
    step = segment.alone(10)
    batch = {"source": {"x": x, "y": y}, "target": {"x": 3 * x + 1}}
    state, _ = step(step.init(batch, seed=0), batch)
    plain = tt.replace(step, entropy=None)
    other, _ = plain(plain.init(batch, seed=0), batch)
    for name, value in other.trainable["net"].items():
        torch.testing.assert_close(state.trainable["net"][name], value, rtol=0, atol=0)
    own = tt.predict(step, state, "net(source)")(x)
    assert torch.equal(own, tt.predict(plain, other, "net(source)")(x))
    assert not torch.allclose(own, tt.predict(step, state, "net(target)")(x), atol=1e-3)


def test_dice_is_of_the_whole_volume(segment: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (3, 5, 6), generator=generator)
    guesses = torch.randint(4, (2, 3, 5, 6), generator=generator)
    wanted = [
        [2 * ((g == k) & (labels == k)).sum() / ((g == k).sum() + (labels == k).sum()) for k in (1, 2, 3)]
        for g in guesses
    ]
    torch.testing.assert_close(segment.dice(guesses, labels), torch.tensor(wanted))
