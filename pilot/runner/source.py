"""A project's own repository: its branches, its base, and the one door through which finished work comes in."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pilot.config.schema import ProjectSettings
from pilot.domain.errors import PilotError, WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.text import one_line, slug
from pilot.runner.git import Git
from pilot.runner.gitdir import Layout, make_bare
from pilot.runner.identity import common_dir, find_repository, git_dir_of, url_key
from pilot.runner.pristine import Left, Pristine, put

FETCH_TIMEOUT = 3600.0
"""Seconds; a transfer that stands still is broken off much earlier."""
_TRANSFER = ("http.lowSpeedLimit=1000", "http.lowSpeedTime=60", "fetch.fsckObjects=false")
_FORMAT = "--format=%(objectname)%00%(refname)%00%(HEAD)%00%(worktreepath)"
_SHA256 = re.compile(rb"(?i)^\s*objectformat\s*=\s*sha256", re.MULTILINE)
_PARTIAL = re.compile(rb"(?i)^\s*(promisor\s*=\s*true|partialclone\s*=)", re.MULTILINE)
_REMOTE = "refs/remotes/origin/"
_BRANCH = re.compile(r"(?!-)(?!.*(?://|/\.|\.\.|@\{|\.lock(?:/|$)))(?![/.])[^\x00-\x20\x7f~^:?*\[\\]+(?<![/.])")


@dataclass(frozen=True, slots=True)
class Branch:
    """A local branch. `checked_out` is the work tree that stands on it."""

    sha: str
    checked_out: str = ""


@dataclass(frozen=True, slots=True)
class Branches:
    """All refs of a repository at one moment. `current` is the branch on which its checkout stands."""

    local: Mapping[str, Branch]
    remote: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    current: str | None = None

    def packed(self) -> dict[str, str]:
        """As a clone of the repository has them."""
        return (
            {f"{_REMOTE}{name}": sha for name, sha in self.remote.items()}
            | {f"{_REMOTE}{name}": branch.sha for name, branch in self.local.items()}
            | {f"refs/tags/{name}": sha for name, sha in self.tags.items()}
        )


@dataclass(frozen=True, slots=True)
class Source:
    """`top` is the checkout (None: bare, or a mirror of a `url` project); `url` where the mirror comes from."""

    common: Path
    git_dir: Path
    git: Git
    top: Path | None = None
    url: str | None = None

    @property
    def where(self) -> str:
        """The repository, for people."""
        return str(self.top or self.common)

    @property
    def is_partial(self) -> bool:
        """Whether it lacks objects, and would fetch them one by one."""
        return _PARTIAL.search(_bytes(self.common / "config")) is not None

    def layout(self) -> Layout:
        """What repositories that borrow from this one take over."""
        return Layout(
            objects=self.common / "objects",
            sha256=_SHA256.search(_bytes(self.common / "config")) is not None,
            exclude=_bytes(self.common / "info/exclude"),
            shallow=_bytes(self.common / "shallow"),
        )

    async def update(self) -> None:
        """Fetch a mirror's branches and tags; nothing for a repository of this machine."""
        if self.url is None:
            return
        git = await self.git.reaching(self.url)
        async with _alone(self.common / "pilot-fetch.lock"):
            # What its history has is checked by nobody who clones it, and old ones have what fsck dislikes.
            await replace(git, config=_TRANSFER).run(
                "fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--", self.url,
                f"+refs/heads/*:{_REMOTE}*", "+refs/tags/*:refs/tags/*",
                timeout=FETCH_TIMEOUT,
            )  # fmt: skip
            if not (self.common / _REMOTE / "HEAD").exists():
                done = await git.run("ls-remote", "--symref", "--", self.url, "HEAD")
                found = re.match(r"ref: refs/heads/(\S+)\tHEAD", done.text)
                if found is not None:
                    await self.git.run("symbolic-ref", f"{_REMOTE}HEAD", f"{_REMOTE}{found[1]}")

    async def branches(self) -> Branches:
        """All branches and tags, and who stands where."""
        done = await self.git.at(self.git_dir).run(
            "for-each-ref", _FORMAT, "refs/heads", "refs/tags", _REMOTE.rstrip("/")
        )
        local: dict[str, Branch] = {}
        remote: dict[str, str] = {}
        tags: dict[str, str] = {}
        current = None
        for line in done.text.split("\n") if done.out else ():
            sha, name, here, place = line.split("\0")
            if name.startswith("refs/heads/"):
                short = name.removeprefix("refs/heads/")
                bare = place in ("", str(self.common)) and self.top is None
                local[short] = Branch(sha, "" if bare else place)
                current = short if here == "*" else current
            elif name.startswith("refs/tags/"):
                tags[name.removeprefix("refs/tags/")] = sha
            elif name != f"{_REMOTE}HEAD":
                remote[name.removeprefix(_REMOTE)] = sha
        return Branches(local, remote, tags, None if self.url is not None else current)

    async def branch(self, name: str) -> Branch | None:
        """One local branch, now."""
        done = await self.git.at(self.git_dir).run("for-each-ref", _FORMAT, f"refs/heads/{name}")
        for line in done.text.split("\n") if done.out else ():
            sha, full, _, place = line.split("\0")
            if full == f"refs/heads/{name}":
                return Branch(sha, "" if self.top is None and place == str(self.common) else place)
        return None

    async def kept(self, *names: str) -> dict[str, str]:
        """Commits that are kept without a branch, by what follows `refs/pilot/`."""
        done = await self.git.run(
            "for-each-ref", "--format=%(objectname) %(refname)", *(f"refs/pilot/{name}" for name in names)
        )
        lines = (line.partition(" ") for line in done.text.splitlines())
        return {name.removeprefix("refs/pilot/"): sha for sha, _, name in lines}

    async def base(self, name: str | None, branches: Branches) -> tuple[str, str]:
        """Name and commit to start from: the branch of that name, else where the repository's HEAD is.

        For a mirror it is the remote's branch; for a repository of this machine the local one goes first.
        """
        if name is None:
            return await self._default(branches)
        local = branches.local.get(name)
        sha = branches.remote.get(name) if self.url is not None else None
        sha = sha or (local.sha if local else None) or branches.remote.get(name)
        if sha is None:
            commit = f"{name}^{{commit}}"
            done = await self.git.run("rev-parse", "--verify", "--quiet", "--end-of-options", commit, ok=(0, 1, 128))
            if done.code or not done.out:
                raise WorkspaceError(
                    FailureClass.CONFLICT, f"{self.where} has no branch {one_line(name)!r} to start from"
                )
            sha = done.text
        return name, sha

    async def _default(self, branches: Branches) -> tuple[str, str]:
        if branches.current is not None:
            return branches.current, branches.local[branches.current].sha
        git, head = (self.git, f"{_REMOTE}HEAD") if self.url is not None else (self.git.at(self.git_dir), "HEAD")
        done = await git.run("rev-parse", "--verify", "--quiet", f"{head}^{{commit}}", ok=(0, 1, 128))
        if done.code or not done.out:
            raise WorkspaceError(
                FailureClass.CONFLICT, f"{self.where} has no commit to start from; make a first one, or set `base`"
            )
        name = (await git.run("symbolic-ref", "--quiet", "--short", head, ok=(0, 1))).text
        return name.removeprefix("origin/") or "HEAD", done.text

    async def take(self, pristine: Pristine, ref: str, known: str) -> None:
        """Bring the objects of a ref of the pristine repository (what follows `refs/pilot/`) in; no ref changes.

        `known` is a commit that both have. What is in the pristine repository has been checked on its way in.
        """
        await replace(self.git, config=("fetch.fsckObjects=false",)).run(
            "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance",
            "--upload-pack=git-upload-pack", f"--negotiation-tip={known}",
            "--", str(pristine.path), f"refs/pilot/{ref}",
        )  # fmt: skip

    async def move(self, changes: Mapping[str, tuple[str | None, str | None]]) -> None:
        """Change refs by compare-and-set, all or none; see `pristine.put`."""
        await put(self.git, changes)


def open_source(git: Git, project: ProjectSettings, state_dir: Path) -> Source:
    """The project's repository; the mirror of a `url` project is made when there is none. Fetches nothing."""
    locks = state_dir / "locks"
    locks.mkdir(parents=True, exist_ok=True, mode=0o700)
    if project.url is not None:
        key = url_key(project.url)
        common = state_dir / "mirrors" / f"{slug(project.name, 30)}-{_digest(key)}.git"
        common.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_bare(common, Layout())
        return Source(common, common, git.at(common, hold=locks / f"{_digest(str(common))}.lock"), url=project.url)
    if project.path is None:
        raise WorkspaceError(FailureClass.INVALID_CONFIG, f"project {project.name} has neither path nor url")
    root = find_repository(project.path)
    if root is None:
        gone = "is no git repository" if Path(project.path).exists() else "does not exist"
        raise WorkspaceError(FailureClass.INFRA, f"the path of project {project.name}, {project.path}, {gone}")
    try:
        git_dir = git_dir_of(root)
    except PilotError as error:
        raise WorkspaceError(FailureClass.INFRA, str(error)) from error
    common = common_dir(git_dir)
    held = git.at(common, hold=locks / f"{_digest(str(common))}.lock")
    return Source(common, git_dir, held, top=None if git_dir == root else root)


def pristine_of(source: Source, home: Path) -> Pristine:
    """Pilot's own repository beside a workspace: made when missing."""
    path = home / "git"
    pristine = Pristine(path, source.git.at(path, hold=home / ".hold"), source.layout())
    pristine.ensure()
    return pristine


def left_of(source: Source, project_id: int, state_dir: Path) -> Left:
    """What pilot remembers of the project's branches."""
    return Left(state_dir / "branches" / f"{project_id}-{_digest(str(source.common))}")


def is_branch_name(name: str) -> bool:
    """Whether git takes it for a branch (`git check-ref-format --branch`), and nothing else could be meant."""
    return len(name) <= 200 and name not in ("HEAD", "@") and _BRANCH.fullmatch(name) is not None


@asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """The only one of all pilots of this machine in this block."""
    with path.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.05)
            else:
                break
        yield


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
