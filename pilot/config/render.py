"""Settings as people and editors read them: with the file's spelling, and nothing secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pilot.config.durations import DURATION_PATTERN, format_duration
from pilot.config.fields import SECRET_NAME, DurationMark, Section
from pilot.config.schema import ProfileSettings, ProjectSettings, RetryRuleSettings, RetrySettings, Settings
from pilot.domain.outcome import FailureClass

MASK = "***"
_CREDENTIALS = re.compile(
    r"(?<=://)(?:[^/@:\s]*:[^/@\s]*|(?<=http://)[^/@\s]+|(?<=https://)[^/@\s]+)(?=@)|(?<=[?&]password=)[^&\s]+"
)
_WHERE = re.compile(r"(?<=[^/:])[/?#]+[^/?#].*")
"""Of a web address what stands behind the host: in a webhook's it may be what lets one in."""
_VARIABLE = r"\$\{"
_DEFINITIONS = {
    "duration": {"type": "string", "pattern": f"{DURATION_PATTERN}|{_VARIABLE}", "description": "30s, 10m, 1h30m"},
    "variable": {"type": "string", "pattern": _VARIABLE, "description": "${NAME} or ${NAME:-default}"},
}


def mask(settings: Settings) -> dict[str, Any]:
    """The settings in effect, all keys as the file spells them, durations as text, `***` for every secret.

    Fit for JSON and YAML, and for `load`. Where keys lie over others (profiles, a project's executor) only
    those that are set are there.
    """
    rules = settings.retry_rules()
    in_effect = {name: RetryRuleSettings.of(rules[FailureClass(name)]) for name in RetrySettings.model_fields}
    shown = {**_section(settings), "retry": {name: _section(rule) for name, rule in in_effect.items()}}
    shown["notify"]["webhook"] = [_WHERE.sub(rf"/{MASK}", url) for url in shown["notify"]["webhook"]]
    return shown


def _section(section: Section, *, only_set: bool = False) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if only_set and name not in section.model_fields_set:
            continue
        over = only_set or (isinstance(section, ProjectSettings) and name == "executor")
        shown[field.alias or name] = _plain(getattr(section, name), field, over)
    return shown


def _plain(value: object, field: FieldInfo, only_set: bool) -> Any:
    match value:
        case Section():
            return _section(value, only_set=only_set or isinstance(value, ProfileSettings))
        case SecretStr():
            return MASK
        case Mapping():
            return {key: _kept(key, one) or _plain(one, field, only_set) for key, one in value.items()}
        case tuple() | list():
            return [_plain(one, field, only_set) for one in value]
        case Enum():
            return value.value
        case str() | Path():
            return _CREDENTIALS.sub(MASK, str(value))
        case float() if any(isinstance(mark, DurationMark) for mark in _marks(field)):
            return format_duration(value)
        case _:
            return value


def _kept(key: str, value: object) -> str | None:
    """The mask of what a plug-in's setting of that name may give away."""
    return MASK if isinstance(value, str) and SECRET_NAME.search(key) else None


def _marks(field: FieldInfo) -> list[Any]:
    # `Duration | None` has its marks one level down.
    inner = [getattr(one, "__metadata__", ()) for one in getattr(field.annotation, "__args__", ())]
    return [*field.metadata, *(mark for marks in inner for mark in marks)]


def json_schema() -> dict[str, Any]:
    """The JSON schema of pilot.yaml, for editors."""
    schema = _readable(Settings.model_json_schema(schema_generator=_Schema))
    definitions = schema.pop("$defs") | _DEFINITIONS
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pilot.yaml"}
    return {**head, **schema, "$defs": dict(sorted(definitions.items()))}


class _Schema(GenerateJsonSchema):
    """As pydantic makes it, with defaults as the file would say them, and without made-up titles."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        default = schema.get("default")
        if isinstance(default, Section):
            return inner  # its own schema has them
        if isinstance(default, float) and inner.get("pattern") == DURATION_PATTERN:
            default = format_duration(default)
        elif isinstance(default, (tuple, Mapping)):
            default = list(default) if isinstance(default, tuple) else dict(default)
        elif isinstance(default, Path):
            default = str(default)
        return {**inner, "default": default}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _readable(node: Any) -> Any:
    """Without made-up titles, and with a variable for any scalar: text takes one as it is, the rest have to say so."""
    if isinstance(node, list):
        return [_readable(one) for one in node]
    if not isinstance(node, dict):
        return node
    node = {key: _readable(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}
    if "anyOf" in node:
        node["anyOf"] = [one for way in node["anyOf"] for one in way.get("anyOf", [way])]
    about = {key: node.pop(key) for key in ("default", "description") if key in node}
    if node.get("pattern") == DURATION_PATTERN:
        node = {"$ref": "#/$defs/duration"}
    elif node.get("type") in ("integer", "number", "boolean") or (node.get("type") == "string" and "enum" in node):
        node = {"anyOf": [node, {"$ref": "#/$defs/variable"}]}
    return {**about, **node}
