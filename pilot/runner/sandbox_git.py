"""What a sandbox shows of git directories that are not the agent's own, and what it may not change there.

`clone`: objects to borrow, read-only. `worktree`: the shared git directory, of which git there writes objects, refs
and the work tree's own part; what else is there is read-only. `in_place`: the git directory of the checkout, but for
what makes git run programs. In the last two an agent can move other branches.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.runner.files import read_regular
from pilot.runner.sandbox_mounts import Mounts
from pilot.runner.space import Workspace
from pilot.runner.worktree import admin_of

_WRITTEN = frozenset({"objects", "refs", "logs", "reftable", "lfs", "packed-refs"})
"""What of the shared git directory git in a linked work tree writes."""
_FOLDERS = ("hooks", "info", "objects/info", "modules")
"""Modules have configurations of their own, and `git status` looks into them."""
_FILES = ("config", "config.worktree", "commondir", "gitdir")
"""What decides which programs git runs, and whose objects it reads."""
_STAND_INS = {"commondir": b".\n", "config.worktree": b""}
"""What git would read if it were there: these say nothing, and stand there so that nobody puts others there."""
_DEPTH = 32


def add(mounts: Mounts, workspace: Workspace) -> None:
    """Put the workspace's git directories into a sandbox. Raises `WorkspaceError` where that can't be made safe."""
    for objects in _borrowed(workspace.borrows_from):
        mounts.show(str(objects))
    if workspace.mode == "clone":
        return
    common = workspace.source.common
    for name in ("logs", *_FOLDERS[:-1]):
        (common / name).mkdir(exist_ok=True)
    for folder in _folders(workspace):
        mounts.show(str(folder), write=True, pin=True)
        _keep_files(mounts, folder)
    if workspace.mode == "worktree":
        for entry in common.iterdir():
            if entry.name not in _WRITTEN and not entry.is_symlink() and not entry.name.endswith(".lock"):
                _fix(mounts, entry)
        _fix(mounts, admin_of(workspace), write=True)
        _keep_files(mounts, admin_of(workspace))
    _fix(mounts, common / "objects", write=True)
    for name in _FOLDERS:
        _fix(mounts, common / name)
    if (workspace.path / ".git").is_file():
        _fix(mounts, workspace.path / ".git")


def hold(workspace: Workspace, locks: Path) -> int:
    """Say that a sandbox shows the workspace's shared git directory, for `let_go`; -1 where there is none."""
    if workspace.mode == "clone":
        return -1
    name = hashlib.sha256(os.fsencode(workspace.source.common)).hexdigest()[:16]
    lock = os.open(locks / f"{name}.git.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def let_go(workspace: Workspace, lock: int) -> None:
    """Take away what `add` left in a git directory, unless another sandbox still shows it."""
    if lock < 0:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for folder in _folders(workspace):
            for name, text in _STAND_INS.items():
                if read_regular(folder / name, len(text) + 1) == text:
                    (folder / name).unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(lock)


def _folders(workspace: Workspace) -> Iterable[Path]:
    """The git directories of the project's own checkout that agents of the workspace write."""
    own = (workspace.source.git_dir,) if workspace.mode == "in_place" else ()
    return dict.fromkeys((*own, workspace.source.common))


def _keep_files(mounts: Mounts, folder: Path) -> None:
    """Read-only is what is there; and what git would read there if it were."""
    for name, text in _STAND_INS.items():
        with contextlib.suppress(FileExistsError), (folder / name).open("xb") as file:
            file.write(text)
    for name in _FILES:
        _fix(mounts, folder / name)


def _fix(mounts: Mounts, path: Path, *, write: bool = False) -> None:
    """Read-only where the rest may be written, or the other way round; a link would lead bubblewrap anywhere."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        words = f"{path} is a link, and a sandbox can't keep an agent from replacing it"
        raise WorkspaceError(FailureClass.CONFLICT, f"{words}: use workspace: clone, or sandbox: none")
    mounts.show(str(path), write=write, pin=True)


def _borrowed(folders: Iterable[Path]) -> Iterator[Path]:
    """Object stores, and those from which they borrow themselves."""
    seen: set[Path] = set()
    todo = list(folders)
    while todo and len(seen) < _DEPTH:
        folder = todo.pop()
        if folder in seen or not folder.is_dir():
            continue
        seen.add(folder)
        yield folder
        text = read_regular(folder / "info/alternates", 1 << 16) or b""
        todo += [folder / os.fsdecode(line) for line in text.splitlines() if line and not line.startswith(b"#")]
