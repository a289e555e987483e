"""Who is named in pilot.yaml: every agent or profile that a task may come to."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from pilot.config.executor import ExecutorSettings
from pilot.config.fields import Section
from pilot.config.schema import ProjectSettings, Settings


@dataclass(frozen=True, slots=True)
class Use:
    """One place that names an agent. `key` is its own, under `executor`; `model` is the key that asks it for one."""

    key: str
    name: str
    model: str | None = None
    stands_in: bool = False


def uses(executor: ExecutorSettings) -> Iterator[Use]:
    """Every place, and the same name as often as it is said."""
    yield Use("type", executor.type)
    for index, name in enumerate(executor.fallback):
        yield Use(f"fallback.{index}", name, stands_in=True)
    for number, route in enumerate(executor.routes):
        yield Use(f"routes.{number}.use", route.use, None if route.model is None else f"routes.{number}.model")
        for index, name in enumerate(route.fallback):
            yield Use(f"routes.{number}.fallback.{index}", name, stands_in=True)


def own_executors(settings: Settings) -> Iterator[tuple[ProjectSettings, ExecutorSettings]]:
    """The projects that set up agents in a way of their own; of those that do it alike, the first."""
    seen: set[Hashable] = set()
    for project in settings.projects:
        if project.executor is None:
            continue
        own = what_is_set(project.executor)
        if own not in seen:
            seen.add(own)
            yield project, settings.executor_for(project)


def what_is_set(value: object) -> Hashable:
    """The same for settings that say the same."""
    match value:
        case Section():
            return tuple((name, what_is_set(getattr(value, name))) for name in sorted(value.model_fields_set))
        case Mapping():
            return frozenset((key, what_is_set(one)) for key, one in value.items())
        case list() | tuple():
            return tuple(what_is_set(one) for one in value)
        case Hashable():
            return value
    return repr(value)


def used_agents(settings: Settings) -> list[tuple[str, ExecutorSettings]]:
    """Every agent that the configuration can send a task to, once per way it is set up."""
    found: list[tuple[str, ExecutorSettings]] = []
    seen: list[tuple[str, ExecutorSettings]] = []
    for executor in (settings.executor, *(own for _, own in own_executors(settings))):
        for name in dict.fromkeys(use.name for use in uses(executor)):
            if (name, executor.resolve(name)) not in seen:
                seen.append((name, executor.resolve(name)))
                found.append((name, executor))
    return found
