"""Files that somebody else may have made: read only if they are files, removed whatever their modes."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path


def read_regular(path: str | Path, limit: int, *, dir_fd: int | None = None) -> bytes | None:
    """The first `limit` bytes of a regular file; None for anything else: no link, no pipe, no directory, nothing."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        with os.fdopen(file, "rb", closefd=False) as read:
            return read.read(limit)
    finally:
        os.close(file)


def remove_tree(path: Path) -> None:
    """Remove a directory whatever its modes; follows no symlink. Raises OSError when something can't be removed."""

    def retry(_function: object, place: str, _error: object) -> None:
        """A directory that its owner may not write or read, as module caches are made."""
        for folder in (Path(place).parent, Path(place)):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o700)
        if Path(place).is_dir() and not Path(place).is_symlink():
            shutil.rmtree(place)
        else:
            Path(place).unlink(missing_ok=True)

    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=retry)
    else:
        shutil.rmtree(path, onerror=retry)
