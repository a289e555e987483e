"""Who may ask in a repository, and who is pilot itself."""

from __future__ import annotations

from pilot.clients.github import GitHub
from pilot.clients.github_values import Account, Permission
from pilot.config.schema import AllowSettings
from pilot.domain.ports import Clock
from pilot.domain.text import one_line

BELIEVED = 5 * 60_000
"""Milliseconds for which an answer about somebody counts."""
MARK = "<!-- pilot:"
"""Begins what only pilot writes; it says something only in a comment of pilot's own account."""
_LEVELS = {"admin": 3, "maintain": 2, "write": 1}


class People:
    """Asks GitHub, once in a while for each. `why_not` is all there is to the right to ask."""

    def __init__(self, github: GitHub, allow: AllowSettings, clock: Clock) -> None:
        self._github = github
        self._allow = allow
        self._clock = clock
        self._listed = {login.casefold() for login in allow.users}
        self._known: dict[tuple[str, int], tuple[int, str]] = {}

    async def wrote_it_itself(self, account: Account | None, text: str) -> bool:
        """Pilot's own words. The account may be a person's, too, whose words have no mark."""
        return account is not None and MARK in text and account.id == (await self._github.me()).id

    async def why_not(self, repo: str, account: Account | None) -> str:
        """Why somebody may not ask there, in words; empty: they may."""
        if account is None:
            return "nobody can say who it was: the account is gone"
        if account.login.casefold() in self._listed:
            return ""
        if account.bot:
            return f"{_name(account)} is a bot, and not among sources.github.allow.users"
        if self._allow.permission is None:
            return f"{_name(account)} is not among sources.github.allow.users"
        until, words = self._known.get((repo.casefold(), account.id), (0, ""))
        if not self._clock() < until:
            found = await self._github.permission(repo, account.login)
            words = "" if _suffices(found, account, self._allow.permission) else self._lacking(repo, account, found)
            self._known[repo.casefold(), account.id] = (self._clock() + BELIEVED, words)
        return words

    def _lacking(self, repo: str, account: Account, found: Permission) -> str:
        return (
            f"{_name(account)} has the role {one_line(found.role, 40)!r} in {repo}; to ask takes "
            f"{self._allow.permission!r}, or a place in sources.github.allow.users"
        )


def _suffices(found: Permission, account: Account, wanted: str) -> bool:
    if found.account is not None and found.account.id != account.id:
        return False  # the login is somebody else's by now
    has = max(_LEVELS.get(found.level, 0), _LEVELS.get(found.role, 0) if found.may_write else 0)
    return has >= _LEVELS[wanted]


def _name(account: Account) -> str:
    return one_line(account.login, 60)
