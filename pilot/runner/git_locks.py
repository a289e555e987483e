"""Lock files of git's that a killed git left behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pilot.runner.proctree import PROC


def remove_stale_lock(path: Path, git_dir: Path, hold: Path) -> bool:
    """Remove a lock file of git's that nobody can own any more; whether it was.

    Nobody: no git of pilot's works in the repository (`hold`), no process of this machine has the file open, and
    no git of somebody else's stands in the repository.
    """
    inside = path.resolve().is_relative_to(git_dir.resolve())
    if not inside or not path.name.endswith(".lock") or not PROC.is_dir():
        return False
    with hold.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _somebody_works_in(git_dir, path):
            return False
        path.unlink(missing_ok=True)
    return True


def _somebody_works_in(git_dir: Path, lock: Path) -> bool:
    root = git_dir.parent if git_dir.name == ".git" else git_dir
    wanted = os.path.realpath(lock)
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        try:
            name = (process / "comm").read_text(errors="replace")
            if name.startswith("git") and (process / "cwd").readlink().is_relative_to(root):
                return True
            if any(os.path.realpath(fd) == wanted for fd in (process / "fd").iterdir()):
                return True
        except OSError:
            continue
    return False
