"""`ttransfer check` on losses written against plain torch: what it says, and its exit code."""

from __future__ import annotations

import json
import os
import pathlib
import re
import resource
import subprocess
import sys
from typing import get_type_hints

import pytest

from ttransfer.cli import main
from ttransfer.cli._check import _tag
from ttransfer.testing import Tags

ROOT = pathlib.Path(__file__).parents[2]
Out = pytest.CaptureFixture[str]

PLAIN = """
import functools
import torch
import torch.nn.functional as F
from torch import nn

calls = 0

def kd(student_logits, teacher_logits, T=4.0):
    soft = F.softmax(teacher_logits.detach() / T, 1)
    return F.kl_div(F.log_softmax(student_logits / T, 1), soft, reduction="batchmean") * T * T

def coral(source, target):
    d = source.size(1)
    def cov(x):
        x = x - x.mean(0)
        return x.T @ x / (len(x) - 1)
    return ((cov(source) - cov(target)) ** 2).sum() / (4 * d * d)

def attention(student_map, teacher_map):
    def at(f):
        return F.normalize(f.pow(2).mean(1).flatten(1))
    return (at(student_map) - at(teacher_map.detach())).pow(2).mean()

def center(features, labels):
    centers = torch.eye(4, features.size(1))
    return (features - centers[labels]).pow(2).sum(1).mean()

def pulled(student, teacher):
    return (student - teacher).pow(2).mean()

def half(student, teacher):
    return (student - teacher.detach()).pow(2).mean() / 2

def loud(student, teacher):
    print("a line")
    return half(student, teacher)

def picky(student, teacher, table):
    return (student - teacher.detach()).pow(2).mean() * table["scale"]

def of_four(student, teacher):
    return half(student * torch.ones(4, dtype=student.dtype), teacher)

def counted(student, teacher):
    global calls
    calls += 1
    return half(student, teacher)

half2 = functools.partial(kd, T=2.0)

class Half(nn.Module):
    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = scale
    def forward(self, student, teacher):
        return (student - teacher.detach()).pow(2).mean() * self.scale

class Scaled(Half):
    def __init__(self, scale, *, power):
        super().__init__(scale)

class Raising(Half):
    def __init__(self):
        raise RuntimeError("no file")

class Other:
    pass

module = Half(2.0)
number = 3.0
"""

EXAMPLES = """
import torch
from hypothesis import strategies as st

def example():
    return torch.randn(4, 3), torch.randn(4, 3), {"scale": 2.0}

def three():
    return torch.randn(4, 3), torch.randn(4, 3)

def four():
    return torch.randn(3, 4), torch.randn(3, 4)

def raising():
    raise RuntimeError("no data here")

def nothing():
    pass

def strategy():
    return st.just((torch.full((2, 3), -0.5), torch.full((2, 3), -2.0)))

given = (torch.randn(4, 5), torch.randn(4, 5))

def slow(student, teacher):
    return sum(((a - b) ** 2).sum() for a, b in zip(student, teacher)) / student.numel() / 2

def double(student, teacher):
    return slow(student, teacher) * 2

def rows(student, teacher):
    return student.shape[0]
"""


@pytest.fixture(autouse=True)
def files(folder: pathlib.Path) -> pathlib.Path:
    (folder / "plain_ones.py").write_text(PLAIN)
    (folder / "given_ones.py").write_text(EXAMPLES)
    return folder


def test_a_right_loss_is_told_what_it_obeys_and_may_claim(capsys: Out) -> None:
    assert main(["check", "plain_ones.py:kd"]) == 0
    out, err = capsys.readouterr()
    assert not err
    lines = out.splitlines()
    assert lines[:2] == ["kd", "taken as  student_logits: logits (n, c), teacher_logits: logits (n, c)"]
    assert re.search(r"^obeyed    scalar, .*gradcheck, .*one-graph", out, re.DOTALL | re.MULTILINE)
    assert re.search(r"^seems     .*shift-invariant.*claim them with .*--tag shift_invariant", out, re.DOTALL | re.M)
    assert re.search(r"^kd: \d\d laws obeyed$", out, re.MULTILINE)
    assert all(len(line) <= 80 and line == line.rstrip() for line in lines)


def test_a_wrong_loss_is_told_law_input_numbers_and_cause(capsys: Out) -> None:
    assert main(["check", "plain_ones:pulled"]) == 1
    out = capsys.readouterr().out
    said = "BROKEN detached: An argument that only shows the way, a teacher's, gets no gradient."
    assert said in " ".join(out.split())
    assert "    teacher gets a gradient\n    student = [[" in out
    assert "    gradient = [[" in out
    assert "  likely cause: a teacher's output used without .detach()" in out
    assert ", 1 failed: detached\n" in out
    assert '--except LAW="why"' in out


def test_a_loss_that_raises_on_what_is_drawn_is_told_how_to_give_an_example(capsys: Out) -> None:
    command = ["check", "plain_ones.py:of_four", "--law", "scalar", "--law", "dtype"]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "it raised RuntimeError: The size of tensor a" in out
    assert "--example FILE.PY:FN gives them\n" in out
    assert main([*command, "--example", "given_ones.py:four"]) == 0
    assert "--example" not in capsys.readouterr().out


SHELL = "import sys; from ttransfer.cli import main; sys.exit(main())"


@pytest.mark.parametrize("name", ["kd", "coral", "attention", "center"])
def test_a_plain_loss_takes_less_than_twenty_seconds_and_a_pipe_gets_clean_text(name: str) -> None:
    """Of processor time, which other work on the machine hardly changes; no thread but one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", SHELL, "check", f"plain_ones.py:{name}"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert done.returncode in (0, 1), done.stderr
    assert not done.stderr
    out = done.stdout.decode("ascii")
    assert "\x1b" not in out
    assert "\r" not in out
    assert f"\n{name}: " in out


@pytest.mark.parametrize(("no_color", "styled"), [("", True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(
    no_color: str, styled: bool, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal then
    monkeypatch.setenv("NO_COLOR", no_color)
    assert main(["check", "plain_ones.py:half", "--law", "scalar", "--law", "detached"]) == 0
    out, err = capsys.readouterr()
    assert ("\x1b[" in out) is styled
    assert "half: law 2 of 2, detached" in err  # only where somebody looks on
    assert "law 2 of 2" not in out


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_lines_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["check", "plain_ones.py:pulled", "--law", "detached", "--law", "symmetric"]) == 1
    assert main(["check", "plain_ones.py:pulled", "--list"]) == 0
    longest = max(map(len, capsys.readouterr().out.splitlines()))
    assert min(columns, 120) * 0.7 < longest <= min(columns, 120)


@pytest.mark.parametrize("target", ["half", "half2", "Half", "module"])
def test_a_function_a_partial_a_module_and_a_module_class_are_losses(target: str, capsys: Out) -> None:
    assert main(["check", f"plain_ones.py:{target}", "--law", "scalar", "--law", "stationary"]) == 0
    assert f"\n{target}: 2 laws obeyed\n" in capsys.readouterr().out


def test_torch_s_own_losses_can_be_named(capsys: Out) -> None:
    assert main(["check", "torch.nn.functional:cross_entropy", "--law", "gradcheck"]) == 0
    assert main(["check", "torch.nn:SmoothL1Loss", "--law", "scalar"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("check", "no TARGET: want package.module:name or file.py:name"),
        ("check plain_ones.py:hal", "plain_ones.py has no 'hal'; did you mean 'half'"),
        ("check plain_ones.py:number", "plain_ones.py:number is a float, which cannot be called"),
        ("check plain_ones.py:Other", "is a class; want a function, a functools.partial or an nn.Module"),
        ("check plain_ones.py:Scaled", "is an nn.Module class that needs scale, power; make an instance"),
        ("check plain_ones.py:Raising", "plain_ones.py:Raising() raised RuntimeError: no file"),
        ("check plain_ones.py:half --law gradchek", "there is no law 'gradchek'; did you mean 'gradcheck'"),
        ("check plain_ones.py:half --except gradchek=x", "there is no law 'gradchek'; did you mean 'gradcheck'"),
        ("check plain_ones.py:half --law reference", "reference says nothing of half: its arguments, student: "),
        ("check plain_ones.py:half --except reference=x", "reference says nothing of half"),
        ("check plain_ones.py:half --except gradcheck", '--except gradcheck: want LAW="why it is broken"'),
        ("check plain_ones.py:half --tag symetric", "there is no tag 'symetric'; did you mean 'symmetric' or"),
        ("check plain_ones.py:half --tag symmetric=maybe", "--tag symmetric=maybe: want true or false"),
        ("check plain_ones.py:half --tag min_batch", "--tag min_batch: it wants a value, min_batch=..."),
        ("check plain_ones.py:half --tag min_batch=two", "--tag min_batch=two: want a whole number"),
        ("check plain_ones.py:half --tag count=given_ones.py:row", "given_ones.py has no 'row'; did you mean 'rows'?"),
        ("check plain_ones.py:half --update", "--update writes the golden file anew: give --golden too"),
        (
            "check plain_ones.py:half --golden half.txt",
            "--golden half.txt: want a .json file, or a folder for half.json",
        ),
        ("check plain_ones.py:half --example given_ones.py:raising", "raised RuntimeError: no data here"),
        ("check plain_ones.py:half --example given_ones.py:nothing", "returned None; want a tuple of the loss's arg"),
        ("check plain_ones.py:half --reference plain_ones.py:number", "is a float, which cannot be called"),
        ("check plain_ones.py:picky", "picky: no arguments were found that it takes"),
    ],
)
def test_what_cannot_be_tried_is_one_line_and_exit_code_2(arguments: str, message: str, capsys: Out) -> None:
    assert main(arguments.split(" ")) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("ttransfer check: ")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("given", ["example", "three", "given", "strategy"])
def test_an_example_is_a_function_s_tuple_a_strategy_or_the_thing_itself(given: str, capsys: Out) -> None:
    target = "picky" if given == "example" else "half"
    place = f"given_ones.py:{given}"
    assert main(["check", f"plain_ones.py:{target}", "--example", place, "--law", "scalar"]) == 0
    out = capsys.readouterr().out
    width = {"example": "(n, 3)", "three": "(n, 3)", "given": "(n, 5)", "strategy": "(n, 3)"}[given]
    assert f"student: logits {width}" in out


@pytest.mark.parametrize(("reference", "code"), [("slow", 0), ("double", 1)])
def test_a_reference_finds_an_error_of_scale(reference: str, code: int, capsys: Out) -> None:
    laws = ["--law", "reference", "--law", "reference-gradient"]
    assert main(["check", "plain_ones.py:half", "--reference", f"given_ones.py:{reference}", *laws]) == code
    assert ("the loss and its reference are: 0." in capsys.readouterr().out) is bool(code)


def test_tags_claim_what_is_else_only_looked_at(capsys: Out) -> None:
    command = ["check", "plain_ones.py:kd", "--law", "symmetric"]
    assert main(command) == 0
    assert "differs   symmetric: not claimed, and not so" in capsys.readouterr().out
    assert main([*command, "--tag", "symmetric"]) == 1
    assert "BROKEN  symmetric: " in capsys.readouterr().out


def test_a_law_may_be_excused_with_a_reason_and_the_excuse_is_checked(capsys: Out) -> None:
    command = ["check", "plain_ones.py:pulled", "--law", "detached"]
    assert main([*command, "--except", "detached=both are trained: mutual learning"]) == 0
    assert "excused   detached: both are trained: mutual learning" in capsys.readouterr().out
    assert main(["check", "plain_ones.py:half", "--law", "detached", "--except", "detached=mutual"]) == 1
    out = capsys.readouterr().out
    assert "NOT BROKEN  detached: " in out
    assert "it was said to fail (mutual), and it holds" in out
    assert "--except LAW" not in out


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("symmetric", None, True),
        ("symmetric", "False", False),
        ("stochastic", "true", True),
        ("min_batch", "3", 3),
        ("ignore_index", "-100", -100),
        ("detaches", "a, b", ("a", "b")),
        ("detaches", "", ()),
        ("not_stationary", "it pulls = pushes", "it pulls = pushes"),
    ],
)
def test_tags_are_read_as_their_fields_are_annotated(name: str, value: str | None, read: object) -> None:
    assert _tag(name, value, str(get_type_hints(Tags)[name])) == read


def test_a_tag_may_name_a_function(capsys: Out) -> None:
    command = ["check", "plain_ones.py:half", "--law", "splits-over-rows", "--tag", "coupled=false"]
    assert main([*command, "--tag", "count=given_ones.py:rows"]) == 0


def test_the_list_says_what_is_claimed_and_runs_nothing(capsys: Out) -> None:
    assert main(["check", "plain_ones.py:half", "--list", "--tag", "shift-invariant"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^claimed    detached: ", out, re.MULTILINE)
    assert re.search(r"^claimed    shift-invariant: ", out, re.MULTILINE)
    assert re.search(r"^looked at  symmetric: ", out, re.MULTILINE)
    assert re.search(r"^not asked  reference: ", out, re.MULTILINE)
    assert main(["check", "--list"]) == 0
    assert "gradcheck: The gradient is the derivative of the value, in float64." in capsys.readouterr().out


def test_what_the_loss_prints_is_left_out(capsys: Out) -> None:
    assert main(["check", "plain_ones.py:loud", "--law", "scalar"]) == 0
    out = capsys.readouterr().out
    assert "a line" not in out
    assert re.search(r"^It printed \d+ lines, left out here\.$", out, re.MULTILINE)


def test_thorough_draws_more(capsys: Out) -> None:
    counts = []
    for more in ([], ["--thorough"]):
        assert main(["check", "plain_ones.py:counted", "--law", "lowest-at-equality", *more]) == 0
        counts.append(sys.modules["plain_ones"].calls)
        sys.modules["plain_ones"].calls = 0
    assert counts[1] > 3 * counts[0]


def test_thorough_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    def none() -> str:
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    assert main(["check", "plain_ones.py:half", "--thorough", "--law", "inductor"]) == 2
    assert "--thorough compiles with inductor, which finds no C++ compiler" in capsys.readouterr().err


def test_a_golden_file_is_written_compared_and_written_anew(files: pathlib.Path, capsys: Out) -> None:
    command = ["check", "plain_ones.py:half", "--law", "scalar", "--golden"]
    path = files / "tests" / "golden" / "half.json"
    assert main(command) == 0
    written = "tests/golden/half.json: half, 4 cases (plain, confident, collapsed, one row)"
    assert f"\nwrote {written}\n" in capsys.readouterr().out
    first = path.read_bytes()

    assert main(command) == 0
    assert "obeyed    scalar, golden" in capsys.readouterr().out
    assert main([*command, "--update"]) == 0
    assert f"\nunchanged: {written}\n" in capsys.readouterr().out
    assert path.read_bytes() == first

    now = json.loads(first)
    value = now["cases"]["plain"]["value"]
    now["cases"]["plain"]["value"] = value * (1 + 1e-8)
    path.write_text(json.dumps(now))
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "BROKEN  golden: The numbers are those of tests/golden/half.json." in out
    assert f"    plain: the value was {value * (1 + 1e-8)!r}, and is {value!r}\n" in out
    assert "1 failed: golden" in out
    assert path.read_text() == json.dumps(now)  # only looked at

    assert main([*command, "--update"]) == 0
    assert f"\nwrote anew {written}\n" in capsys.readouterr().out
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "half.json: it is not JSON: Expecting"),
        ('{"loss": "half"}', "half.json: it is no golden file"),
    ],
)
def test_a_bad_golden_file_is_told_before_anything_runs(
    text: str, message: str, files: pathlib.Path, capsys: Out
) -> None:
    (files / "half.json").write_text(text)
    for more in ([], ["--update"]):
        assert main(["check", "plain_ones.py:half", "--golden", "half.json", "--law", "scalar", *more]) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert ("obeyed" in out) is bool(more)
    assert (files / "half.json").read_text() == text


def test_the_folder_of_golden_files_may_be_named(files: pathlib.Path, capsys: Out) -> None:
    command = ["check", "plain_ones.py:half", "--law", "scalar", "--golden"]
    for name in ("gold", "gold.d"):
        (files / name).mkdir()
        assert main([*command, name]) == 0
        assert (files / name / "half.json").is_file()


def test_a_case_that_the_loss_refuses_is_left_out_and_said(files: pathlib.Path, capsys: Out) -> None:
    (files / "refusing.py").write_text(
        "def loss(student, teacher):\n"
        "    assert student.abs().max() < 50\n"
        "    return (student - teacher.detach()).square().mean()\n"
    )
    assert main(["check", "refusing.py:loss", "--law", "scalar", "--golden"]) == 0
    assert (
        "loss, 3 cases (plain, collapsed, one row); left out, for the loss raised: confident" in capsys.readouterr().out
    )
