"""The rules of the house that no linter knows: docs/architecture.md and CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "pilot").rglob("*.py"))
MODULE, FUNCTION = 360, 60  # "about 350, about 50": a little room, so that nobody saves lines at the cost of sense


def functions(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or 0) - node.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_a_small_room(path: Path) -> None:
    source = path.read_text()

    assert source.count("\n") <= MODULE
    assert [name for name, lines in functions(source) if lines > FUNCTION] == []
    assert path.stem not in {"utils", "helpers", "common", "manager"}


def test_the_size_rule_can_be_broken() -> None:
    long = "def f():\n" + "    x = 1\n" * (FUNCTION + 1)

    assert [name for name, lines in functions(long) if lines > FUNCTION] == ["f"]


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.split()


def test_no_file_names_a_registry_host() -> None:
    hosts = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs\.org(?!/?9)|deb\.debian\.org")
    # The agents under test are told of a registry that answers nothing; nothing else may name one.
    found = [
        name
        for name in tracked()
        if (ROOT / name).is_file()
        and name != "tests/unit/test_house.py"
        and hosts.search((ROOT / name).read_text("utf-8", "replace"))
    ]

    assert found == []


def test_every_migration_number_is_there_once_and_in_order() -> None:
    for engine in (ROOT / "pilot" / "store" / "migrations").iterdir():
        numbers = [int(path.name[:4]) for path in sorted(engine.glob("*.sql"))]

        assert numbers == list(range(1, len(numbers) + 1))
