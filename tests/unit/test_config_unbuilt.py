from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilot.app.context import open_context
from pilot.config.load import Loaded, load
from pilot.domain.errors import ConfigError


def loaded(folder: Path, **sections: Any) -> Loaded:
    config = folder / "pilot.yaml"
    config.write_text(json.dumps({"state_dir": str(folder / "state"), **sections}))
    config.chmod(0o600)
    return load(config, {"HOME": str(folder)})


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"projects": [{"name": "a", "path": "/a", "next_after": "merged"}]}, "projects.a.next_after"),
        ({"projects": [{"name": "a", "path": "/a", "max_open_prs": 3}]}, "projects.a.max_open_prs"),
    ],
)
async def test_what_somebody_would_rely_on_is_refused(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    settings = loaded(tmp_path, **sections)

    assert any(words in warning for warning in settings.warnings)
    with pytest.raises(ConfigError, match=words):
        async with open_context(settings):
            pass
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"sources": {"github": {"token": "${T:-x}"}}}, "sources.github has no effect"),
        ({"notify": {"webhook": ["https://example.org/x"]}}, "notify has no effect"),
        ({"projects": [{"name": "a", "path": "/a", "github": "o/a"}]}, "no pull requests in this version"),
    ],
)
def test_what_has_no_effect_is_said(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    assert any(words in warning for warning in loaded(tmp_path, **sections).warnings)


def test_the_defaults_say_nothing(tmp_path: Path) -> None:
    assert loaded(tmp_path).warnings == ()
