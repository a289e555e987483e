"""A YAML text as a tree that knows its lines: bounded while it is built, duplicate keys refused.

PyYAML's own constructors recurse (a deep file ends the process) and follow aliases blindly (442 bytes become
gigabytes), so the tree is built here, from the parser's flat events, and counts as it grows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pilot.domain.text import one_line

MAX_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 2_000_000
"""Values in the file, those that come in by alias or merge counted each time: ten thousand projects with
every key set have a third of it."""

Key = str | int
Path = tuple[Key, ...]
Expand = Callable[[str], tuple[str, Sequence[str]]]
"""Scalar text to its text with variables put in, and what is wrong with it."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where there is one: ten times as fast
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


@dataclass(frozen=True, slots=True)
class Trap:
    """An unquoted text that one YAML version takes for a number and another does not, so no value here."""

    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `line` and `column` count from 1."""

    line: int
    column: int
    path: Path
    text: str

    def render(self, name: str) -> str:
        """The line for people: file:line:column: key.path: what."""
        key = ".".join(map(str, self.path))
        return one_line(f"{name}:{self.line}:{self.column}: {key + ': ' if key else ''}{self.text}", 1000)


def _place(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


class Scalar:
    """A leaf. `source` is its text in the file; `variable`: its value came, in part, out of `${…}`."""

    __slots__ = ("broken", "column", "line", "source", "value", "variable")
    size, height = 1, 0

    def __init__(self, event: yaml.ScalarEvent) -> None:
        self.line, self.column = _place(event)
        self.source: str = event.value
        self.value: Any = event.value
        self.variable = False
        self.broken = False

    def plain(self) -> Any:
        """The value as Python has it."""
        return self.value


class Listing:
    """A YAML sequence."""

    __slots__ = ("column", "height", "items", "line", "size")

    def __init__(self, event: yaml.Event) -> None:
        self.line, self.column = _place(event)
        self.items: list[Node] = []
        self.size, self.height = 1, 1

    def plain(self) -> Any:
        """The value as Python has it."""
        return [node.plain() for node in self.items]


class Table:
    """A YAML mapping with text keys, and where each key stands."""

    __slots__ = ("column", "height", "items", "line", "places", "size")

    def __init__(self, event: yaml.Event) -> None:
        self.line, self.column = _place(event)
        self.items: dict[str, Node] = {}
        self.places: dict[str, tuple[int, int]] = {}
        self.size, self.height = 1, 1

    def plain(self) -> Any:
        """The value as Python has it."""
        return {key: node.plain() for key, node in self.items.items()}


Node = Scalar | Listing | Table


@dataclass(slots=True)
class Document:
    """The whole file. `problems` are those found on the way; with any, the tree is for finding more only."""

    root: Node | None = None
    problems: list[Problem] = field(default_factory=list)

    def plain(self) -> Any:
        """Dicts, lists and scalars; an empty file is an empty dict."""
        value = None if self.root is None else self.root.plain()
        return {} if value is None else value

    def at(self, path: Path) -> Node | None:
        """The node there."""
        node = self.root
        for key in path:
            if isinstance(node, Table) and isinstance(key, str):
                node = node.items.get(key)
            elif isinstance(node, Listing) and isinstance(key, int) and key < len(node.items):
                node = node.items[key]
            else:
                return None
        return node

    def find(self, path: Path) -> tuple[Node | None, int, int]:
        """The node there, or the nearest above it, and where its key or item stands."""
        node, line, column = self.root, 1, 1
        if node is not None:
            line, column = node.line, node.column
        for key in path:
            below: Node | None = None
            if isinstance(node, Table) and isinstance(key, str) and key in node.items:
                below = node.items[key]
                line, column = node.places[key]
            elif isinstance(node, Listing) and isinstance(key, int) and key < len(node.items):
                below = node.items[key]
                line, column = below.line, below.column
            if below is None:
                break
            node = below
        return node, line, column


class Unreadable(Exception):
    """The text can't be made a tree; carries the one problem that says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


@dataclass(slots=True)
class _Frame:
    """A collection that is still open, and the key whose value comes next."""

    node: Listing | Table
    anchor: str | None
    key: str | None = None
    place: tuple[int, int] = (1, 1)
    merged: list[Table] = field(default_factory=list)


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


def parse(text: str, expand: Expand, only: Collection[str] = ()) -> Document:
    """The tree of one YAML document; `only`: of these keys at its top, in a third of the time.

    Raises `Unreadable` for syntax, and for what is too big or too deep.
    """
    builder = _Builder(expand)
    events = yaml.parse(text, Loader=_LOADER)
    try:
        for event in _skim(events, {*only, "<<"}) if only else events:
            builder.take(event)
    except Unreadable:
        if only:  # an alias of something that was left out, perhaps
            return parse(text, expand)
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        context = f" ({error.context})" if error.context else ""
        raise Unreadable(Problem(line, column, (), f"not YAML: {error.problem}{context}")) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise Unreadable(Problem(line, column, (), f"not YAML: {error.reason}")) from None
    return builder.document


def _skim(events: Iterable[yaml.Event], only: Collection[str]) -> Iterator[yaml.Event]:
    """The events without the values of other keys at the top."""
    depth, at_key, keep = 0, True, True
    for event in events:
        starts = isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth == 1 and at_key:
            keep = not isinstance(event, yaml.ScalarEvent) or event.value in only
            at_key = False
        elif depth == 1 and not starts:
            at_key = True
        if depth == 0 or keep:
            yield event
        depth += starts


class _Builder:
    def __init__(self, expand: Expand) -> None:
        self.document = Document()
        self._expand = expand
        self._frames: list[_Frame] = []
        self._anchors: dict[str, Node] = {}
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._attach(self._scalar(event), event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            frame = self._frames.pop()
            if isinstance(frame.node, Table):
                _merge(frame.node, frame.merged)
            if frame.anchor:
                self._anchors[frame.anchor] = frame.node
            self._attach(frame.node, event)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._stop(event, f"*{event.anchor}: there is no finished &{event.anchor} above it")
            self._attach(self._anchors[event.anchor], event, again=True)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._stop(event, "a second document starts here (---); one file holds one")

    def _stop(self, event: yaml.Event, text: str) -> Unreadable:
        return Unreadable(Problem(*_place(event), self._path(), text))

    def _path(self) -> Path:
        keys: list[Key] = []
        for frame in self._frames:
            if isinstance(frame.node, Listing):
                keys.append(len(frame.node.items))
            elif frame.key is not None:
                keys.append(frame.key)
        return tuple(keys)

    def _report(self, line: int, column: int, path: Path, text: str) -> None:
        self.document.problems.append(Problem(line, column, path, text))

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        self._check_tag(event)
        frame = self._frames[-1] if self._frames else None
        if frame is not None and isinstance(frame.node, Table) and frame.key is None:
            raise self._stop(event, "a key has to be text, not a list or another mapping")
        node = Listing(event) if isinstance(event, yaml.SequenceStartEvent) else Table(event)
        self._frames.append(_Frame(node, event.anchor))
        self._count(event, 0, 0)

    def _count(self, event: yaml.Event, nodes: int, height: int) -> None:
        """Stop at what would cost too much to walk: aliases make both numbers grow without any text."""
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._stop(event, f"more than {MAX_NODES:,} values (what aliases repeat counts each time)")
        if len(self._frames) + height > MAX_DEPTH:
            raise self._stop(event, f"nested more than {MAX_DEPTH} deep")

    def _check_tag(self, event: yaml.NodeEvent) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            raise self._stop(event, f"a tag ({tag}) is not understood here; text is written in quotes")

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        self._check_tag(event)
        node = Scalar(event)
        frame = self._frames[-1] if self._frames else None
        is_key = frame is not None and isinstance(frame.node, Table) and frame.key is None
        if "$" in node.source and not is_key:
            node.value, wrong = self._expand(node.source)
            node.variable = "${" in node.source
            node.broken = bool(wrong)
            for text in wrong:
                self._report(node.line, node.column, self._path(), text)
        elif not event.style and event.implicit[0]:
            node.value = resolve(node.source)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _attach(self, node: Node, event: yaml.Event, *, again: bool = False) -> None:
        """Put a finished node where it belongs; `again`: it is an alias of one that stands elsewhere."""
        self._count(event, node.size if again else 1, node.height)
        if not self._frames:
            self.document.root = node
            return
        frame = self._frames[-1]
        merges = frame.key == "<<"
        frame.node.size += node.size
        frame.node.height = max(frame.node.height, node.height + (not merges))
        if isinstance(frame.node, Listing):
            frame.node.items.append(node)
        elif frame.key is None:
            self._take_key(frame, node, event)
        else:
            self._take_value(frame, frame.node, node, event)
            frame.key = None

    def _take_key(self, frame: _Frame, node: Node, event: yaml.Event) -> None:
        if not isinstance(node, Scalar):
            raise self._stop(event, "a key has to be text, not a list or another mapping")
        place = _place(event)
        if not isinstance(node.value, str):
            what = f"a key has to be text: quote it, '{node.source}'"
            self._report(*place, (*self._path(), node.source), what)
        frame.key, frame.place = node.source, place

    def _take_value(self, frame: _Frame, table: Table, node: Node, event: yaml.Event) -> None:
        key, (line, column) = frame.key or "", frame.place
        if key == "<<":
            tables = node.items if isinstance(node, Listing) else [node]
            if not all(isinstance(one, Table) for one in tables):
                self._report(line, column, self._path(), "merges mappings only (<<: *name)")
            for one in tables:
                if isinstance(one, Table):
                    frame.merged.append(one)
                    table.size += one.size
                    self._count(event, one.size, one.height - 1)
        elif key in table.items:
            first = table.places[key][0]
            self._report(line, column, self._path(), f"is here twice; the first is in line {first}")
        else:
            table.items[key] = node
            table.places[key] = frame.place


def _merge(table: Table, merged: Sequence[Table]) -> None:
    """`<<`: keys of its own win, then those of the first mapping named."""
    for one in merged:
        for key, node in one.items.items():
            if key not in table.items:
                table.items[key] = node
                table.places[key] = one.places[key]
