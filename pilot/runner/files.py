"""Files that somebody else may have made: read only if they are files, removed whatever their modes."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import shutil
import stat
import sys
from pathlib import Path

_GET_FLAGS, _SET_FLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000


def make_spread(directory: Path) -> None:
    """Make a directory below which large trees come and go; one that exists is left as it is.

    ext4 puts a new tree near its siblings, and then looks, for each of its files, past every file that was deleted
    there within the last minutes: making a tree of 2,000 files where another was just removed takes 1.3 s instead of
    0.03 s. A "top of a hierarchy" (chattr +T) gets its sub-directories wherever there is room.
    """
    if directory.is_dir():
        return
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if sys.platform != "linux":
        return
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # another file system: it has its own ways
            flags = array.array("l", [0])
            fcntl.ioctl(file, _GET_FLAGS, flags)
            fcntl.ioctl(file, _SET_FLAGS, array.array("l", [flags[0] | _TOPDIR]))
    finally:
        os.close(file)


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
