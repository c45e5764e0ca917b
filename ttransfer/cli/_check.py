"""`ttransfer check`: a loss from the command line on trial."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from rich.console import Console
from torch import nn

from ttransfer._errors import TransferError, nearest
from ttransfer.cli._inductor import LAWS, want_compiler
from ttransfer.cli._load import load
from ttransfer.testing._golden import check_golden, golden_cases, write_golden
from ttransfer.testing._law import Broken, Law, Outcome, Report, Trial, judge
from ttransfer.testing._losses import loss_trial
from ttransfer.testing._show import print_laws, print_report
from ttransfer.testing._subject import Subject
from ttransfer.testing._tags import Tags

__all__ = ["Options", "run"]

EXAMPLES, THOROUGH = 20, 100


class Options(NamedTuple):
    """What was typed.

    Attributes:
        target: the loss, "" if none is named.
        example: where its example comes from.
        reference: where its slow formula is.
        tags: NAME or NAME=VALUE.
        laws: names of the laws to run; all if empty.
        excepted: LAW=REASON.
        golden: a golden file, or a folder for it.
        update: write the golden file anew.
        thorough: more inputs, and inductor.
        list_: list the laws and run none.
    """

    target: str
    example: str = ""
    reference: str = ""
    tags: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    excepted: tuple[str, ...] = ()
    golden: str = ""
    update: bool = False
    thorough: bool = False
    list_: bool = False


def run(options: Options) -> int:
    """Run `ttransfer check`; return its exit code: 0 obeyed, 1 a law is broken, 2 it could not be tried.

    Args:
        options: what was typed.
    """
    # Rich leaves bold and underlined text when there is to be no colour.
    system = None if os.environ.get("NO_COLOR") else "auto"
    out, err = (Console(color_system=system, highlight=False, stderr=stderr) for stderr in (False, True))
    try:
        return _checked(options, out, err)
    except TransferError as error:
        err.print(f"ttransfer check: {error}", markup=False, soft_wrap=True)
        return 2


def _checked(options: Options, out: Console, err: Console) -> int:
    start = time.monotonic()
    if not options.target:
        if not options.list_:
            raise TransferError("no TARGET: want package.module:name or file.py:name")
        print_laws([(one, None) for one in loss_trial(lambda student, teacher: student.mean()).laws], out)
        return 0
    if options.update and not options.golden:
        raise TransferError("--update writes the golden file anew: give --golden too")
    hidden = io.StringIO()
    with contextlib.redirect_stdout(hidden):
        trial = _trial(options)
    golden = _golden_path(options.golden, trial.name)
    compared = golden is not None and golden.exists() and not options.update
    if golden is not None and compared:
        with contextlib.suppress(Broken):
            check_golden(golden, trial)  # a file that is none is told at once
        trial = trial._replace(laws=(*trial.laws, _golden_law(golden, trial)))
    if options.list_:
        print_laws([(one, one.claim(trial.subject)) for one in trial.laws], out)
        return 0
    names = _names(options, trial, compared)
    report = _judged(trial, names, hidden, err)
    print_report(report, out)
    if printed := len(hidden.getvalue().splitlines()):
        out.print(f"It printed {printed} line{'s' * (printed > 1)}, left out here.", soft_wrap=True)
    if golden is not None and not compared:
        _write(golden, trial, out)
    if any(o.law.name == "scalar" and o.found.startswith("it raised") for o in report.failed):
        out.print(
            "It raises. Were its arguments taken for what they are? --example FILE.PY:FN gives them", soft_wrap=True
        )
    if any(o.status == "broken" and o.law.name != "golden" for o in report.failed):
        out.print('Is one meant to be broken? --except LAW="why"', soft_wrap=True)
    out.print(f"{time.monotonic() - start:.1f} s", style="dim")
    return int(bool(report.failed))


def _trial(options: Options) -> Trial:
    fn = _callable(load(options.target), options.target)
    example = None
    if options.example:
        example = load(options.example)
        if inspect.isroutine(example):
            try:
                example = example()
            except Exception as error:
                raise TransferError(f"{options.example} raised {type(error).__name__}: {error}") from error
        if example is None:
            raise TransferError(f"{options.example} returned None; want a tuple of the loss's arguments")
    reference = load(options.reference) if options.reference else None
    if reference is not None and not callable(reference):
        raise TransferError(f"{options.reference} is a {type(reference).__name__}, which cannot be called")
    trial = loss_trial(
        fn,
        example,
        tags=_tags(options.tags),
        reference=reference,
        expected_failed_checks=dict(_excuse(text) for text in options.excepted),
        name=options.target.rpartition(":")[2],
        examples=THOROUGH if options.thorough else EXAMPLES,
    )
    if options.thorough:
        want_compiler()
        trial = trial._replace(laws=(*trial.laws, *LAWS))
    return trial


def _callable(target: Any, name: str) -> Callable[..., Any]:
    if inspect.isclass(target):
        if not issubclass(target, nn.Module):
            raise TransferError(f"{name} is a class; want a function, a functools.partial or an nn.Module")
        parameters = inspect.signature(target).parameters.values()
        missing = [
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if missing:
            raise TransferError(
                f"{name} is an nn.Module class that needs {', '.join(missing)}; make an instance in the file, "
                f"loss = {target.__name__}(...), and name that"
            )
        try:
            return target()
        except Exception as error:
            raise TransferError(f"{name}() raised {type(error).__name__}: {error}") from error
    if not callable(target):
        raise TransferError(f"{name} is a {type(target).__name__}, which cannot be called")
    return target


def _excuse(text: str) -> tuple[str, str]:
    name, equals, reason = text.partition("=")
    if not equals or not reason.strip():
        raise TransferError(f'--except {text}: want LAW="why it is broken"')
    return name.strip(), reason.strip()


def _tags(texts: tuple[str, ...]) -> Tags:
    hints = get_type_hints(Tags)
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in hints:
            raise TransferError(f"--tag {text}: there is no tag {name!r}{nearest(name, hints)}")
        given[name] = _tag(name, value.strip() if equals else None, str(hints[name]))
    return Tags(**given)


def _tag(name: str, value: str | None, hint: str) -> Any:
    """Read a tag's value as what its field is annotated with."""
    if "bool" in hint:
        words = {None: True, "true": True, "false": False}
        if (value and value.lower()) not in words:
            raise TransferError(f"--tag {name}={value}: want true or false")
        return words[value and value.lower()]
    if value is None:
        raise TransferError(f"--tag {name}: it wants a value, {name}=...")
    if "Callable" in hint:
        return load(value)
    if "tuple" in hint:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if "int" in hint:
        try:
            return int(value)
        except ValueError:
            raise TransferError(f"--tag {name}={value}: want a whole number") from None
    return value


def _golden_path(text: str, name: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    if path.suffix == ".json" and not path.is_dir():
        return path
    if path.suffix and not path.is_dir():
        raise TransferError(f"--golden {text}: want a .json file, or a folder for {name}.json")
    return path / f"{name}.json"


def _golden_law(path: Path, trial: Trial) -> Law:
    def check(subject: Subject) -> None:
        check_golden(path, trial)

    check.__doc__ = f"""The numbers are those of {path}.

    Broken by: a change of the formula, a default or an order of rounding. If it is meant, review what --update writes.
    """
    return Law("golden", check, lambda subject: True)


def _names(options: Options, trial: Trial, compared: bool) -> list[str]:
    """The laws to run, in their order."""
    asked = [one.name for one in trial.asked]
    known = {one.name: one for one in trial.laws}
    for name in [*options.laws, *trial.expected]:
        if name not in known:
            raise TransferError(f"there is no law {name!r}{nearest(name, known)}")
        if name not in asked:
            raise TransferError(
                f"{name} says nothing of {trial.name}: its arguments, {trial.taken}, and its tags do not ask for it"
            )
    wanted = {*options.laws, *(["golden"] if compared else ())} if options.laws else set(asked)
    return [name for name in asked if name in wanted]


def _judged(trial: Trial, names: list[str], hidden: io.StringIO, err: Console) -> Report:
    """Judge law by law, and say on a terminal which one."""
    outcomes: list[Outcome] = []
    with _told(err) as tell:
        for i, name in enumerate(names):
            tell(f"{trial.name}: law {i + 1} of {len(names)}, {name}")
            with contextlib.redirect_stdout(hidden):
                outcomes += judge(trial, only=[name]).outcomes
    return Report(trial.name, trial.taken, tuple(outcomes))


@contextlib.contextmanager
def _told(err: Console) -> Iterator[Callable[[str], object]]:
    if not err.is_terminal:
        yield lambda text: None
        return
    with err.status("") as status:
        yield status.update


def _write(path: Path, trial: Trial, out: Console) -> None:
    before = path.read_bytes() if path.exists() else None
    cases = write_golden(path, trial)
    what = "wrote" if before is None else "unchanged:" if path.read_bytes() == before else "wrote anew"
    left = [name for name in golden_cases(trial) if name not in cases]
    text = f"{what} {path}: {trial.name}, {len(cases)} cases ({', '.join(cases)})"
    text += f"; left out, for the loss raised: {', '.join(left)}" * bool(left)
    out.print(text, markup=False, soft_wrap=True)
