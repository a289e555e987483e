"""Linear's own schema, given back from the types of its SDK: what the fake holds every request and answer to.

The package has no schema file, but its types were generated from one and lose almost nothing: names, nullability,
lists, arguments, enums, unions and interfaces are all there. Descriptions, defaults and directives are not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from graphql import GraphQLScalarType, GraphQLSchema, build_schema

SDK = Path(__file__).parent.parent / "adapters" / "node_modules" / "@linear" / "sdk"

KEPT = {
    "ActorBot", "AgentActivity", "AgentActivityActionContent", "AgentActivityConnection", "AgentActivityContent",
    "AgentActivityElicitationContent", "AgentActivityErrorContent", "AgentActivityPayload",
    "AgentActivityPromptContent", "AgentActivityResponseContent", "AgentActivityThoughtContent", "AgentSession",
    "AgentSessionConnection", "AgentSessionExternalLink", "AgentSessionPayload", "Comment", "CommentConnection",
    "CommentPayload", "ExternalUser", "Issue", "IssueConnection", "IssueHistory", "IssueHistoryConnection",
    "IssueLabel", "IssueLabelConnection", "IssuePayload", "Mutation", "Node", "Organization", "PageInfo", "Project",
    "Query", "Team", "User", "WorkflowState", "WorkflowStateConnection",
}  # fmt: skip
ROOTS = {
    "agentActivity", "agentSession", "agentSessions", "comment", "issue", "issueLabels", "issues", "team", "viewer",
    "agentActivityCreate", "agentSessionUpdate", "commentCreate", "commentUpdate", "issueUpdate",
}  # fmt: skip

_TYPE = re.compile(r"^type (\w+) = (?:(\w+) & )?\{$")
_UNION = re.compile(r"^type (\w+) = (\w+(?: \| \w+)*);$")
_ENUM = re.compile(r"^declare enum (\w+) \{$")
_FIELD = re.compile(r"^  (\w+)(\??): (.+);$")
_VALUE = re.compile(r'^  \w+ = "(\w+)",?$')
_SCALAR = re.compile(r'^Scalars\["(\w+)"\]$')


@dataclass(frozen=True, slots=True)
class Shape:
    """A type of the SDK: its fields as GraphQL types by name (`String!`), the interface it has, or its members."""

    name: str
    fields: Mapping[str, str]
    interface: str | None = None
    members: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


@functools.cache
def shapes() -> Mapping[str, Shape]:
    """Every type that stands before the SDK's own documents and classes."""
    (types,) = (SDK / "dist").glob("index-*.d.mts")
    return {shape.name: shape for shape in _read(types.read_text().splitlines())}


@functools.cache
def schema() -> GraphQLSchema:
    """What the fake answers with, cut to the types in use: a field that leads out of them is unknown."""
    known = shapes()
    cut = _Cut(known)
    built = build_schema("\n".join(cut.text()))
    for name, check in (("DateTime", _time), ("DateTimeOrDuration", _time), ("JSONObject", _object), ("UUID", _uuid)):
        scalar = built.type_map.get(name)
        if isinstance(scalar, GraphQLScalarType):
            scalar.parse_value = check  # type: ignore[method-assign]  # the way that graphql-core names for it
    return built


def check_payload(value: Any, name: str, where: str = "payload") -> None:
    """Raise `ValueError` if a webhook's JSON is not what the SDK's type `name` says."""
    shape = shapes()[name]
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is not a {name}: {value!r}")
    unknown = value.keys() - shape.fields.keys()
    if unknown:
        raise ValueError(f"{where}: {name} has no {', '.join(sorted(unknown))}")
    for field, kind in shape.fields.items():
        if field in value or kind.endswith("!"):
            _check(value.get(field), kind, f"{where}.{field}")


def _check(value: Any, kind: str, where: str) -> None:
    if value is None:
        if kind.endswith("!"):
            raise ValueError(f"{where} is missing")
        return
    kind = kind.removesuffix("!")
    if kind.startswith("["):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list: {value!r}")
        for number, item in enumerate(value):
            _check(item, kind[1:-1], f"{where}[{number}]")
    elif kind in _PLAIN:
        if not isinstance(value, _PLAIN[kind]) or (isinstance(value, bool) and kind != "Boolean"):
            raise ValueError(f"{where} is no {kind}: {value!r}")
        if kind == "DateTime":
            _time(value)
    elif shapes()[kind].members:
        _check_one_of(value, shapes()[kind].members, where)
    elif shapes()[kind].values:
        if value not in shapes()[kind].values:
            raise ValueError(f"{where} is no {kind}: {value!r}")
    else:
        check_payload(value, kind, where)


def _check_one_of(value: Any, names: tuple[str, ...], where: str) -> None:
    problems = []
    for name in names:
        try:
            check_payload(value, name, where)
        except ValueError as error:
            problems.append(str(error))
        else:
            return
    raise ValueError(f"{where} is none of {', '.join(names)}: {min(problems, key=len)}")


_PLAIN: Mapping[str, type | tuple[type, ...]] = {
    "ID": str, "String": str, "Boolean": bool, "Int": int, "Float": (int, float), "DateTime": str, "JSONObject": dict,
    "JSON": (dict, str), "TimelessDate": str, "UUID": str,
}  # fmt: skip


def _time(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no time")
    datetime.fromisoformat(value)
    return value


def _object(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no object")
    return value


def _uuid(value: Any) -> Any:
    return str(UUID(value))


def _read(lines: list[str]) -> Iterator[Shape]:
    number = 0
    while number < len(lines) and not lines[number].endswith("Fragment = {"):
        line = lines[number]
        number += 1
        if union := _UNION.match(line):
            yield Shape(union[1], {}, members=tuple(union[2].split(" | ")))
        elif enum := _ENUM.match(line):
            end = lines.index("}", number)
            yield Shape(enum[1], {}, values=tuple(found[1] for at in lines[number:end] if (found := _VALUE.match(at))))
            number = end
        elif found := _TYPE.match(line):
            end = lines.index("};", number)
            yield Shape(found[1], dict(_fields(lines[number:end])), found[2])
            number = end


def _fields(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        found = _FIELD.match(line)
        if found is not None and found[1] != "__typename":
            yield found[1], _graphql(found[3], optional=bool(found[2]))


def _graphql(text: str, *, optional: bool = False) -> str:
    """A TypeScript type as a GraphQL one."""
    for maybe in ("Maybe<", "InputMaybe<"):
        if text.startswith(maybe) and text.endswith(">"):
            return _graphql(text[len(maybe) : -1], optional=True)
    if text.startswith("Array<") and text.endswith(">"):
        kind = f"[{_graphql(text[6:-1])}]"
    elif scalar := _SCALAR.match(text):
        kind = scalar[1]
    else:
        kind = text if text.isidentifier() else "String"
    return kind if optional else kind + "!"


class _Cut:
    """The schema's text for the types in use, and for all that their arguments need."""

    def __init__(self, known: Mapping[str, Shape]) -> None:
        self._known = known
        self._inputs: dict[str, Shape] = {}
        self._enums: set[str] = set()
        self._scalars: set[str] = set()

    def text(self) -> Iterator[str]:
        for name in sorted(KEPT):
            yield self._output(self._known[name])
        done: set[str] = set()
        while self._inputs.keys() - done:
            for name in sorted(self._inputs.keys() - done):
                done.add(name)
                fields = [f"  {field}: {kind}" for field, kind in self._inputs[name].fields.items() if self._in(kind)]
                yield "\n".join([f"input {name} {{", *fields, "}"])
        for name in sorted(self._enums):
            yield f"enum {name} {{ {' '.join(self._known[name].values)} }}"
        for name in sorted(self._scalars - {"ID", "String", "Boolean", "Int", "Float"}):
            yield f"scalar {name}"

    def _output(self, shape: Shape) -> str:
        if shape.members:
            return f"union {shape.name} = {' | '.join(shape.members)}"
        lines = []
        for field, kind in shape.fields.items():
            root = shape.name in ("Query", "Mutation")
            if (field in ROOTS if root else True) and self._out(kind):
                lines.append(f"  {field}{self._arguments(shape.name, field)}: {kind}")
        interface = f" implements {shape.interface}" if shape.interface in KEPT else ""
        word = "interface" if shape.name == "Node" else "type"
        return "\n".join([f"{word} {shape.name}{interface} {{", *lines, "}"])

    def _arguments(self, owner: str, field: str) -> str:
        shape = self._known.get(f"{owner}{field[0].upper()}{field[1:]}Args")
        if shape is None:
            return ""
        return "(" + ", ".join(f"{name}: {kind}" for name, kind in shape.fields.items() if self._in(kind)) + ")"

    def _out(self, kind: str) -> bool:
        return _bare(kind) in KEPT or self._leaf(_bare(kind))

    def _in(self, kind: str) -> bool:
        name = _bare(kind)
        if not self._leaf(name):
            self._inputs[name] = self._known[name]
        return True

    def _leaf(self, name: str) -> bool:
        shape = self._known.get(name)
        if shape is None:
            self._scalars.add(name)
        elif shape.values:
            self._enums.add(name)
        return shape is None or bool(shape.values)


def _bare(kind: str) -> str:
    return kind.strip("[]!")
