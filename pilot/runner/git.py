"""The one way pilot runs git: hardened, bounded in time, cancel-safe; its errors come with a failure class."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import tempfile
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.text import for_terminal, one_line, tail
from pilot.runner.ending import Patience
from pilot.runner.git_locks import remove_stale_lock
from pilot.runner.git_login import Login
from pilot.runner.proctree import MARKER

HARDENING = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.alternateRefsCommand=true",
    "gc.auto=0",
    "gc.autoDetach=false",
    "maintenance.auto=false",
    "fetch.fsckObjects=true",
    "fetch.recurseSubmodules=false",
    "fetch.writeCommitGraph=false",
    "submodule.recurse=false",
    "diff.ignoreSubmodules=all",
    "advice.detachedHead=false",
    "safe.directory=*",
    "protocol.allow=never",
    "protocol.file.allow=always",
)
"""What a repository's own config may not decide: given on the command line, which outweighs every file."""

NETWORK = tuple(f"protocol.{name}.allow=always" for name in ("https", "http", "ssh", "git"))
_HANDED_ON = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
_HANDED_ON_TO_NETWORK = (
    "HOME",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)
_GRACE = 2.0
"""Seconds after SIGTERM: git uses them to take its lock files away."""
_EXCERPT = 2000
_LOCKED = re.compile(r"Unable to create '(?P<path>[^'\n]+\.lock)': File exists")

_WORDS: tuple[tuple[re.Pattern[str], FailureClass], ...] = tuple(
    (re.compile(words, re.IGNORECASE), failure)
    for words, failure in (
        (
            r"no space left|disk quota|read-only file system|input/output error|too many open files"
            r"|cannot allocate|out of memory|file too large|\.lock': File exists",
            FailureClass.INFRA,
        ),
        (
            r"authentication failed|could not read (username|password)|terminal prompts disabled"
            r"|permission denied \(|access denied|returned error: 40[13]|host key verification failed",
            FailureClass.AUTH,
        ),
        (
            r"could not resolve|connection (refused|timed out|reset|closed)|network is unreachable|no route to host"
            r"|operation timed out|early eof|remote end hung up|unable to access|\bssl|returned error: [45]\d\d",
            FailureClass.NETWORK,
        ),
        (
            r"does not appear to be a git repository|repository .* (not found|does not exist)|not a git repository"
            r"|transport '.*' not allowed|unable to find remote helper",
            FailureClass.INVALID_CONFIG,
        ),
        (
            r"cannot lock ref|but expected|non-fast-forward|conflict|would be overwritten|not uptodate"
            r"|unknown revision|not a valid object|bad object|already exists|exists; cannot create",
            FailureClass.CONFLICT,
        ),
    )
)


def classify(stderr: str) -> FailureClass:
    """What sort of failure git's words tell of; `infra` when they tell nothing."""
    return next((failure for words, failure in _WORDS if words.search(stderr)), FailureClass.INFRA)


@dataclass(frozen=True, slots=True)
class Done:
    """A git that has ended in one of the ways its caller expects."""

    code: int
    out: bytes
    err: str = ""

    @property
    def text(self) -> str:
        """What it printed, without the last newline. Names that are no UTF-8 survive (surrogateescape)."""
        return os.fsdecode(self.out).strip("\n")

    @property
    def parts(self) -> list[str]:
        """What it printed with `-z`."""
        return [os.fsdecode(part) for part in self.out.split(b"\0") if part]


@dataclass(frozen=True, slots=True)
class Git:
    """Runs git with an environment of its own; `at` gives one that stands in a repository.

    `common`: where a work tree's shared part is, not to be asked of a file that an agent can write.
    `own_config`: the user's own configuration and filters count (their checkout, by their wish). `hold`: a file
    that is locked, shared, as long as any git process of pilot's works in that repository: the lock goes with
    the process, also when pilot itself is killed. `marker` is by what recovery finds the process then.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    program: str = "git"
    timeout: float = 120.0
    author: tuple[str, str] = ("pilot", "pilot@localhost")
    marker: str = "git"
    git_dir: Path | None = None
    common: Path | None = None
    work_tree: Path | None = None
    index: Path | None = None
    hold: Path | None = None
    own_config: bool = False
    network: bool = False
    config: tuple[str, ...] = ()
    login: Login | None = None
    logins: Callable[[str], Awaitable[Login | None]] | None = None

    def at(
        self,
        git_dir: Path,
        *,
        work_tree: Path | None = None,
        index: Path | None = None,
        hold: Path | None = None,
        own_config: bool = False,
    ) -> Git:
        """The same git, in that repository."""
        return replace(
            self,
            git_dir=git_dir,
            work_tree=work_tree,
            index=index,
            hold=hold if hold is not None else self.hold,
            own_config=own_config,
        )

    def marked(self, marker: str) -> Git:
        """The same git, for the run with that marker."""
        return replace(self, marker=marker)

    def over_network(self, login: Login | None = None) -> Git:
        """The same git, that may talk to other machines: with that login, else with the user's keys."""
        return replace(self, network=True, login=login)

    async def reaching(self, url: str) -> Git:
        """The same git, that may talk to that server: with the login that pilot has for it, else the user's keys."""
        return self.over_network(None if self.logins is None else await self.logins(url))

    async def run(
        self, *args: str, stdin: bytes = b"", ok: Collection[int] = (0,), timeout: float | None = None
    ) -> Done:
        """Run one git command to its end. Raises `WorkspaceError` with the class its words tell of.

        Cancelled, or past `timeout` seconds, git is ended (politely first, so that it removes its locks) before
        the call is left. A lock file that a killed git of ours left behind is removed, and the command repeated.
        """
        code, out, err = await self._bounded(args, stdin, timeout)
        if code not in ok and self._removed_stale_lock(err):
            code, out, err = await self._bounded(args, stdin, timeout)
        if code in ok:
            return Done(code, out, err)
        words = one_line(_gist(err) or f"exit code {code}", 300)
        raise WorkspaceError(classify(err), f"git {_command(args)}: {words}", tail(for_terminal(err), _EXCERPT))

    async def _bounded(self, args: Sequence[str], stdin: bytes, timeout: float | None) -> tuple[int, bytes, str]:
        limit = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                return await self._once(args, stdin)
        except TimeoutError as error:
            failure = FailureClass.NETWORK if self.network else FailureClass.INFRA
            raise WorkspaceError(failure, f"git {_command(args)} did not end within {limit:g} s") from error
        except (OSError, ValueError) as error:  # a NUL in an argument is a ValueError
            raise WorkspaceError(FailureClass.INFRA, f"git can't be run: {error}") from error

    async def _once(self, args: Sequence[str], stdin: bytes) -> tuple[int, bytes, str]:
        """Output goes to files: a child that outlives git, and holds its pipes, keeps nobody waiting."""
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            if stdin:
                source.write(stdin)
                source.seek(0)
            lock = self._hold()
            try:
                with nullcontext((-1, ())) if self.login is None else self.login.lent() as (secret, settings):
                    fds = tuple(fd for fd in (lock, secret) if fd >= 0)
                    code = await self._wait([*_set(settings), *args], source if stdin else None, out, err, fds)
            finally:
                if lock >= 0:
                    os.close(lock)
            return code, _read(out), os.fsdecode(_read(err))

    async def _wait(
        self, args: Sequence[str], source: IO[bytes] | None, out: IO[bytes], err: IO[bytes], fds: Sequence[int]
    ) -> int:
        patience = Patience()
        # In our session but its own group: Ctrl-C does not reach it, nor does what sweeps up after agents.
        spawn = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                self.program,
                *self._options(),
                *args,
                stdin=source or asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environment(),
                cwd="/",
                pass_fds=fds,
                process_group=0,
            )
        )
        await patience.finish(spawn)
        try:
            process = spawn.result()
        except (OSError, ValueError):
            patience.settle()
            raise
        ended = asyncio.ensure_future(process.wait())
        if not patience.hurry:
            try:
                return await asyncio.shield(ended)
            except asyncio.CancelledError:
                patience.hurry = True
        for number, grace in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
            if ended.done():
                break
            _signal_group(process.pid, number)
            await patience.wait(ended, grace, firm=True)
        raise asyncio.CancelledError

    def environment(self) -> dict[str, str]:
        """The whole environment of the git process."""
        names = _HANDED_ON + (_HANDED_ON_TO_NETWORK if self.network or self.own_config else ())
        env = {name: self.environ[name] for name in names if name in self.environ}
        name, email = self.author
        if self.login is not None:
            env = self.login.environ(env)
        env |= {
            MARKER: self.marker,
            "LC_ALL": "C",
            "GIT_ASKPASS": "true",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_EDITOR": "true",
            "GIT_PAGER": "cat",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20",
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": email,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": email,
        }
        if not self.own_config:
            env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1"}
        places = {"GIT_DIR": self.git_dir, "GIT_WORK_TREE": self.work_tree, "GIT_INDEX_FILE": self.index}
        places["GIT_COMMON_DIR"] = self.common
        return env | {name: str(place) for name, place in places.items() if place is not None}

    def _options(self) -> list[str]:
        return _set(HARDENING + (NETWORK if self.network else ()) + self.config)

    def _hold(self) -> int:
        if self.hold is None:
            return -1
        lock = os.open(self.hold, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
        return lock

    def _removed_stale_lock(self, stderr: str) -> bool:
        found = _LOCKED.search(stderr)
        if found is None or self.hold is None or self.git_dir is None:
            return False
        return remove_stale_lock(Path(found["path"]), self.git_dir, self.hold)


def _set(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("-c", setting)]


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _command(args: Sequence[str]) -> str:
    return next((arg for arg in args if not arg.startswith("-")), "")


def _gist(stderr: str) -> str:
    """The line that says what was wrong, of all the lines that git says."""
    lines = [line.strip() for line in for_terminal(stderr).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (said or lines or [""])[0].removeprefix("fatal: ").removeprefix("error: ")
