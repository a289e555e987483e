"""`pilot doctor` asks the services themselves, and says what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pilot.cli import outside_checks
from pilot.cli.outside_checks import outside
from pilot.config.schema import Settings
from pilot.domain.agent import Check
from tests.e2e.github_fake import GitHubFake
from tests.e2e.linear_fake import APP, LinearFake
from tests.e2e.telegram_fake import TOKEN, TelegramFake


@pytest.fixture
def github() -> Iterator[GitHubFake]:
    with GitHubFake() as fake:
        yield fake


def settings(github: GitHubFake, token: str, *repos: str, **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "sources": {"github": {"token": token, "base_url": github.url, **more}},
            "projects": [{"name": repo.replace("/", "-"), "path": f"/{repo}", "github": repo} for repo in repos],
        }
    )


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert all(check.remedy for check in checks if check.ok is not True)
    return {check.name: check for check in checks}


async def test_github_is_asked_who_we_are_and_what_we_may(github: GitHubFake) -> None:
    github.repo("acme/api", robot="write")
    github.repo("acme/mine", robot="admin")
    github.repo("acme/theirs", robot="read")
    wanted = settings(github, github.token("robot"), "acme/api", "acme/mine", "acme/theirs", "acme/gone")
    found = by_name(await outside(wanted))

    assert found["github"].ok is True
    assert "robot at " in found["github"].detail
    assert "requests left" in found["github"].detail
    assert [(found[f"github acme/{name}"].ok) for name in ("api", "mine", "theirs", "gone")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert "permission read" in found["github acme/theirs"].detail
    assert "write access" in found["github acme/theirs"].remedy
    assert "no secret is set" in found["github webhooks"].detail


async def test_a_renamed_repository_is_said(github: GitHubFake) -> None:
    repo = github.repo("acme/api", robot="write")
    github.rename(repo, "service")
    found = by_name(await outside(settings(github, github.token("robot"), "acme/api", webhook_secret="x")))

    assert found["github acme/api"].ok is None
    assert "acme/service" in found["github acme/api"].remedy
    assert "a secret is set" in found["github webhooks"].detail


async def test_a_bad_token_a_limit_and_no_server_are_told_apart(github: GitHubFake) -> None:
    token = github.token("robot")
    found = by_name(await outside(settings(github, "ghp_wrong")))
    assert found["github"].ok is False
    assert "ghp_wrong" not in found["github"].detail

    github.use_up()
    found = by_name(await outside(settings(github, token)))
    assert "limit" in found["github"].detail
    assert (found["github"].ok, found["github"].remedy) == (None, "nothing to mend: it goes on by itself then")
    github.recover()

    wanted = settings(github, token, base_url="http://127.0.0.1:1")
    found = by_name(await outside(wanted))
    assert found["github"].ok is False


async def test_linear_and_telegram_say_who_we_are() -> None:
    with LinearFake() as linear, TelegramFake() as telegram:
        wanted = Settings.model_validate(
            {
                "sources": {
                    "linear": {"api_key": APP, "base_url": linear.url, "webhook_secret": "x"},
                    "telegram": {"token": TOKEN, "base_url": telegram.base_url, "allowed_users": [11, 12]},
                }
            }
        )
        found = by_name(await outside(wanted))

    assert all(check.ok for check in found.values())
    assert found["telegram"].detail == "@pilot_bot, for 2 users"
    assert " in " in found["linear"].detail
    assert "a secret is set" in found["linear webhooks"].detail


async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside_checks, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        wanted = Settings.model_validate({"sources": {"linear": {"api_key": APP, "base_url": url}}})
        found = by_name(await outside(wanted))

    assert found["linear"].ok is False
    assert "no answer" in found["linear"].detail


async def test_what_is_not_configured_is_not_asked() -> None:
    assert await outside(Settings()) == []
