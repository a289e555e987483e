"""pilot.yaml.example and the JSON schema say what the settings' classes say."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pilot.config.document import Document, KeyPath, Listing, Table
from pilot.config.durations import DURATION_PATTERN, parse_duration
from pilot.config.fields import Fixed, Section
from pilot.config.idle import idle
from pilot.config.load import json_schema, load
from pilot.config.parse import parse
from pilot.config.problems import walk
from pilot.config.schema import ExecutorSettings, ProfileSettings, RetryRuleSettings, Settings
from pilot.domain.policy import RULES

VARIABLES = {"GITHUB_TOKEN": "x", "LINEAR_API_KEY": "x", "TELEGRAM_BOT_TOKEN": "x", "HOME": "/home/x"}
EMPTY = {"[] by default": (), "{} by default": Fixed[Any, Any](), "null by default": None}


@pytest.fixture
def example(repository_root: Path) -> Path:
    return repository_root / "pilot.yaml.example"


@pytest.fixture
def whole(example: Path) -> str:
    """With the keys that stand there as comments, because they are for another case."""
    return re.sub(r"(?m)^( +)# (?= *[a-z_]+:)", r"\1", example.read_text())


@pytest.fixture
def document(whole: str) -> Document:
    return parse(whole, lambda text: (text, ()))


@pytest.fixture
def comments(whole: str) -> dict[int, str]:
    """By line: what stands behind the one `#` after a space."""
    lines = enumerate(whole.splitlines(), 1)
    return {number: line.split(" # ", 1)[1] for number, line in lines if " # " in line}


def keys(value: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The path of every key."""
    if isinstance(value, Table):
        for key, inner in value.items():
            yield (*path, key)
            yield from keys(inner, (*path, key))
    elif isinstance(value, Listing):
        for index, inner in enumerate(value):
            yield from keys(inner, (*path, index))


def sections(annotation: Any, seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """Every class of settings that can be reached."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            for field in annotation.model_fields.values():
                sections(field.annotation, seen)
    else:
        for argument in getattr(annotation, "__args__", ()):
            sections(argument, seen)
    return seen


def owner(section: type[BaseModel], name: str) -> type:
    """The class in which the field is written."""
    return next(cls for cls in section.__mro__ if name in inspect.get_annotations(cls))


def test_it_can_be_loaded_and_nothing_in_it_is_odd(example: Path) -> None:
    found = load(example, VARIABLES)

    assert set(found.warnings) == set(idle(found.settings))
    assert found.settings.retry_rules() == RULES


def test_every_key_is_in_it(document: Document) -> None:
    shown = set()
    for path in keys(document.data):
        section, _ = walk(Settings, path[:-1])
        if isinstance(section, type) and issubclass(section, BaseModel):
            name = next(n for n, field in section.model_fields.items() if (field.alias or n) == path[-1])
            shown.add((owner(section, name), path[-1]))

    wanted = {
        (owner(section, name), field.alias or name)
        for section in sections(Settings, set())
        for name, field in section.model_fields.items()
    }
    # A profile's type is the executor's, said once more because it has no default there.
    assert wanted - shown == set()


def test_every_key_has_one_comment(whole: str, document: Document, comments: dict[int, str]) -> None:
    without, lines = [], whole.splitlines()
    for path in keys(document.data):
        spot = document.find(path)
        if not lines[spot.line - 1].lstrip().startswith("{") and spot.line not in comments:
            without.append(path)
    assert without == []
    assert [line for line in lines if len(line) > 120] == []


def test_every_value_is_the_default_or_says_that_it_is_an_example(
    example: Path, document: Document, comments: dict[int, str]
) -> None:
    settings = load(example, VARIABLES).settings
    wrong = []
    for path in keys(document.data):
        _, field = walk(Settings, path)
        comment = comments.get(document.find(path).line, "")
        if comment.startswith("example:") or path[0] == "retry":  # whose defaults are the core's own table
            continue
        value, default = at(settings, path), default_of(field)
        empty = [default for text, default in EMPTY.items() if text in comment]
        if empty and default != empty[0]:
            wrong.append((path, "by default", default))
        elif not empty and not isinstance(value, Section) and value != default:
            wrong.append((path, value, default))
    assert wrong == []


def default_of(field: FieldInfo | None) -> object:
    assert field is not None
    default = field.get_default(call_default_factory=True, validated_data={})
    return Path("/home/x", *default.parts[1:]) if isinstance(default, Path) else default


def at(value: Any, path: KeyPath) -> Any:
    for key in path:
        if isinstance(value, (Mapping, tuple)):
            value = value[key]  # type: ignore[index]
        else:
            fields = type(value).model_fields
            value = getattr(value, next(n for n, field in fields.items() if (field.alias or n) == key))
    return value


def test_editors_find_the_schema_by_its_first_line(example: Path, repository_root: Path) -> None:
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", example.read_text().splitlines()[0])

    assert match is not None
    assert (repository_root / match[1]).is_file()


def test_the_schema_file_is_the_one_that_the_classes_give(repository_root: Path) -> None:
    written = (repository_root / "config" / "pilot.schema.json").read_text()

    assert written == json.dumps(json_schema(), indent=2) + "\n"  # `make schema`


def test_the_schema_has_every_key_with_its_words() -> None:
    definitions = json_schema()["$defs"] | {"Settings": json_schema()}
    for section in sections(Settings, set()):
        properties = definitions[section.__name__]["properties"]
        assert list(properties) == [field.alias or name for name, field in section.model_fields.items()]
        assert definitions[section.__name__]["additionalProperties"] is False
        for name, field in section.model_fields.items():
            assert field.description, (section, name)
            about = properties[field.alias or name]
            assert about.get("description", field.description) == field.description
            if not field.is_required() and not isinstance(field.default, Section):
                assert "default" in about


def test_the_schema_takes_durations_as_they_are_written() -> None:
    schema = json_schema()

    assert schema["$defs"]["DispatcherSettings"]["properties"]["lease"] == {
        "default": "1m",
        "description": "How long a node that went silent keeps what it runs; renewed long before.",
        "$ref": "#/$defs/duration",
    }
    for text in ("500ms", "2h30m", "0s", "1.5h", "", "30", "1h30", "m", "30m1h"):
        assert bool(re.search(DURATION_PATTERN, text)) == (parse_duration(text) is not None)


def test_profiles_and_projects_take_the_executors_keys() -> None:
    assert set(ProfileSettings.model_fields) == set(ExecutorSettings.model_fields) - {"profiles", "routes", "fallback"}
    assert all(not field.is_required() for field in RetryRuleSettings.model_fields.values())
