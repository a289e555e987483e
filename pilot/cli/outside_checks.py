"""What `pilot doctor` says of GitHub, Linear and Telegram: does the login work, and may it do what is asked of it?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from pilot.domain.agent import Check
from pilot.domain.errors import PilotError
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from pilot.clients.github import GitHub
    from pilot.config.fields import Section
    from pilot.config.schema import GithubSettings, LinearSettings, Settings, TelegramSettings

PATIENCE = 10.0
"""Seconds for each of the services."""
_MAY_WRITE = frozenset({"write", "maintain", "admin"})
_LOW = 500
"""Requests left, of GitHub's 5000 an hour, from which on polls may come to a rest."""


async def outside(settings: Settings) -> list[Check]:
    """One or more for each source that is configured; they are asked side by side."""
    sources = settings.sources
    found = []
    if sources.github is not None:
        found.append(_in_time("github", _github(settings, sources.github)))
    if sources.linear is not None:
        found.append(_in_time("linear", _linear(sources.linear)))
    if sources.telegram is not None:
        found.append(_in_time("telegram", _telegram(sources.telegram)))
    return [check for checks in await asyncio.gather(*found) for check in checks]


async def _in_time(name: str, checks: AsyncIterator[Check]) -> list[Check]:
    from pilot.clients import github_errors, linear_errors, telegram_errors

    found: list[Check] = []
    try:
        async with asyncio.timeout(PATIENCE):
            async for check in checks:
                found.append(check)
    except TimeoutError:
        remedy = f"look at the network, or at sources.{name}.base_url"
        found.append(Check(name, False, f"gave no answer within {PATIENCE:g} s", remedy))
    except PilotError as error:
        found.append(Check(name, False, str(error), f"mend sources.{name}"))
    except (github_errors.RateLimited, linear_errors.RateLimited, telegram_errors.RateLimited) as error:
        found.append(Check(name, None, one_line(str(error), 300), "nothing to mend: it goes on by itself then"))
    except Exception as error:  # noqa: BLE001  the border to three libraries
        words = one_line(f"{type(error).__name__}: {error}", 300)
        found.append(Check(name, False, words, f"put a good login into sources.{name}, or look at the network"))
    return found


async def _github(settings: Settings, own: GithubSettings) -> AsyncIterator[Check]:
    from pilot.app.parts import login_of
    from pilot.clients.github import GitHub

    async with GitHub(login_of(own), base_url=own.base_url, waits=()) as github:
        me = await github.me()
        rate = github.rate
        left = "" if rate.remaining is None else f", {rate.remaining} of {rate.limit} requests left this hour"
        low = rate.remaining is not None and rate.remaining < _LOW
        remedy = "poll less often (sources.github.poll_interval), or give pilot a login of its own"
        yield Check("github", None if low else True, f"{me.login} at {own.base_url}{left}", remedy)
        for repo in dict.fromkeys(project.github for project in settings.projects if project.github):
            yield await _repository(github, repo, me.login, app=own.app is not None)
    yield _webhooks("github", own, f"issues are read every {own.poll_interval:g} s")


async def _repository(github: GitHub, repo: str, login: str, *, app: bool) -> Check:
    from pilot.clients.github_errors import Forbidden, GitHubError

    name, level = f"github {repo}", "as its installation allows"
    try:
        found = await github.repository(repo)
        if not app:
            try:
                level = (await github.permission(repo, login)).level
            except Forbidden:  # who may not write may not ask either
                level = "read"
    except GitHubError as error:
        return Check(name, False, str(error), f"give {login} access to it, or mend the project's `github`")
    if found.archived:
        return Check(name, False, "is archived: nothing can be written to it", "unarchive it, or remove `github`")
    if not app and level not in _MAY_WRITE:
        remedy = f"give {login} write access: labels, comments, branches and pull requests need it"
        return Check(name, False, f"{login} has permission {level}", remedy)
    moved = f", now {found.name}" if found.name.lower() != repo.lower() else ""
    return Check(name, None if moved else True, f"permission: {level}{moved}", f"write `github: {found.name}`")


def _webhooks(name: str, own: Section, otherwise: str) -> Check:
    if getattr(own, "webhook_secret", None):
        return Check(f"{name} webhooks", True, f"taken at /webhooks/{name}; a secret is set")
    return Check(f"{name} webhooks", True, f"not taken: no secret is set; {otherwise}")


async def _linear(own: LinearSettings) -> AsyncIterator[Check]:
    from pilot.clients.linear import Client

    async with Client(own.api_key.get_secret_value(), url=own.base_url) as client:
        viewer = await client.viewer()
        who, home = one_line(viewer.actor.name, 60), one_line(viewer.organization_name, 60)
        yield Check("linear", True, f"{who} in {home}")
    yield _webhooks("linear", own, "labels are found every 10 minutes, and agent sessions need webhooks")


async def _telegram(own: TelegramSettings) -> AsyncIterator[Check]:
    from pilot.clients.telegram import Bot

    async with Bot(own.token.get_secret_value(), base_url=own.base_url) as bot:
        yield Check("telegram", True, f"@{one_line(bot.username, 60)}, for {len(own.allowed_users)} users")
