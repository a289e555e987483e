"""YAML text to a `Document`: bounded while it is built, duplicate keys refused.

PyYAML's own constructors recurse (a deep file ends the process) and follow aliases blindly (442 bytes become
gigabytes), so the data is built here, from the parser's flat events, and counts as it grows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pilot.config.document import COLUMNS, Document, Key, KeyPath, Listing, Odd, Problem, Table, resolve, unpacked

MAX_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 2_000_000
"""Values in the file, those that come in by alias or merge counted each time: ten thousand projects with
every key set have a third of it."""

Expand = Callable[[str], tuple[str, Sequence[str]]]
"""Scalar text to its text with variables put in, and what is wrong with it."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where there is one: ten times as fast
_LARGE = 64 * 1024  # from here on, not parsing at all is worth not seeing that it could not be
_KEY_TEXT = "a key has to be text, not a list or another mapping"


class Unreadable(Exception):
    """The text can't be made data; carries the one problem that says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


def parse(text: str, expand: Expand, only: Collection[str] = ()) -> Document:
    """The data of one YAML document; `only`: of these keys at its top, in less than half the time.

    Raises `Unreadable` for syntax, and for what is too big or too deep.
    """
    if only and len(text) > _LARGE and not any(word in text for word in (*only, "<<", "\\")):
        return Document()
    builder = _Builder(expand)
    events = yaml.parse(text, Loader=_LOADER)
    try:
        for event in _skim(events, only) if only else events:
            builder.take(event)
    except Unreadable:
        if only:  # an alias of something that was left out, perhaps
            return parse(text, expand)
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        context = f" ({error.context})" if error.context else ""
        if "flow" in context and "${" in "".join(text.split("\n")[max(0, line - 2) : line]):
            context = " (in { } or [ ], a ${…} needs quotes)"
        raise Unreadable(Problem(line, column, (), f"not YAML: {error.problem}{context}")) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise Unreadable(Problem(line, column, (), f"not YAML: {error.reason}")) from None
    return builder.document


def _packed(event: yaml.Event) -> int:
    mark: Any = event.start_mark
    return int((mark.line + 1) * COLUMNS + mark.column + 1)


def _skim(events: Iterable[yaml.Event], only: Collection[str]) -> Iterator[yaml.Event]:
    """The events without the values of other keys at the top, and no further than all of them are there."""
    depth, at_key, keep = 0, True, True
    missing = set(only)
    for event in events:
        starts = isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth == 1 and at_key:
            keep = not isinstance(event, yaml.ScalarEvent) or event.value in (*only, "<<")
            at_key = False
            missing.discard(getattr(event, "value", ""))
        elif depth == 1 and not starts:
            at_key = True
        if depth == 0 or keep:
            yield event
        depth += starts
        if at_key and not missing:
            return


@dataclass(slots=True)
class _Frame:
    """A collection that is still open. In a mapping, `key` is the one whose value comes next, None before it."""

    value: Table | Listing
    mark: int
    anchor: str | None
    key: str | None = None
    key_mark: int = 0
    merges: bool = False
    size: int = 1
    height: int = 1
    merged: list[Table] = field(default_factory=list)


@dataclass(slots=True)
class _Finished:
    """A whole value, with what an alias of it costs to walk: its values, and its levels."""

    value: Any
    odd: Odd | None = None
    size: int = 1
    height: int = 0


class _Builder:
    def __init__(self, expand: Expand) -> None:
        self.document = Document()
        self._expand = expand
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Finished] = {}
        self._texts: dict[str, str] = {}
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(event)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._stop(event, f"*{event.anchor}: there is no finished &{event.anchor} above it")
            self._attach(self._anchors[event.anchor], event, _packed(event))
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._stop(event, "a second document starts here (---); one file holds one")

    def _stop(self, event: yaml.Event, text: str) -> Unreadable:
        return Unreadable(Problem(*unpacked(_packed(event)), self._path(), text))

    def _report(self, mark: int, path: KeyPath, text: str) -> None:
        self.document.problems.append(Problem(*unpacked(mark), path, text))

    def _path(self) -> KeyPath:
        keys: list[Key] = []
        for frame in self._frames:
            if isinstance(frame.value, Listing):
                keys.append(len(frame.value))
            elif frame.key is not None:
                keys.append(frame.key)
        return tuple(keys)

    def _check_tag(self, event: Any) -> None:
        if event.tag not in (None, "!"):
            raise self._stop(event, f"a tag ({event.tag}) is not understood here; text is written in quotes")

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        self._check_tag(event)
        frame = self._frames[-1] if self._frames else None
        if frame is not None and isinstance(frame.value, Table) and frame.key is None:
            raise self._stop(event, _KEY_TEXT)
        value = Listing() if isinstance(event, yaml.SequenceStartEvent) else Table()
        if frame is None:
            self.document.data, self.document.mark = value, _packed(event)
        self._frames.append(_Frame(value, _packed(event), event.anchor))
        self._count(event, 1, 0)

    def _close(self, event: yaml.Event) -> None:
        frame = self._frames.pop()
        if isinstance(frame.value, Table):
            _merge(frame.value, frame.merged)
        finished = _Finished(frame.value, None, frame.size, frame.height)
        if frame.anchor:
            self._anchors[frame.anchor] = finished
        self._nodes -= frame.size  # counted already, one by one
        self._attach(finished, event, frame.mark)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if event.tag is not None:
            self._check_tag(event)
        frame = self._frames[-1] if self._frames else None
        text: str = event.value
        text = self._texts.setdefault(text, text)  # most are said again and again
        value, odd = text, None
        if frame is not None and frame.key is None and isinstance(frame.value, Table):
            self._key(frame, text, event)
            return
        if "$" in text:
            value, wrong = self._expand(text)
            odd = Odd(text, "${" in text, bool(wrong))
            for problem in wrong:
                self._report(_packed(event), self._path(), problem)
        elif not event.style and event.implicit[0]:
            value = resolve(text)
            if value is not text:
                odd = Odd(text) if isinstance(value, bool) and text not in ("true", "false") else None
        finished = _Finished(value, odd)
        if event.anchor:
            self._anchors[event.anchor] = finished
        self._attach(finished, event, _packed(event))

    def _count(self, event: yaml.Event, nodes: int, height: int) -> None:
        """Stop at what would cost too much to walk: aliases make both numbers grow without any text."""
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._stop(event, f"more than {MAX_NODES:,} values (what aliases repeat counts each time)")
        if len(self._frames) + height > MAX_DEPTH:
            raise self._stop(event, f"nested more than {MAX_DEPTH} deep")

    def _attach(self, finished: _Finished, event: yaml.Event, mark: int) -> None:
        """Put a finished value where it belongs; `mark` is where it begins."""
        self._count(event, finished.size, finished.height)
        if not self._frames:
            self.document.data, self.document.mark = finished.value, mark
            return
        frame = self._frames[-1]
        frame.size += finished.size
        frame.height = max(frame.height, finished.height + (not frame.merges))
        if isinstance(frame.value, Listing):
            if finished.odd:
                frame.value.odd[len(frame.value)] = finished.odd
            frame.value.append(finished.value)
            frame.value.marks.append(mark)
        elif frame.key is None:
            if not isinstance(finished.value, str):
                raise self._stop(event, _KEY_TEXT)
            frame.key, frame.key_mark = finished.value, mark
        else:
            self._put(frame, frame.value, frame.key, finished)
            frame.key, frame.merges = None, False

    def _key(self, frame: _Frame, text: str, event: yaml.ScalarEvent) -> None:
        frame.key, frame.key_mark = text, _packed(event)
        frame.merges = text == "<<" and not event.style
        if not event.style and not isinstance(resolve(text), str):
            self._report(frame.key_mark, self._path(), f"a key has to be text: quote it, '{text}'")
        if event.anchor:
            self._anchors[event.anchor] = _Finished(text)

    def _put(self, frame: _Frame, table: Table, key: str, finished: _Finished) -> None:
        if frame.merges:
            tables = finished.value if isinstance(finished.value, Listing) else [finished.value]
            frame.merged += [table for table in tables if isinstance(table, Table)]
            if not all(isinstance(table, Table) for table in tables):
                self._report(frame.key_mark, self._path(), "merges mappings only (<<: *name)")
        elif key in table:
            first, _ = unpacked(table.marks[list(table).index(key)])
            self._report(frame.key_mark, self._path(), f"is here twice; the first is in line {first}")
        else:
            table[key] = finished.value
            table.marks.append(frame.key_mark)
            if finished.odd:
                table.odd[key] = finished.odd


def _merge(table: Table, merged: Sequence[Table]) -> None:
    """`<<`: keys of its own win, then those of the first mapping named."""
    for one in merged:
        for (key, value), mark in zip(one.items(), one.marks, strict=True):
            if key not in table:
                table[key] = value
                table.marks.append(mark)
                if key in one.odd:
                    table.odd[key] = one.odd[key]
