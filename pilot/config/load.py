"""pilot.yaml to `Settings`: everything that is wrong with it at once, each with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from pilot.config import document as yaml
from pilot.config.conflicts import conflicts, suggestion
from pilot.config.document import Document, Problem, Scalar, Table, resolve
from pilot.config.fields import Section
from pilot.config.locate import Source, default_state_dir, find
from pilot.config.problems import problems_of
from pilot.config.render import json_schema, mask
from pilot.config.schema import Settings
from pilot.domain.errors import ConfigError

__all__ = ["Loaded", "json_schema", "load", "mask"]

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/@:\s]*:[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Loaded:
    """`path`: the file, None when there is none and all are defaults. `warnings`: one line each."""

    settings: Settings
    path: Path | None
    warnings: tuple[str, ...] = ()


def load(path: Path | None, environ: Mapping[str, str]) -> Loaded:
    """Find, read and check the configuration. Raises `ConfigError` with every problem, in the file's order."""
    source = find(path, environ)
    document = source.read()
    problems = list(document.problems)
    root = document.root
    if not (root is None or isinstance(root, Table) or (isinstance(root, Scalar) and root.value is None)):
        problems.append(Problem(root.line, root.column, (), "expected keys with values, such as `projects:`"))
        raise _error(problems, source)

    settings, errors = _validate(document, source)
    if errors and _take_variables_for_more_than_text(document, errors):
        settings, errors = _validate(document, source)
    problems += problems_of(errors, document, Settings)
    if errors and not any(error["type"] == "conflict" for error in errors):
        problems += _conflicts(document)
    if problems or settings is None:
        raise _error(problems, source)
    return Loaded(settings, source.path, (*source.warnings, *_warnings(settings, document, source.name)))


def _validate(document: Document, source: Source) -> tuple[Settings | None, list[ErrorDetails]]:
    data = {"state_dir": default_state_dir(source.environ), **document.plain()}
    try:
        context = {"place": source.place}
        return Settings.model_validate(data, context=context, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, error.errors(include_url=False, include_input=False)


def _take_variables_for_more_than_text(document: Document, errors: list[ErrorDetails]) -> bool:
    """`port: ${PORT}` is text that ought to be a number: read it as one, and an empty text as null."""
    changed = False
    for error in errors:
        node = document.at(error["loc"])
        if isinstance(node, Scalar) and node.variable and isinstance(node.value, str) and not node.broken:
            value = resolve(node.value)
            changed = changed or value != node.value
            node.value = value
    return changed


def _conflicts(document: Document) -> Iterator[Problem]:
    for where, what in conflicts(document.plain()):
        node, line, column = document.find(where)
        if not (isinstance(node, Scalar) and node.broken):
            yield Problem(line, column, where, what)


def _error(problems: list[Problem], source: Source) -> ConfigError:
    in_order = sorted(set(problems), key=lambda problem: (problem.line, problem.column, problem.text))
    return ConfigError([problem.render(source.name) for problem in in_order])


def _warnings(settings: Settings, document: Document, name: str) -> Iterator[str]:
    for path, value in _set_by_file(settings, ()):
        node = document.at(path)
        if not isinstance(node, Scalar) or node.variable:
            continue
        if isinstance(value, SecretStr):
            if "environment" in path and not _SECRET_NAME.search(str(path[-1])):
                continue  # `set: {CI: "1"}`
        elif not _PASSWORD.search(str(value)):
            continue
        text = "a secret stands in the file itself; write ${NAME}, and its value into .env or the environment"
        yield Problem(node.line, node.column, path, text).render(name)
    names = [project.name for project in settings.projects]
    for index, route in enumerate(settings.executor.routes):
        wanted = route.match.project
        if wanted is not None and wanted not in names:
            path = ("executor", "routes", index, "match", "project")
            _, line, column = document.find(path)
            what = f"no project of this file is named '{wanted}'{suggestion(wanted, names)}"
            yield Problem(line, column, path, what).render(name)


def _set_by_file(value: Any, path: yaml.Path) -> Iterator[tuple[yaml.Path, Any]]:
    """Every leaf that the file sets, secrets and texts only."""
    if isinstance(value, Section):
        fields = type(value).model_fields
        for name in value.model_fields_set:
            yield from _set_by_file(getattr(value, name), (*path, fields[name].alias or name))
    elif isinstance(value, tuple):
        for index, one in enumerate(value):
            yield from _set_by_file(one, (*path, index))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _set_by_file(one, (*path, key))
    elif isinstance(value, (SecretStr, str)):
        yield path, value
