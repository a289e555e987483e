"""A pilot of its own for whoever asks for `home`; nothing of it is left running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "pilot")
    try:
        yield home
    finally:
        home.clear_away()
