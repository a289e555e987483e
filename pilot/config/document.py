"""What a YAML file says, as plain data that knows its lines."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import Any

from pilot.domain.text import one_line

Key = str | int
KeyPath = tuple[Key, ...]
_MEANINGS = {None: ("null",), True: ("true", "yes", "on"), False: ("false", "no", "off")}
_WORDS = {"": None, "~": None} | {
    spelling: value
    for value, words in _MEANINGS.items()
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}
_NUMERIC_START = frozenset("0123456789+-.")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|[-+]?\.[0-9]+")
_TRAP = re.compile(
    r"[-+]?0[0-9_]+|[-+]?0b[01_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?0o[0-7_]+"  # other bases
    r"|[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+"  # a float only with a dot and a sign, or everywhere
    r"|[-+]?[0-9]+(?::[0-9]+)+(?:\.[0-9]*)?"  # minutes and seconds, in base 60
    r"|[-+]?[0-9]*_[0-9_.]*"  # digits in groups
)
COLUMNS = 1 << 26
"""A place is line times this plus column: eight bytes instead of two objects, for a million values."""


@dataclass(frozen=True, slots=True)
class Trap:
    """An unquoted text that one YAML version takes for a number and another does not, so no value here."""

    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `line` and `column` count from 1."""

    line: int
    column: int
    path: KeyPath
    text: str

    def render(self, name: str) -> str:
        """The line for people: file:line:column: key.path: what."""
        key = ".".join(map(str, self.path))
        return one_line(f"{name}:{self.line}:{self.column}: {key + ': ' if key else ''}{self.text}", 1000)


@dataclass(frozen=True, slots=True)
class Odd:
    """A scalar that is not what its text says. `variable`: it came, in part, out of `${…}`; `broken`: in vain."""

    source: str
    variable: bool = False
    broken: bool = False


class Table(dict[str, Any]):
    """A YAML mapping. `marks` are the places of its keys, in their order; `odd` tells of some of its values."""

    __slots__ = ("marks", "odd")

    def __init__(self) -> None:
        self.marks = array("Q")
        self.odd: dict[Key, Odd] = {}


class Listing(list[Any]):
    """A YAML sequence. `marks` are the places of its items; `odd` tells of some of them."""

    __slots__ = ("marks", "odd")

    def __init__(self) -> None:
        self.marks = array("Q")
        self.odd: dict[Key, Odd] = {}


@dataclass(frozen=True, slots=True)
class Spot:
    """What stands at a path, or at the nearest one above it (`exact` is false then), and where."""

    value: Any
    line: int
    column: int
    exact: bool
    odd: Odd | None = None
    container: Table | Listing | None = None


@dataclass(slots=True)
class Document:
    """The whole file. `problems` are those found on the way; with any, the data is for finding more only."""

    data: Any = None
    mark: int = COLUMNS + 1
    problems: list[Problem] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, int]:
        """Line and column where the data begins."""
        return unpacked(self.mark)

    def find(self, path: KeyPath) -> Spot:
        """What is there. The place is that of the key, or of the list's item."""
        value, mark, odd, container = self.data, self.mark, None, None
        for index, key in enumerate(path):
            if isinstance(value, Table) and key in value:
                position = next(i for i, known in enumerate(value) if known == key)
            elif isinstance(value, Listing) and isinstance(key, int) and key < len(value):
                position = key
            else:
                return Spot(value, *unpacked(mark), exact=index == len(path), odd=odd, container=container)
            container, mark = value, value.marks[position]
            value, odd = container[key], container.odd.get(key)
        return Spot(value, *unpacked(mark), exact=True, odd=odd, container=container)


def unpacked(mark: int) -> tuple[int, int]:
    """Line and column of a place."""
    return divmod(mark, COLUMNS)


def resolve(text: str) -> Any:
    """An unquoted scalar's value: YAML 1.1's words and numbers, and a `Trap` where YAML versions disagree."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMERIC_START:
        return text
    if _INT.fullmatch(text):
        return int(text) if len(text) < 20 else Trap(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return Trap(text) if _TRAP.fullmatch(text) else text
