"""Brings a finished branch to the server that has the project's repository, and never over anybody's work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pilot.domain.errors import UsageError, WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.outside import GiveUp, Later
from pilot.domain.text import one_line
from pilot.runner.branches import PREFIX
from pilot.runner.git import Git
from pilot.runner.git_login import Login
from pilot.runner.gitdir import make_bare
from pilot.runner.source import Source, is_branch_name

TIMEOUT = 600.0
"""Seconds for one transfer."""
_LOOKS = 3
"""Times the remote branch is looked at when it keeps changing under our hands."""
_TRANSFER = ("http.lowSpeedLimit=1000", "http.lowSpeedTime=60", "fetch.fsckObjects=false", "push.gpgSign=false")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_NO = re.compile(r"! \[(?:remote )?rejected\].*\((?P<why>[^()]*)\)")
_FOR_NOW = re.compile(r"(?i)\block|\binternal|\btemporar|\btime|failed to update ref|\bunpacker")
"""Of the reasons to refuse a push those that pass."""


def git_root(base_url: str) -> str:
    """Scheme and host of the repositories that an API serves. Raises `UsageError`: no password over plain HTTP."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    if parts.scheme != "https" and host not in _LOOPBACK:
        raise UsageError(f"sources.github.base_url: a token must not go over {parts.scheme or 'no'} to {host}")
    place = f"[{host}]" if ":" in host else host
    if host == "api.github.com" or (host.startswith("api.") and host.endswith(".ghe.com")):
        place = host.removeprefix("api.")
    return f"{parts.scheme}://{place}" + (f":{parts.port}" if parts.port is not None else "")


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where the remote branch is now. `adopted`: it has ours in it, and commits by somebody else on top."""

    sha: str
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Push:
    """One branch of one project, to be at `head` on the server at `url`.

    Git works in a repository of pilot's own that borrows the project's objects: what stands in the project's
    configuration (a proxy, another address, a hook), an agent may have written.
    """

    git: Git
    url: str
    branch: str
    head: str

    async def __call__(self, ours: Collection[str]) -> Pushed:
        """Push it; done already is as good. `ours`: commits that pilot left the branch at, which it may leave.

        Raises `GiveUp` when there is somebody else's work, or the server refuses; `Later` for all that may pass.
        """
        done = await self.git.run("cat-file", "-e", f"{self.head}^{{commit}}", ok=(0, 1, 128))
        if done.code:
            raise GiveUp(f"commit {self.head[:12]} of {self.branch} is no longer in the project's repository")
        for _ in range(_LOOKS):
            remote = await self._remote()
            if remote == self.head:
                return Pushed(self.head)
            if remote is not None and not await self._may_leave(remote, ours):
                if await self._is_ancestor(self.head, remote):
                    return Pushed(remote, adopted=True)
                raise GiveUp(
                    f"branch {self.branch} at {self.url} has commits that pilot did not make ({remote[:12]}); they are "
                    "never overwritten: rename or delete that branch there, then retry"
                )
            if await self._sent(remote):
                return Pushed(self.head)
        raise Later(f"branch {self.branch} at {self.url} changes all the time")

    async def _remote(self) -> str | None:
        """Where the branch is there; None: nowhere."""
        name = f"refs/heads/{self.branch}"
        done = await self._network("ls-remote", "--quiet", "--refs", "--", self.url, name)
        lines = (line.split("\t") for line in done.splitlines())
        return next((sha for sha, ref in (line for line in lines if len(line) == 2) if ref == name), None)

    async def _may_leave(self, remote: str, ours: Collection[str]) -> bool:
        if remote in ours:
            return True
        if not await self._has(remote):
            # by name: not every server gives out commits by their hash
            await self._network(
                "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", f"--negotiation-tip={self.head}",
                "--", self.url, f"+refs/heads/{self.branch}:refs/seen/{self.branch}",
            )  # fmt: skip
        return await self._is_ancestor(remote, self.head)

    async def _has(self, sha: str) -> bool:
        done = await self.git.run("cat-file", "-e", f"{sha}^{{commit}}", ok=(0, 1, 128))
        return done.code == 0

    async def _is_ancestor(self, old: str, new: str) -> bool:
        if not await self._has(old) or not await self._has(new):
            return False
        done = await self.git.run("merge-base", "--is-ancestor", old, new, ok=(0, 1))
        return done.code == 0

    async def _sent(self, expected: str | None) -> bool:
        """Whether the push took effect; False: the branch is not where it was, so look again."""
        name = f"refs/heads/{self.branch}"
        try:
            await self._network(
                "push", "--quiet", "--no-verify", "--recurse-submodules=no",
                f"--force-with-lease={name}:{expected or ''}", "--", self.url, f"{self.head}:{name}",
            )  # fmt: skip
        except _Refused as refused:
            if refused.reason in ("stale info", "fetch first"):
                return False
            if _FOR_NOW.search(refused.reason):
                raise Later(f"{self.url} does not take the push now: {refused}") from refused
            raise GiveUp(f"{self.url} refuses branch {self.branch}: {refused}") from refused
        return True

    async def _network(self, *args: str) -> str:
        try:
            return (await self.git.run(*args, timeout=TIMEOUT)).text
        except WorkspaceError as error:
            if found := _NO.search(error.excerpt):
                remote = (line.partition("remote:")[2].strip() for line in error.excerpt.splitlines())
                words = one_line("; ".join([found["why"], *(line for line in remote if line)]), 300)
                raise _Refused(words, found["why"]) from error
            if error.failure is FailureClass.AUTH:
                raise Later(
                    f"{self.url} does not take the token for git ({one_line(str(error), 150)}): it needs write access "
                    "to the repository's contents; see sources.github, and `pilot doctor`"
                ) from error
            raise Later(one_line(str(error), 300)) from error


class _Refused(Exception):
    def __init__(self, words: str, reason: str) -> None:
        super().__init__(words)
        self.reason = reason


def prepare(source: Source, state_dir: Path, *, root: str, repo: str, branch: str, head: str, token: str) -> Push:
    """The push of a project's branch to the repository `repo` on the server `root`, with that token."""
    if not branch.startswith(PREFIX) or not is_branch_name(branch):
        raise GiveUp(f"branch {one_line(branch, 80)!r} is not below {PREFIX}: pilot pushes to no other")
    workshop = workshop_of(source, state_dir)
    git = replace(workshop.over_network(Login(root, token)), config=_TRANSFER)
    return Push(git, f"{root}/{repo}.git", branch, head)


def workshop_of(source: Source, state_dir: Path) -> Git:
    """Git in a repository of pilot's own that has all of the project's objects and nothing of its configuration."""
    name = hashlib.sha256(str(source.common).encode(errors="surrogateescape")).hexdigest()[:16]
    path = state_dir / "push" / f"{name}.git"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_bare(path, source.layout())
    return source.git.at(path, hold=path.parent / f"{name}.lock")
