"""The kinds of values that settings have: durations, paths, addresses, names, secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from pilot.config.document import Trap
from pilot.config.durations import DURATION_PATTERN, LONGEST
from pilot.config.durations import parse_duration as parse_duration

K = TypeVar("K")
V = TypeVar("V")


class Fixed(Mapping[K, V]):
    """A mapping that stays as it is; hashable, so that one default serves ten thousand projects uncopied."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V] | None = None) -> None:
        self._items = dict(items or {})

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"Fixed({self._items!r})"


class Section(BaseModel):
    """Base of all settings: frozen, nothing unknown, no silent conversions.

    A validation context ({"place": text → Path}) says that values come from a file. Without one they come from
    Python: durations are then seconds, and relative paths start at the working directory.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_by_name=True,  # in Python; a file is read by alias only
        validate_by_alias=True,
        validate_default=False,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # inputs may be secrets
    )


class DurationMark:
    """Marks a field as a duration, for those who print settings and errors."""


def _read_duration(value: object, info: ValidationInfo) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    seconds: float | None = None
    if isinstance(value, str):
        seconds = parse_duration(value)
    elif number and info.context is None:
        seconds = float(value)  # type: ignore[arg-type]
    if seconds is None:
        hint = f" (a number needs its unit: {value}s, {value}m)" if number else ""
        raise PydanticCustomError(
            "duration", "expected a duration such as 500ms, 30s, 10m, 1h30m{hint}", {"hint": hint}
        )
    if not 0 <= seconds <= LONGEST:
        raise PydanticCustomError("duration", "a duration is at most 366d")
    return seconds


def placing(info: ValidationInfo) -> Callable[[str], Path]:
    """How a path's text becomes a path: as the file says, or from the working directory."""
    place: Callable[[str], Path] | None = (info.context or {}).get("place")
    return place or (lambda text: Path(text).expanduser().absolute())


def _read_path(value: object, info: ValidationInfo) -> Path:
    text = str(value) if isinstance(value, (str, Path)) else ""
    if not text or "\0" in text:
        raise PydanticCustomError("path", "expected a path, as text")
    return placing(info)(text)


def _read_shared(value: object, info: ValidationInfo) -> str:
    path = os.path.normpath(_read_path(value, info))
    if path in ("/", "//"):
        raise PydanticCustomError("shared", "/ is everything; name what agents need, or set sandbox: none")
    return path


def _check_text(value: str) -> str:
    if not value:
        raise PydanticCustomError("empty", "must not be empty")
    return _check_argument(value)


def _check_argument(value: str) -> str:
    if "\0" in value:
        raise PydanticCustomError("text", "has a NUL character, which no program can be given")
    return value


def _check_word(value: str) -> str:
    if value.startswith("-"):
        raise PydanticCustomError("word", "must not begin with '-', or programs take it for an option")
    return _check_text(value)


def _check_secret(value: SecretStr) -> SecretStr:
    _check_text(value.get_secret_value())
    return value


def _read_rotating(value: object) -> object:
    if value in ("", [], ()):
        raise PydanticCustomError("empty", "must not be empty")
    if isinstance(value, (list, tuple)) and len(value) > 2:
        raise PydanticCustomError("rotating", "has two at most: the new one and the old")
    return value if value is None or isinstance(value, (list, tuple)) else (value,)


def _check_web(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or re.search(r"[\s\x00-\x1f]", value):
        raise PydanticCustomError("web", "expected an address such as https://host/path")
    return value


def _check_regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise PydanticCustomError("regex", "not a regular expression: {what}", {"what": str(error)}) from None
    return value


def named(pattern: str, what: str) -> Any:
    """A check that a text has a form; `what` says which, for people."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise PydanticCustomError("form", "expected {what}", {"what": what})
        return value

    return AfterValidator(check)


Duration = Annotated[
    float,
    BeforeValidator(_read_duration),
    DurationMark(),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN}),
]
"""Seconds; in the file a text with units."""

Count = Annotated[int, Field(ge=0, le=1_000_000)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Dollars = Annotated[float, Field(gt=0)]
Text = Annotated[str, AfterValidator(_check_text)]
Word = Annotated[str, AfterValidator(_check_word)]
Argument = Annotated[str, AfterValidator(_check_argument)]
Place = Annotated[Path, BeforeValidator(_read_path), WithJsonSchema({"type": "string"})]
Shared = Annotated[str, BeforeValidator(_read_shared), WithJsonSchema({"type": "string"})]
"""A path, absolute, that somebody else may see."""
Web = Annotated[str, AfterValidator(_check_web)]
Regex = Annotated[str, AfterValidator(_check_regex)]
Secret = Annotated[SecretStr, AfterValidator(_check_secret)]
Rotating = Annotated[
    tuple[Secret, ...] | None,
    Field(strict=False),
    BeforeValidator(_read_rotating),
    WithJsonSchema(
        {
            "anyOf": [
                {"format": "password", "type": "string", "writeOnly": True},
                {"items": {"format": "password", "type": "string", "writeOnly": True}, "maxItems": 2, "type": "array"},
                {"type": "null"},
            ]
        }
    ),
]
"""A secret, or two of which either will do, so that one can be changed for the other."""
Handle = Annotated[
    str,
    named(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "a name of letters, digits, '.', '_' and '-' (it stands in URLs)"),
]
Variable = Annotated[str, named(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
Repository = Annotated[str, named(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", "owner/repo")]
Frozen = AfterValidator(Fixed)


def _read_free(value: object) -> object:
    """Anything, as plain dicts and lists: nobody outside knows the classes that a file is read into."""
    match value:
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise PydanticCustomError("free", "its keys have to be text")
            return {str(key): _read_free(one) for key, one in value.items()}
        case list() | tuple():
            return [_read_free(one) for one in value]
        case Trap():
            return value.text
        case _:
            return value


Free = Annotated[Mapping[str, Any], BeforeValidator(_read_free), Frozen]
"""Keys and values that somebody else makes sense of."""
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""What stands under such a name is not shown."""
