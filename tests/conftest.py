"""What all tests share: no test sees the developer's own home, tokens or agents' settings."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.postgres import Cluster

# One profile for all: an example that is slow on a loaded machine is no failure, and a failure says how to repeat it.
settings.register_profile("pilot", deadline=None, print_blob=True, database=None)
settings.load_profile("pilot")

_FOREIGN = ("CLAUDE", "ANTHROPIC_", "OPENAI_", "GEMINI_", "PILOT_", "GITHUB_", "GH_", "LINEAR_", "TELEGRAM_", "GIT_")

# Whoever starts the tests behind a shell's `&`, or by nohup, has these ignored, and every process under test with them.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)

gc.disable()  # what is collected (tests, modules) stays to the end: looking through it again and again finds nothing


def pytest_collection_finish() -> None:
    """From here on, garbage is looked for among what the tests themselves make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name.upper().startswith(_FOREIGN):
            monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def repository_root() -> Path:
    """Where this checkout stands."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The PostgreSQL of this test session; the workers have it in common."""
    from tests.postgres import shared  # only for whoever needs one

    session = tmp_path_factory.getbasetemp()
    server = shared(session.parent if "PYTEST_XDIST_WORKER" in os.environ else session)
    yield server
    server.leave()


@pytest.fixture
def postgres_url(postgres: Cluster) -> Iterator[str]:
    """A PostgreSQL store that is as new; may have been another test's before."""
    with postgres.database() as url:
        yield url
