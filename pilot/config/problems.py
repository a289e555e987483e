"""What pydantic finds wrong, told as the person who wrote the file needs it: where, what, and what to write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pilot.config.conflicts import suggestion
from pilot.config.document import Document, KeyPath, Listing, Problem, Spot, Table, Trap, resolve
from pilot.config.durations import format_duration
from pilot.config.fields import DurationMark

_EXPECTED = {
    "string_type": "text",
    "path": "a path",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "mapping_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
}


def problems_of(errors: Sequence[ErrorDetails], document: Document, model: type[BaseModel]) -> Iterator[Problem]:
    """One problem per error. Values are told only where they can't be secrets."""
    for error in errors:
        path = tuple(key for key in error["loc"] if key != "[key]")
        spot = document.find(path)
        yield from problem_at(spot, path, _what(error, path, spot, model))


def problem_at(spot: Spot, path: KeyPath, what: str) -> Iterator[Problem]:
    """What is wrong with a value: nothing when its variable is, for that is told already."""
    odd = spot.odd
    if odd and odd.variable:
        what = what.replace(f"'{spot.value}'", f"'{odd.source}'")
    if not (odd and odd.broken):
        yield Problem(spot.line, spot.column, path, what)


def _what(error: ErrorDetails, path: KeyPath, spot: Spot, model: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    annotation, field = walk(model, path)
    if kind == "extra_forbidden":
        known = sorted(_fields(walk(model, path[:-1])[0]))
        return f"unknown key{suggestion(str(path[-1]), known) or ': known here are ' + ', '.join(known)}"
    if kind == "missing":
        return f"is missing: {field.description}" if field and field.description else "is missing"
    if kind in _EXPECTED:
        hint = _hint(kind, spot, secret=annotation is SecretStr)
        return f"expected {_EXPECTED[kind]}, got {_got(spot)}{hint}"
    if kind in ("literal_error", "enum"):
        return _choice(str(context.get("expected", "")), spot)
    if kind in _LIMITS:
        word, key = _LIMITS[kind]
        limit = context.get(key)
        duration = field is not None and any(isinstance(mark, DurationMark) for mark in field.metadata)
        return f"has to be {word} {format_duration(float(str(limit))) if duration else limit}"
    if kind == "too_short":
        return "must not be empty"
    message = error["msg"]
    return message + _trap(spot.value) if kind == "duration" else message


def _choice(expected: str, spot: Spot) -> str:
    names = [name.strip("' ") for name in expected.replace(" or ", ", ").split(",")]
    if isinstance(spot.value, str) and not _from_variable(spot):
        return f"'{spot.value}' is not one of {', '.join(names)}{suggestion(spot.value, names)}"
    return f"expected one of {', '.join(names)}, got {_got(spot)}{_hint('string_type', spot)}"


def _from_variable(spot: Spot) -> bool:
    return spot.odd is not None and spot.odd.variable


def _got(spot: Spot) -> str:
    if spot.odd is not None and spot.odd.variable:
        source = spot.odd.source
        return f"nothing: {source} is empty" if spot.value is None else f"what {source} stands for"
    match spot.value:
        case None:
            return "nothing"
        case bool():
            return "true" if spot.value else "false"
        case int() | float() | Trap():
            return "a number"
        case "":
            return "empty text"
        case str():
            return "text"
        case Listing():
            return "a list"
        case _:
            return "keys with values"


def _hint(kind: str, spot: Spot, *, secret: bool = False) -> str:
    """What to write in its place, where that is plain."""
    value = spot.value
    if _from_variable(spot) or isinstance(value, (Table, Listing)):
        return ""
    if value is None:
        return " (give it a value, or remove the key)"
    if kind in ("string_type", "path") and not isinstance(value, str):
        source = value.text if isinstance(value, Trap) else spot.odd.source if spot.odd else str(value).lower()
        means = f"{source} is {str(value).lower()} in YAML; " if isinstance(value, bool) else ""
        return " (quote it)" if secret else f' ({means}quote it: "{source}")'
    if isinstance(value, Trap):
        return _trap(value)
    if kind == "tuple_type":
        return " (write [a, b], or lines that begin with -)"
    bare = isinstance(value, str) and not isinstance(resolve(value), str)
    return " (write it without quotes)" if bare and kind in ("int_type", "float_type", "bool_type") else ""


def _trap(value: object) -> str:
    """Why an unquoted value that looks like a number is none."""
    if not isinstance(value, Trap):
        return ""
    source = value.text
    if ":" in source:
        return f" ({source} is a number in base 60 in YAML 1.1)"
    if re.fullmatch(r"[-+]?0[0-7]+", source):
        return f" ({source} is octal in YAML 1.1: write {int(source)}, or {int(source, 8)})"
    return f" ({source} is a number in some versions of YAML only: write its digits out)"


def walk(model: type[BaseModel], path: KeyPath) -> tuple[Any, FieldInfo | None]:
    """The type of the value that a path leads to, None where there is none, and the last field on the way."""
    here: Any = model
    field: FieldInfo | None = None
    for key in path:
        if fields := _fields(here):
            field = fields.get(str(key))
            here = field.annotation if field else None
        else:
            here = next(iter(get_args(here)[get_origin(here) is Mapping :]), None)
        while get_origin(here) in (Annotated, Union, UnionType):
            here = next(one for one in get_args(here) if one is not NoneType)
    return here, field


def _fields(annotation: object) -> dict[str, FieldInfo]:
    if not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
        return {}
    return {field.alias or name: field for name, field in annotation.model_fields.items()}
