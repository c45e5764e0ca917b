"""The command line: what may be written, and no more. torch is imported when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Optional

import typer

__all__ = ["main"]

GOLDEN = "--golden"
DEFAULT = "tests/golden"  # where a golden file is unless FILE says so

# Plain text: no boxes, which a pipe or a narrow terminal breaks.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def root() -> None:
    """Composable functional transfer learning on torch.func."""


@app.command()
def check(
    target: Annotated[
        Optional[str],  # noqa: UP045 -- typer reads it
        typer.Argument(metavar="TARGET", help="The loss: package.module:name or file.py:name."),
    ] = None,
    example: Annotated[
        str,
        typer.Option(
            metavar="FILE.PY:FN",
            help="A function that returns a tuple of the loss's arguments, or a Hypothesis strategy for such "
            "tuples. Without it the arguments' names decide.",
        ),
    ] = "",
    reference: Annotated[
        str, typer.Option(metavar="FILE.PY:FN", help="A slow formula for the same; value and gradient are compared.")
    ] = "",
    tag: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME[=VALUE]", help="Claim more, as non_negative, min_batch=2 or coupled=false. Repeat."),
    ] = None,
    law: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME", help="Run this law alone. Repeat for more."),
    ] = None,
    excepted: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--except", metavar="LAW=REASON", help="A law that the loss breaks, and why it may. Repeat."),
    ] = None,
    golden: Annotated[
        str,
        typer.Option(
            GOLDEN,
            metavar="[FILE]",
            help="Compare with a golden file, or write it if it is not there. FILE ends in .json; unless given it is "
            f"{DEFAULT}/NAME.json.",
        ),
    ] = "",
    update: Annotated[bool, typer.Option("--update", help="Write the golden file anew.")] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Five times as many inputs, and the inductor compiler. Minutes.")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="List the laws, and with TARGET which of them are claimed; run none.")
    ] = False,
) -> None:
    """Put a loss on trial: which laws does it obey?

    It exits with 0 if the loss obeys all that is claimed of it, with 1 if a law is broken, and with 2 if it could not
    be tried.
    """
    from ttransfer.cli import _check

    options = _check.Options(
        target or "", example, reference, tuple(tag or ()), tuple(law or ()), tuple(excepted or ()), golden, update,
        thorough, list_,
    )  # fmt: skip
    raise typer.Exit(_check.run(options))


@app.command()
def losses(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="One of them, such as kd or losses.kd.")] = "",
    cite: Annotated[bool, typer.Option("--bibtex", help="Print the papers for BibTeX.")] = False,
) -> None:
    """List the losses, alignments and ready terms; with NAME tell what one is, claims, and is checked against."""
    from ttransfer._errors import TransferError
    from ttransfer.cli import _losses

    try:
        raise typer.Exit(_losses.run(name, cite))
    except TransferError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


@app.command()
def plan(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="The checkpoint: a file, an index of shards, or a folder with one.")
    ],
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="What it is for: timm:NAME, torchvision:NAME, package.module:factory or file.py:factory. Nothing is "
            "downloaded.",
        ),
    ],
    of: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Which checkpoint, where the file holds several, such as ema."),
    ] = None,
    drop: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="PATTERN", help="Leave these tensors of the checkpoint out. Repeat."),
    ] = None,
    rename: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="OLD=NEW",
            help="A name, a prefix without its last dot (backbone= takes it off), or a regular expression and what it "
            r"gives (blocks\.(\d+)\.(.*)=layers.\1.\2). Repeat; they come after what is dropped, in the order given.",
        ),
    ] = None,
    allow: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="PATTERN", help="Targets that may stay as they are, and sources that may be left. Repeat."
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(metavar="name|order|shape", help="Match by this alone; else by all, in this order."),
    ] = "",
    classes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", min=1, help="Classes of the model's head."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Print every row.")] = False,
) -> None:
    """Say what would become of a checkpoint in a model, before anything is done.

    It exits with 0 if every tensor on both sides is accounted for, with 1 if one is not, and with 2 if there is no
    plan. A PATTERN is a regular expression for a whole name.
    """
    from ttransfer.cli import _plan

    options = _plan.Options(
        src, model, of, tuple(rename or ()), tuple(drop or ()), tuple(allow or ()), by, classes, every
    )
    raise typer.Exit(_plan.run(options))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what was typed after `ttransfer`; the process's own unless given.

    Returns:
        The exit code: 0 for success, 1 for a law that is broken or a plan with gaps, 2 for what could not be run.

    Example:
        >>> from ttransfer.cli import main
        >>> main(["check", "--golden", "new.json", "--help"])  # doctest: +ELLIPSIS
        Usage: ttransfer check [OPTIONS] [TARGET]
        ...
        0
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")  # a terminal of ASCII gets a question mark, and no traceback
    try:
        app(_with_value(list(sys.argv[1:] if arguments is None else arguments)), prog_name="ttransfer")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _with_value(arguments: list[str]) -> list[str]:
    """Give a bare --golden its default; typer knows no option whose value may be left out."""
    out: list[str] = []
    for i, argument in enumerate(arguments):
        after = arguments[i + 1] if i + 1 < len(arguments) else "-"
        bare = after.startswith("-") or (":" in after and not after.endswith(".json"))
        out.append(f"{GOLDEN}={DEFAULT}" if argument == GOLDEN and bare else argument)
    return out
