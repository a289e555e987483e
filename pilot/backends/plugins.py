"""Agents from other packages: entry points of the group `pilot.backends`, whose name is a type.

A plug-in is somebody else's code. Whatever is wrong with it is one line in words, for those who use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points

from pilot.config.executor import BUILT_IN, PLUGINS, ExecutorSettings
from pilot.domain.agent import Backend, Check
from pilot.domain.errors import ConfigError
from pilot.domain.text import one_line

_PORT = ("capabilities", "account", "check", "execute")


def installed() -> dict[str, tuple[EntryPoint, ...]]:
    """The plug-ins of this installation by name, those apart that call themselves what is built in."""
    return {name: points for name, points in _points().items() if name not in BUILT_IN}


def plugged_in(kind: str, name: str, settings: ExecutorSettings) -> Backend:
    """The backend that the plug-in `kind` makes for this name and these settings. Raises `ConfigError`."""
    points = installed()[kind]
    if len(points) > 1:
        them = " and ".join(_origin(point) for point in points)
        raise ConfigError([f"agent {name} can't be used: there are several plug-ins named {kind}, {them}; remove one"])
    try:
        backend = points[0].load()(name, settings)
    except ConfigError as error:
        raise ConfigError([f"agent {name}: {problem}" for problem in error.problems]) from error
    except (Exception, SystemExit) as error:  # the border to somebody else's code
        what = one_line(f"{type(error).__name__}: {error}", 300)
        raise ConfigError([f"agent {name} can't be used: its plug-in {_origin(points[0])} broke: {what}"]) from error
    if lacks := _lacks(backend):
        detail = f"gives no Backend: {type(backend).__name__} has no {', '.join(lacks)}"
        raise ConfigError([f"agent {name} can't be used: its plug-in {_origin(points[0])} {detail}"])
    made: Backend = backend
    return made


def checks() -> Iterator[Check]:
    """For doctor: which plug-ins there are, and whether they get in the way of something."""
    for name, points in sorted(_points().items()):
        them = ", ".join(_origin(point) for point in points)
        if name in BUILT_IN:
            yield Check(f"plug-in {name}", None, f"{them}: never used, for {name} is built in", "give it another name")
        elif len(points) > 1:
            yield Check(f"plug-in {name}", None, f"there are several: {them}", "remove all but one")
        else:
            yield Check(f"plug-in {name}", True, them)


def _points() -> Mapping[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=PLUGINS):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def _origin(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name} {point.dist.version}" if point.dist else point.value


def _lacks(backend: object) -> list[str]:
    """What a Backend has and this has not."""
    lacks = [name for name in _PORT if not callable(getattr(backend, name, None))]
    return lacks if isinstance(getattr(backend, "name", None), str) else ["name", *lacks]
