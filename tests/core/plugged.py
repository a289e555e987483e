"""Plug-ins for tests, of this process: entry points that are found and loaded as installed ones are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pilot.domain.agent import Capabilities

__all__ = ["Able", "plug_in"]


@dataclass
class Able:
    """A plug-in whose agent can do this, and says (or raises) that to doctor. `built`: how often one was made."""

    capabilities: Any = field(default_factory=lambda: Capabilities(resume=True, cost=True, model=True))
    checks: Any = ()
    built: int = 0

    def __call__(self, name: str, settings: object) -> Any:
        self.built += 1
        return _Agent(name, self.capabilities, self.checks)


@dataclass
class _Agent:
    name: str
    able: Any
    checks: Any

    def capabilities(self) -> Any:
        return self.able

    def account(self) -> str:
        return ""

    async def check(self) -> list[Any]:
        if isinstance(self.checks, Exception):
            raise self.checks
        return list(self.checks)

    async def execute(self, request: object, emit: object) -> None:
        raise NotImplementedError


def plug_in(folder: Path, monkeypatch: pytest.MonkeyPatch, made: Mapping[str, Any], package: str = "plugged") -> None:
    """Install a package in `folder` whose plug-ins are these: a factory each, or the error that one raises."""
    module = ModuleType(package)
    for name, factory in made.items():
        setattr(module, name.replace("-", "_"), _raising(factory) if isinstance(factory, BaseException) else factory)
    monkeypatch.setitem(sys.modules, package, module)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    points = "".join(f"{name} = {package}:{name.replace('-', '_')}\n" for name in made)
    (info / "entry_points.txt").write_text(f"[pilot.backends]\n{points}")
    monkeypatch.syspath_prepend(str(folder))


def _raising(error: BaseException) -> Any:
    def factory(name: str, settings: object) -> None:
        raise error

    return factory
