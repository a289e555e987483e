"""What no single value can show: names that have to be unique, or known elsewhere in the file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pilot.config.document import KeyPath
from pilot.config.executor import BUILT_IN, PLUGINS

Conflict = tuple[KeyPath, str]


def suggestion(word: str, known: Sequence[str]) -> str:
    """` (did you mean 'x'?)`, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def conflicts(settings: object) -> list[Conflict]:
    """Everything in the settings that contradicts itself, each with where it stands.

    `settings` is a `Settings`, or what a file says: dicts and lists of anything, so that a wrong value
    somewhere does not hide what is wrong between the others.
    """
    executor, plugins = _get(settings, "executor"), cache(_plugins)  # looked for once, if at all
    found = list(_executor(("executor",), _Names(plugins, executor)))
    names: dict[str, int] = {}
    places: dict[object, int] = {}
    for index, project in enumerate(_list(_get(settings, "projects"))):
        where: KeyPath = ("projects", index)
        name, path, url = (_get(project, key) for key in ("name", "path", "url"))
        if isinstance(name, str) and names.setdefault(name, index) != index:
            found.append(((*where, "name"), f"'{name}' is the name of projects.{names[name]} already"))
        if isinstance(project, Mapping) or name is not None:
            if (path is None) == (url is None):
                found.append((where, "a project has a path or a url" + ("" if path is None else ", not both")))
            elif places.setdefault(str(path or url), index) != index:
                other = places[str(path or url)]
                found.append(((*where, "url" if path is None else "path"), f"is projects.{other} already"))
        found += _gates((*where, "gates"), _get(project, "gates"))
        if (own := _get(project, "executor")) is not None:
            found += _executor((*where, "executor"), _Names(plugins, own, executor))
        found += _pull_requests(where, project, settings)
    found += _sources(_get(settings, "sources"))
    if _list(_get(settings, "notify", "telegram")) and _get(settings, "sources", "telegram") is None:
        found.append((("notify", "telegram"), "needs sources.telegram, whose bot sends the messages"))
    return found


def _sources(sources: object) -> Iterator[Conflict]:
    github, at = _get(sources, "github"), ("sources", "github")
    if github is not None:
        app = _get(github, "app")
        if (_get(github, "token") is None) == (app is None):
            said = github if isinstance(github, Mapping) else getattr(github, "model_fields_set", ())
            empty = app is None and "token" in said
            yield (
                (*at, "token") if empty else at,
                "is empty: it needs a value, or an `app` in its place"
                if empty
                else "has a token or an app" + ("" if app is None else ", not both"),
            )
        key, file = _get(app, "private_key"), _get(app, "private_key_file")
        if app is not None and (key is None) == (file is None):
            yield (*at, "app"), "has a private_key or a private_key_file" + ("" if key is None else ", not both")
    elif _get(sources, "failing_ci") is not None:
        yield ("sources", "failing_ci"), "needs sources.github, where checks are read"


def _pull_requests(where: KeyPath, project: object, settings: object) -> Iterator[Conflict]:
    """Waiting for pull requests that never come would stop a project for ever."""
    asked = [key for key in ("next_after", "max_open_prs") if _get(project, key) not in (None, "finish")]
    lacks = []
    if _get(project, "publish") not in (None, "pull_request"):
        lacks.append("publish: pull_request")
    if _get(project, "github") is None:
        lacks.append("the project's `github: owner/repo`")
    if _get(settings, "sources", "github") is None:
        lacks.append("sources.github")
    for key in asked:
        if lacks:
            yield (*where, key), f"waits for pull requests, which need {' and '.join(lacks)}"


def _gates(where: KeyPath, gates: object) -> Iterator[Conflict]:
    seen: dict[str, int] = {}
    for index, gate in enumerate(_list(gates)):
        name = _get(gate, "name")
        if isinstance(name, str) and seen.setdefault(name, index) != index:
            yield (*where, index, "name"), f"'{name}' is the name of gates.{seen[name]} already"


def _executor(where: KeyPath, names: _Names) -> Iterator[Conflict]:
    executor, base = names.layers
    yield from names.check((*where, "type"), _get(executor, "type"))
    for index, route in enumerate(_list(_get(executor, "routes"))):
        at = (*where, "routes", index)
        yield from names.check((*at, "use"), _get(route, "use"))
        yield from names.chain((*at, "fallback"), _get(route, "use"), _get(route, "fallback"))
    first = _get(executor, "type") or _get(base, "type") or "claude-code"
    yield from names.chain((*where, "fallback"), first, _get(executor, "fallback"))
    for name, profile in _mapping(_get(executor, "profiles")).items():
        if name in BUILT_IN:
            yield (*where, "profiles", name), f"'{name}' is a type; a profile needs another name"
        yield from names.typed((*where, "profiles", name, "type"), _get(profile, "type"), profile)


class _Names:
    """Who may be named in an executor; `base` is the one that it lies over, None for the global one itself."""

    def __init__(self, plugins: Callable[[], tuple[str, ...]], executor: object, base: object = None) -> None:
        self.layers = (executor, base)
        self.plugins = plugins
        self.profiles = {**_mapping(_get(base, "profiles")), **_mapping(_get(executor, "profiles"))}

    def check(self, at: KeyPath, use: object) -> Iterator[Conflict]:
        """A type or a profile."""
        if isinstance(use, str) and use in self.profiles:
            profile = self.profiles[use]
            yield from self.without_argv(at, _get(profile, "type"), profile)
        else:
            yield from self.typed(at, use, known=tuple(self.profiles))

    def typed(
        self, at: KeyPath, use: object, profile: object = None, known: tuple[str, ...] = ()
    ) -> Iterator[Conflict]:
        """A type, built in or a plug-in's; `known` are other names that would do."""
        if not isinstance(use, str):
            return
        if use not in BUILT_IN and use not in (plugins := self.plugins()):
            names = list(dict.fromkeys((*BUILT_IN, *known, *plugins)))
            yield at, f"no agent '{use}'{suggestion(use, names)}: there are {', '.join(names)}"
        yield from self.without_argv(at, use, profile)

    def without_argv(self, at: KeyPath, kind: object, profile: object) -> Iterator[Conflict]:
        if kind not in ("command", "acp"):
            return
        said = (_get(one, str(kind), "argv") for one in (profile, *self.layers))
        default = ["gemini"] if kind == "acp" else []
        if next((value for value in said if value is not None), default) in ([], ()):
            yield at, f"of type {kind}, which needs {kind}.argv: the program and its arguments"

    def chain(self, at: KeyPath, first: object, rest: object) -> Iterator[Conflict]:
        """Who does the work of `first` in its place."""
        seen = [first]
        for index, use in enumerate(_list(rest)):
            yield from self.check((*at, index), use)
            if use in seen:
                yield (*at, index), f"'{use}' is asked before that already"
            elif "external" in (use, _get(self.profiles, str(use), "type")):
                yield (*at, index), f"'{use}' runs nothing here, so it can't do the work of another"
            seen.append(use)


def _plugins() -> tuple[str, ...]:
    return tuple(sorted({point.name for point in entry_points(group=PLUGINS)}))


def _get(node: object, *keys: str) -> Any:
    """What is said there; a default is nothing that somebody said."""
    for key in keys:
        attribute = key.replace("-", "_")
        if isinstance(node, Mapping):
            node = node.get(key)
        else:
            node = getattr(node, attribute) if attribute in getattr(node, "model_fields_set", ()) else None
    return node


def _list(node: object) -> Sequence[Any]:
    return node if isinstance(node, (list, tuple)) else ()


def _mapping(node: object) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}
