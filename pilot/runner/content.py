"""The hash by which a plan's step names the content that it means (`#sha1=`)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pilot.domain.errors import NotFound, UsageError

_PIECE = 1 << 20


def sha1_of(path: Path) -> str:
    """Of a file: its content's SHA-1. Of a directory: that of one line `HASH  ./path` for each file, by path.

    That is what `find . -type f | sort | xargs sha1sum | sha1sum` says. A link counts as the path that it holds, and
    is not followed; git's own directory is left out. Raises `NotFound`, and `UsageError` for what is neither.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return _of_file(path)
        if stat.S_ISDIR(mode):
            return _of_directory(path)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {path}") from error
    except OSError as error:
        raise UsageError(f"{error.filename or path} can't be read: {error.strerror or error}") from error
    raise UsageError(f"{path} is neither a file nor a directory")


def _of_directory(top: Path) -> str:
    whole = hashlib.sha1(usedforsecurity=False)
    for name, path in sorted((os.fsencode(path.relative_to(top)), path) for path in _files(top)):
        whole.update(_of_entry(path).encode() + b"  ./" + name + b"\n")
    return whole.hexdigest()


def _files(top: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(top, onerror=stop):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = [name for name in folders if name != ".git"]
        yield from (Path(folder) / name for name in (*names, *links) if name != ".git")


def _of_entry(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return hashlib.sha1(os.fsencode(path.readlink()), usedforsecurity=False).hexdigest()
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is neither a file nor a directory")
    return _of_file(path)


def _of_file(path: Path) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
