"""The sandbox: what an agent, set-up and gates run in, so that they see their workspace and little else.

A list of what is shown, not of what is hidden (bubblewrap):

    the system      /usr, /opt, /nix/store, and of /etc what is no secret   read-only
    programs        folders of PATH outside of these, with what belongs to them   read-only
    the workspace   and the attempt's scratch folder; git directories as sandbox_git.py says
    a home          <state_dir>/homes/<project>: what is kept from run to run; the user's own home is not seen
    its places      the agent's logins and settings, out of the user's home (`Places`)
    the network     as it is: the model has to be reached

All else is not there: the user's files and keys, pilot's state, its configuration, its processes and their
environment, other projects. Whatever is started in it ends with pilot, however pilot ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pilot.config.executor import SandboxSettings
from pilot.domain.agent import Places
from pilot.domain.errors import ConfigError
from pilot.domain.text import slug
from pilot.runner import sandbox_git, sandbox_programs, sandbox_system
from pilot.runner.files import read_regular
from pilot.runner.sandbox_machine import Bwrap
from pilot.runner.sandbox_mounts import Mounts
from pilot.runner.space import Workspace

_MEMO = "home"
"""In a workspace's folder: which of its project's homes its agent had last, for its sessions are there."""


@dataclass(slots=True)
class Bubblewrap:
    """One attempt's sandbox (`domain.agent.Sandbox`); made by `make_sandbox`, given back by `close`.

    One program at a time: two would both write the home in which the next one's mount points are made.
    """

    bwrap: Bwrap
    folder: Path
    """The project's: `home`, `state` and blanks. No other attempt has it now."""
    workspace: Workspace
    read: tuple[str, ...]
    write: tuple[str, ...]
    hidden: tuple[str, ...]
    state_dir: Path
    lock: int
    git_lock: int = -1

    @property
    def name(self) -> str:
        """As `show` and doctor call it."""
        return "bubblewrap"

    def command(self, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], places: Places) -> list[str]:
        """See `Sandbox.command`. Raises `WorkspaceError`, too, for a git directory that can't be made safe."""
        if not Path(cwd).is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), cwd)
        program = sandbox_programs.find(argv[0], env, cwd)
        places = _normal(places)
        mounts = Mounts()
        self._add_programs(mounts, program, env, places)
        for path in self.read:
            if not self._is_trap(path):
                mounts.show(path)
        for path in self.write:
            if not self._is_trap(path):
                mounts.show(path, write=True)
        self._add_home(mounts, env)
        self._add_work(mounts)
        self._add_places(mounts, places)
        for path in (str(self.state_dir), *self.hidden):
            mounts.hide(path, self._blank("file"))
        words = [*self.bwrap.begin, *sandbox_system.base(self._blank("file")), *mounts.arguments()]
        return [*words, "--remount-ro", "/", "--chdir", cwd, "--", *self.bwrap.started(program), *argv[1:]]

    def close(self) -> None:
        """The attempt is over: others may have the home. More than once is no error."""
        lock, git_lock, self.lock, self.git_lock = self.lock, self.git_lock, -1, -1
        sandbox_git.let_go(self.workspace, git_lock)
        if lock >= 0:
            os.close(lock)

    def _add_programs(self, mounts: Mounts, program: str, env: Mapping[str, str], places: Places) -> None:
        """What agents can write is shown by itself; what it leads to is nothing that they may have shown to them."""
        needs: list[str] = []
        for folder in sandbox_programs.search_path(env):
            if not self._is_theirs(folder):
                needs += sandbox_programs.folder_needs(folder, env)
        for path in (program, *places.programs):
            if self._is_theirs(path):
                sandbox_programs.interpreter(path, env)  # may raise
                continue
            for link, target in sandbox_programs.links(path):
                if not sandbox_system.is_system(link):
                    mounts.link(link, target)
            needs += sandbox_programs.needs(path, env)
        for need in needs:
            if not self._is_theirs(need):
                mounts.show(need)

    def _is_theirs(self, path: str) -> bool:
        """Whether a path lies, by itself or where it leads, in what agents can write."""
        leads = (os.path.realpath(path), str(Path(path).parent.resolve() / Path(path).name))
        roots = [os.path.realpath(root) for root in (str(self.workspace.path), *self.write)]
        return any(f"{lead}/".startswith(f"{root}/") for lead in leads for root in roots)

    def _is_trap(self, path: str) -> bool:
        """Whether a path lies in what agents can write, and a link that may be theirs leads out of there again."""
        real = os.path.realpath(path)
        for root in self.write:
            inside = f"{os.path.realpath(root)}/"
            above = [os.path.realpath(folder) for folder in Path(path).parents]
            if any(f"{folder}/".startswith(inside) for folder in above) and not f"{real}/".startswith(inside):
                return True
        return False

    def _add_home(self, mounts: Mounts, env: Mapping[str, str]) -> None:
        home = os.path.normpath(env.get("HOME", ""))
        if not sandbox_system.may_be_home(home):
            return
        mounts.put(self._own("home"), home, write=True, own=True)
        for folder in sandbox_programs.search_path(env):
            above = mounts.above(folder)
            if above is not None and above[1].own and not Path(folder).exists():
                # a program of that name would be taken for the gate's, in this task and in the next ones
                mounts.fix(self._blank("folder"), folder)

    def _add_work(self, mounts: Mounts) -> None:
        mounts.empty(str(self.state_dir))
        mounts.show(str(self.workspace.path), write=True)
        mounts.show(str(self.workspace.scratch), write=True)
        sandbox_git.add(mounts, self.workspace)

    def _add_places(self, mounts: Mounts, places: Places) -> None:
        for place in places.state:
            if not mounts.writable(place):
                mounts.put(self._own(f"state/{_named(place)}"), place, write=True, own=True)
        for place in places.logins:
            if Path(place).is_file():
                mounts.put(place, place, write=True)
            else:
                mounts.absent(place)
        for place in places.fresh:
            mounts.absent(place)
        for place in places.settings:
            mounts.fix(place if Path(place).exists() else self._blank_for(place), place)

    def _own(self, name: str) -> str:
        path = self.folder / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)  # an agent may have taken its own rights away
        return str(path)

    def _blank_for(self, place: str) -> str:
        """What stands for a setting that is not there: nothing in it, in a form that programs can read."""
        suffix = Path(place).suffix
        return self._blank("object" if suffix in (".json", ".jsonc") else "file" if suffix else "folder")

    def _blank(self, name: str) -> str:
        path = self.folder / "blank" / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if name == "folder":
                path.mkdir(exist_ok=True)
            else:
                path.write_text("{}\n" if name == "object" else "")
        return str(path)


def make_sandbox(
    bwrap: Bwrap,
    *,
    state_dir: Path,
    project_id: int,
    workspace: Workspace,
    paths: SandboxSettings,
    hidden: Sequence[Path] = (),
) -> Bubblewrap:
    """A sandbox for one attempt in that workspace; the attempt has to `close` it.

    `hidden`: files and folders that stay out of sight even below what `paths` shows (pilot.yaml and its `.env`; the
    state directory always does). Blocking, some milliseconds. Raises OSError, and `ConfigError` for `paths`.
    """
    read, write = _absolute(paths.read), _absolute(paths.write)
    folder, lock = _take_home(state_dir / "homes", project_id, workspace.home / _MEMO)
    return Bubblewrap(
        bwrap=bwrap,
        folder=folder,
        workspace=workspace,
        read=read,
        write=write,
        hidden=tuple(map(str, hidden)),
        state_dir=state_dir,
        lock=lock,
        git_lock=sandbox_git.hold(workspace, folder.parent),
    )


def _absolute(paths: Sequence[str]) -> tuple[str, ...]:
    """The operator's own list. Raises `ConfigError` for one that leaves nothing of a sandbox."""
    absolute = tuple(os.path.normpath(Path(path).expanduser().absolute()) for path in paths)
    if any(os.path.realpath(path) == "/" for path in absolute):
        raise ConfigError(["executor.sandbox_paths: / is everything; name what agents need, or set sandbox: none"])
    return absolute


def _normal(places: Places) -> Places:
    """Each path once, without detours."""

    def of(paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(os.path.normpath(path) for path in paths if Path(path).is_absolute()))

    return Places(
        state=of(places.state),
        logins=of(places.logins),
        settings=of(places.settings),
        programs=of(places.programs),
        fresh=of(places.fresh),
    )


def _named(place: str) -> str:
    return f"{slug(place, 60)}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"


def _take_home(homes: Path, project_id: int, memo: Path) -> tuple[Path, int]:
    """A home of the project that no other attempt has: the one with this workspace's sessions, else the first."""
    homes.mkdir(mode=0o700, parents=True, exist_ok=True)
    last = (read_regular(memo, 100) or b"").decode(errors="replace")
    known = re.fullmatch(rf"{project_id}(-\d+)?", last) is not None
    names = (str(project_id) if n == 1 else f"{project_id}-{n}" for n in itertools.count(1))
    for name in itertools.chain((last,) if known else (), names):
        lock = os.open(homes / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        memo.write_text(name)
        folder = homes / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder, lock
    raise AssertionError("there is always one more")
