"""`ttransfer plan`: what is printed, and which code it exits with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ttransfer.cli import main

CODE = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, num_classes))

def tied():
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9, bias=False))
    net[1].weight = net[0].weight
    return net

def deep():
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(40)))
"""

Out = pytest.CaptureFixture[str]


def net(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, classes))


@pytest.fixture(autouse=True)
def files(folder: Path) -> Path:
    (folder / "nets.py").write_text(CODE)
    torch.save(net().state_dict(), "same.pt")
    torch.save(net(20).state_dict(), "head.pt")
    torch.save({f"backbone.{k}": v for k, v in net().state_dict().items()}, "prefixed.pt")
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(40)))
    torch.save({f"net.{k}": v for k, v in deep.state_dict().items()}, "deep.pt")
    torch.save({"epoch": 3, "model": net().state_dict(), "ema": net().state_dict()}, "ema.pt")
    return folder


def test_a_plan_without_gaps(capsys: Out) -> None:
    assert main(["plan", "same.pt", "nets.py:net"]) == 0
    out = capsys.readouterr().out
    assert out == (
        "same.pt: 9 tensors, 83 numbers, 0.0 MB\n"
        "nets.py:net: 9 tensors, 83 numbers, 0.0 MB\n"
        "\n"
        "9 taken as they are, by name\n"
        "\n"
        "All is accounted for.\n"
    )
    assert main(["plan", "same.pt", "nets.py:net", "--all"]) == 0
    assert "1.running_mean         <- 1.running_mean\n" in capsys.readouterr().out


def test_a_head_of_other_classes_is_told_first(capsys: Out) -> None:
    assert main(["plan", "head.pt", "nets.py:net"]) == 1
    out = capsys.readouterr().out
    assert out.split("\n\n", 1)[1] == (
        "2 targets do not fit\n"
        "2 sources go nowhere\n"
        "7 taken as they are, by name\n"
        "\n"
        "2.weight  !! does not fit  source (20, 4) for a target of (10, 4)\n"
        "2.bias    !! does not fit  source (20,) for a target of (10,)\n"
        "\n"
        "2.weight  -> nowhere\n"
        "2.bias    -> nowhere\n"
        "\n"
        "Not all is accounted for. --rename OLD=NEW, --drop PATTERN and --allow PATTERN say what is meant.\n"
    )


def test_what_is_allowed_is_accounted_for(capsys: Out) -> None:
    assert main(["plan", "head.pt", "nets.py:net", "--allow", r"2\..*"]) == 0
    out = capsys.readouterr().out
    assert "2 targets stay as they are, as allowed\n2 sources go nowhere, as was said\n" in out
    assert "2.weight  -- stays as it is\n" in out
    assert main(["plan", "head.pt", "nets.py:net", "--classes", "20"]) == 0
    assert "All is accounted for." in capsys.readouterr().out
    assert main(["plan", "head.pt", "nets.py:net", "--drop", r"2\..*", "--allow", r"2\.weight"]) == 1
    out = capsys.readouterr().out
    assert "1 target gets nothing" in out
    assert "2.bias    !! missing" in out
    assert "2.weight  -> nowhere         dropped" in out or "dropped" in out


def test_a_prefix_that_is_in_the_way_is_told(folder: Path, capsys: Out) -> None:
    assert main(["plan", "prefixed.pt", "nets.py:net", "--by", "name"]) == 1
    assert capsys.readouterr().out.endswith("9 names would be the model's with --rename backbone=\n")
    (folder / "nets2.py").write_text("from nets import net, nn\ndef whole(): return nn.ModuleDict({'net': net()})\n")
    assert main(["plan", "same.pt", "nets2.py:whole", "--by", "name"]) == 1
    assert capsys.readouterr().out.endswith("9 names would be the model's with --rename '(.*)=net.\\1'\n")
    assert main(["plan", "same.pt", "nets2.py:whole", "--by", "name", "--rename", r"(.*)=net.\1"]) == 0


@pytest.mark.parametrize(
    "renaming", ["backbone=", "backbone.=", r"backbone\.(.*)=\1", r"(?P<a>backbone)\.(?=\d)(.*)=\2"]
)
def test_names_are_changed(renaming: str, capsys: Out) -> None:
    by_name = ["plan", "prefixed.pt", "nets.py:net", "--by", "name"]
    assert main(by_name) == 1
    assert "9 targets get nothing\n9 sources go nowhere\n" in capsys.readouterr().out
    assert main([*by_name, "--rename", renaming]) == 0
    assert "9 taken from other names" in capsys.readouterr().out


def test_renamings_come_one_after_the_other(capsys: Out) -> None:
    typed = ["plan", "prefixed.pt", "nets.py:net", "--by", "name", "--rename", "backbone=stem", "--rename", "stem="]
    assert main(typed) == 0
    assert "backbone.0.weight" in capsys.readouterr().out


def test_new_names_that_the_model_has_not_are_told(capsys: Out) -> None:
    assert main(["plan", "same.pt", "nets.py:net", "--rename", "2=head"]) == 0
    out = capsys.readouterr().out
    assert "2.weight  <- 2.weight  by order: 1 of 2" in out
    assert "2 renamed tensors have names that the model has not: 'head.weight'" in out


def test_tied_weights_may_be_there_once(capsys: Out) -> None:
    torch.save({"0.weight": torch.zeros(9, 6)}, "tied.pt")
    assert main(["plan", "tied.pt", "nets.py:tied"]) == 0
    assert "1.weight  <- 0.weight  tied to '0.weight'" in capsys.readouterr().out


def test_why_no_order_is_read_is_told(capsys: Out) -> None:
    torch.save(dict(sorted(nn.Sequential(*(nn.Linear(2, 2) for _ in range(40))).state_dict().items())), "sorted.pt")
    assert main(["plan", "sorted.pt", "nets.py:deep", "--rename", r"(\d+)\.(.*)=net\1.\2"]) == 1
    assert "No order was read, for in the source 'net2' comes after" in capsys.readouterr().out


def test_long_tables_are_cut_unless_asked_for(capsys: Out) -> None:
    assert main(["plan", "deep.pt", "nets.py:deep"]) == 0
    out = capsys.readouterr().out
    assert "80 taken from other names" in out
    assert "... and 68 more; --all prints them" in out
    assert out.count("<-") == 12
    assert main(["plan", "deep.pt", "nets.py:deep", "--all"]) == 0
    assert capsys.readouterr().out.count("<-") == 80


def test_which_checkpoint_is_asked_and_what_was_done_is_told(capsys: Out) -> None:
    assert main(["plan", "ema.pt", "nets.py:net"]) == 2
    assert (
        "ttransfer plan: load: 'ema.pt' holds several checkpoints: 'model' (9 tensors), 'ema'"
        in capsys.readouterr().err
    )
    assert main(["plan", "ema.pt", "nets.py:net", "--of", "ema"]) == 0
    assert capsys.readouterr().out.startswith("'ema.pt': took 'ema', and not 'epoch', 'model' beside it\n")


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        (["none.pt", "nets.py:net"], "load: there is no file 'none.pt'"),
        (["same.pt", "nets.py:nett"], "nets.py has no 'nett'; did you mean 'net'?"),
        (["same.pt", "resnet18"], "'resnet18' names no model"),
        (["same.pt", "nets.py:net", "--by", "luck"], "--by luck: want name, order or shape"),
        (["same.pt", "nets.py:net", "--rename", "backbone"], "--rename backbone: want OLD=NEW"),
        (["same.pt", "nets.py:net", "--rename", "=x"], "--rename =x: want OLD=NEW"),
        (["same.pt", "nets.py:net", "--rename", "backbon=x"], "rename: the source has no 'backbon'"),
        (["same.pt", "nets.py:net", "--rename", "a(b=x"], "rename: cannot make 'x' of pattern 'a(b'"),
        (["same.pt", "nets.py:net", "--drop", "head.*"], "drop: pattern 'head.*' matches no source"),
        (["same.pt", "nets.py:net", "--allow", "head.*"], "match: allow='head.*' matches no target and no source"),
    ],
)
def test_what_cannot_be_planned(typed: list[str], why: str, capsys: Out) -> None:
    assert main(["plan", *typed]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"ttransfer plan: {why}")
    assert not said.out


def test_colour_is_for_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["plan", "head.pt", "nets.py:net"]) == 1
    assert "\x1b[31m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["plan", "head.pt", "nets.py:net"]) == 1
    assert "\x1b[31m" not in capsys.readouterr().out


def test_names_are_not_read_as_markup(folder: Path, capsys: Out) -> None:
    torch.save({**net().state_dict(), "[red]x[/red]": torch.ones(1), "\x1b[2J": torch.ones(1)}, "odd.pt")
    assert main(["plan", "odd.pt", "nets.py:net"]) == 1
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "\\x1b[2J" in out
    assert "\x1b" not in out
