"""What a loss's arguments are, by their names, an example, or trial."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ttransfer._errors import TransferError, shown

__all__ = ["Argument", "by_example", "named", "signature_of", "words"]


class Argument(NamedTuple):
    """One positional argument.

    Attributes:
        name: its name.
        kind: "logits", "features", "labels", "probabilities", "weights" (not negative), "mask" or "fixed".
        shape: numbers, and letters for what may vary: n and m rows, c classes, d features.
        role: "student", "teacher", "source", "target" or "".
        value: a fixed argument's value; an example's tensor.
    """

    name: str
    kind: str
    shape: tuple[int | str, ...] = ()
    role: str = ""
    value: Any = None

    @property
    def rows(self) -> str:
        """The letter of the rows that it has, "" if it has none."""
        return next((str(x) for x in self.shape if x in ("n", "m")), "")

    @property
    def has_rows(self) -> bool:
        """Whether an axis goes over examples."""
        return bool(self.rows)

    @property
    def axis(self) -> int:
        """The axis that goes over examples: 0, but for stacked teachers."""
        return self.shape.index(self.rows)

    def take(self, x: Any, index: Any) -> Any:
        """Index the rows of a value of this argument; what has none stays as it is."""
        if not self.has_rows or not isinstance(x, Tensor):
            return x
        return x[(*[slice(None)] * self.axis, index)]

    @property
    def floating(self) -> bool:
        """Whether it is drawn as real numbers."""
        return self.kind in ("logits", "features", "probabilities", "weights")

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.name}: {self.value if isinstance(self.value, (int, float)) else 'as given'}"
        return f"{self.name}: {self.kind} ({', '.join(map(str, self.shape))})"


ROLES = {
    "student": "student",
    "stu": "student",
    "students": "student",
    "teacher": "teacher",
    "teachers": "teacher",
    "tea": "teacher",
    "source": "source",
    "src": "source",
    "target": "target",
    "tgt": "target",
    "trg": "target",
}
LABELS = {"label", "labels", "y", "classes", "index", "indices", "gt", "truth"}
FEATURES = {
    *("feature", "features", "feat", "feats", "f", "fs", "ft", "embedding", "embeddings", "emb", "hidden", "hiddens"),
    *("z", "z1", "z2", "x", "h", "fm", "map", "maps", "fmap", "attention", "source", "src", "tgt", "trg"),
}
LOGITS = {
    *(
        "logits",
        "logit",
        "student",
        "students",
        "teacher",
        "teachers",
        "scores",
        "score",
        "pred",
        "preds",
        "prediction",
        "predictions",
    ),
    *("output", "outputs", "out", "input", "inputs"),
}
WEIGHTS = {"weight", "weights"}
MASKS = {"mask", "masks", "valid"}
CENTRES = {"centre", "centres", "center", "centers", "prototype", "prototypes", "anchors", "bank", "queue", "codebook"}
NUMBERS = {
    **dict.fromkeys(("temperature", "temp", "tau"), 4.0),
    **dict.fromkeys(("T", "epsilon_smoothing", "bandwidth", "sigma", "margin", "gamma"), 2.0),
    **dict.fromkeys(("alpha", "beta", "lam", "lambda_", "lmbda", "ratio", "smoothing"), 0.5),
    **dict.fromkeys(("eps", "epsilon"), 1e-6),
}


def words(name: str) -> set[str]:
    """The words of an argument's name."""
    return set(re.split(r"[_\d]+", name.lower())) | {name.lower()}


def role_of(name: str, others: set[str]) -> str:
    """The role that a name claims among the other arguments' names.

    `target` beside `source` is a domain; beside anything else it is what is to be hit.
    """
    roles = {ROLES[word] for word in words(name) if word in ROLES} or _paired(name, others)
    role = min(roles) if len(roles) == 1 else ""
    if role == "target":
        return role if any("source" in words(o) or "src" in words(o) for o in others) else ""
    return role


def _paired(name: str, others: set[str]) -> set[str]:
    """The role in s_logits, t_logits: logits are a student's and a teacher's; features could be two domains'."""
    for letter, other, role in (("s", "t", "student"), ("t", "s", "teacher")):
        for old, new in ((f"{letter}_", f"{other}_"), (f"_{letter}", f"_{other}")):
            twin = new + name[2:] if name.startswith(old) else name[:-2] + new if name.endswith(old) else ""
            if twin in others and words(name) & {"logits", "logit"}:
                return {role}
    return set()


def signature_of(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """The positional parameters that must be given.

    Raises:
        TransferError: if a keyword must be given, or nothing can be seen.
    """
    title = getattr(fn, "__name__", type(fn).__name__)
    call = fn.forward if isinstance(fn, torch.nn.Module) else fn
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError) as error:
        raise TransferError(f"{title}: its signature cannot be read; give an example of its arguments") from error
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty:
            raise TransferError(
                f"{title}: {p.name}= has no default; give it with functools.partial({title}, {p.name}=...)"
            )
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]


def named(fn: Callable[..., Any]) -> list[list[Argument]]:
    """What each argument may be, the likeliest first, by its name alone."""
    parameters = signature_of(fn)
    names = {p.name for p in parameters}
    return [_candidates(p, names - {p.name}) for p in parameters]


def _candidates(parameter: inspect.Parameter, others: set[str]) -> list[Argument]:
    name, role = parameter.name, role_of(parameter.name, others)
    seen = words(name)
    if parameter.annotation in (float, int, "float", "int") or name in NUMBERS:
        number = NUMBERS.get(name, 2.0)
        return [Argument(name, "fixed", value=int(number) if parameter.annotation in (int, "int") else number)]
    rows = "m" if role == "target" else "n"
    label = Argument(name, "labels", (rows,), role)
    mask = Argument(name, "mask", (rows,), role)
    weight = Argument(name, "weights", (rows,), role)
    logits = Argument(name, "logits", (rows, "c"), role)
    features = Argument(name, "features", (rows, "d"), role)
    if seen & LABELS:
        return [label, logits]
    if seen & MASKS:
        return [mask]
    if seen & WEIGHTS:
        return [weight, Argument(name, "weights", ("c",), role), features]
    if seen & FEATURES and not seen & {"logits", "logit"}:
        return [features, logits] if role else [features, logits, label]
    if seen & LOGITS:
        return [logits, features] if role else [logits, features, label]
    if role:
        return [features, logits]
    if seen & {"target", "targets"}:
        return [label, logits, features]
    return [logits, features, label]


def by_example(fn: Callable[..., Any], example: Any) -> list[Argument]:
    """What the arguments of an example are: their shapes stay, but for the rows.

    Args:
        fn: the loss; its parameters name the example's entries.
        example: a tuple of arguments, or name -> argument.
    """
    names = [p.name for p in signature_of(fn)] if isinstance(example, Mapping) else _positional(fn)
    if isinstance(example, Mapping):
        for name in names:
            if name not in example:
                raise TransferError(f"the example has no {name!r}; it has: {', '.join(map(str, example))}")
        values = {name: example[name] for name in names}
    else:
        given = example if isinstance(example, (tuple, list)) else (example,)
        names += [f"argument_{i}" for i in range(len(names), len(given))]
        values = dict(zip(names, given, strict=False))
    tensors = {k: v for k, v in values.items() if isinstance(v, Tensor) and v.ndim}
    main = next((v for k, v in tensors.items() if not words(k) & WEIGHTS), torch.zeros(0))
    two = {role_of(k, set(values) - {k}) for k in values} >= {"source", "target"}
    return [_of_value(fn, k, v, set(values) - {k}, main, two) for k, v in values.items()]


def _positional(fn: Callable[..., Any]) -> list[str]:
    call = fn.forward if isinstance(fn, torch.nn.Module) else fn
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _of_value(fn: Callable[..., Any], name: str, value: Any, others: set[str], main: Tensor, two: bool) -> Argument:
    role = role_of(name, others)
    if not isinstance(value, Tensor) or not value.ndim:
        return Argument(name, "fixed", (), role, value)
    seen = words(name)
    first, rows = main.shape[0], cast("int | str", value.shape[0])
    if two and role in ("source", "target"):
        rows = "n" if role == "source" else "m"
    elif value.shape[1:] == main.shape[1:] and value.shape[0] != first and value.ndim > 1 and not seen & CENTRES:
        rows = "m"  # as wide as the first, and of other rows
    elif value.shape[0] == first and (value.ndim > 1 or not seen & WEIGHTS):
        rows = "n"
    shape: tuple[int | str, ...] = (rows, *value.shape[1:])
    if rows not in ("n", "m") and value.ndim > 2 and value.shape[1] == first:
        shape = (value.shape[0], "n", *value.shape[2:])  # several teachers', one above the other
    has_rows = any(x in ("n", "m") for x in shape)
    return Argument(name, _kind(fn, name, value, has_rows), shape, role, value)


def _kind(fn: Callable[..., Any], name: str, value: Tensor, has_rows: bool) -> str:
    if value.dtype == torch.bool:
        return "mask"
    if not value.is_floating_point():
        return "labels" if has_rows else "fixed"
    if value.isnan().any():
        raise TransferError(f"the example's {name} holds NaN: {shown(value)}")
    if bool((value >= 0).all()):
        if value.ndim > 1 and bool(((value.sum(1) - 1).abs() < 1e-4).all()):
            return "probabilities"
        if bool(((value == 0) | (value == 1)).all()):
            return "mask"
        return "weights"
    seen = words(name)
    scores = seen & {"logits", "logit"} or (seen & LOGITS and not seen & FEATURES)
    return "logits" if has_rows and value.ndim == 2 and scores else "features"
