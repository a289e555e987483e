"""pilot.yaml to `Settings`: everything that is wrong with it at once, each with its line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from pilot.config.conflicts import conflicts, suggestion
from pilot.config.document import Document, KeyPath, Problem, resolve
from pilot.config.fields import SECRET_NAME, Section
from pilot.config.idle import idle
from pilot.config.locate import Source, default_state_dir, find
from pilot.config.problems import problem_at, problems_of
from pilot.config.render import json_schema, mask
from pilot.config.schema import Settings
from pilot.domain.errors import ConfigError

__all__ = ["Loaded", "json_schema", "load", "mask"]

_PASSWORD = re.compile(r"://[^/@:\s]*:[^/@\s]+@|[?&](?:ssl)?password=[^&\s]")


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
    settings, errors = _validate(document, source)
    if errors and _take_variables_for_more_than_text(document, errors):
        settings, errors = _validate(document, source)
    problems = [*document.problems, *problems_of(errors, document, Settings)]
    if errors and not any(error["type"] == "conflict" for error in errors):
        problems += _conflicts(document)
    if problems or settings is None:
        raise ConfigError(_in_order(problems, source))
    warnings = [*source.warnings, *_in_order(_warnings(settings, document), source)]
    return Loaded(settings, source.path, (*warnings, *idle(settings)))


def _validate(document: Document, source: Source) -> tuple[Settings | None, list[ErrorDetails]]:
    data = {"state_dir": default_state_dir(source.environ), **(document.data or {})}
    try:
        context = {"place": source.place}
        return Settings.model_validate(data, context=context, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, error.errors(include_url=False, include_input=False)


def _take_variables_for_more_than_text(document: Document, errors: list[ErrorDetails]) -> bool:
    """`port: ${PORT}` is text that ought to be a number: read it as one, and an empty text as null."""
    changed = False
    for error in errors:
        spot = document.find(error["loc"])
        if spot.exact and spot.odd and spot.odd.variable and not spot.odd.broken and isinstance(spot.value, str):
            spot.container[error["loc"][-1]] = resolve(spot.value)  # type: ignore[index]
            changed = True
    return changed


def _conflicts(document: Document) -> Iterator[Problem]:
    for where, what in conflicts(document.data):
        yield from problem_at(document.find(where), where, what)


def _in_order(problems: Iterable[Problem], source: Source) -> list[str]:
    in_order = sorted(set(problems), key=lambda problem: (problem.line, problem.column, problem.text))
    return [problem.render(source.name) for problem in in_order]


def _warnings(settings: Settings, document: Document) -> Iterator[Problem]:
    for path in _literal_secrets(settings):
        spot = document.find(path)
        if spot.exact and not (spot.odd and spot.odd.variable):
            text = "a secret stands in the file itself; write ${NAME}, and its value into .env or the environment"
            yield Problem(spot.line, spot.column, path, text)
    names = [project.name for project in settings.projects]
    for index, route in enumerate(settings.executor.routes):
        wanted = route.match.project
        if wanted is not None and wanted not in names:
            path = ("executor", "routes", index, "match", "project")
            what = f"no project of this file is named '{wanted}'{suggestion(wanted, names)}"
            yield from problem_at(document.find(path), path, what)


def _literal_secrets(settings: Settings) -> Iterator[KeyPath]:
    """Where a secret may stand in the file, or in the variable that the file names."""
    yield from _secrets(settings.server, ("server",))
    yield from _secrets(settings.sources, ("sources",))
    yield from _secrets(settings.executor, ("executor",))
    if _PASSWORD.search(settings.store):
        yield ("store",)
    for index, project in enumerate(settings.projects):
        if project.url and _PASSWORD.search(project.url):
            yield ("projects", index, "url")
        if project.executor is not None:
            yield from _secrets(project.executor, ("projects", index, "executor"))


def _secrets(value: object, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, Section):
        fields = type(value).model_fields
        for name in value.model_fields_set:
            yield from _secrets(getattr(value, name), (*path, fields[name].alias or name))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if isinstance(one, str) and SECRET_NAME.search(key):
                yield (*path, key)
            elif isinstance(one, (Section, Mapping)) or SECRET_NAME.search(key):  # not `set: {CI: "1"}`
                yield from _secrets(one, (*path, key))
    elif isinstance(value, SecretStr):
        yield path
    elif isinstance(value, tuple) and any(isinstance(one, SecretStr) for one in value):
        for index in range(len(value)):
            yield path if len(value) == 1 else (*path, index)
