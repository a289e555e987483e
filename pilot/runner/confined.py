"""Files that a task names: opened only inside its workspace, whatever links and pipes somebody left there.

By `openat2` where the kernel has it, which refuses a way out while it walks; else by the same walk in steps, each
from a directory that is open already, so that nothing can be put in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
import struct
from pathlib import Path

from pilot.domain.errors import UsageError
from pilot.domain.text import one_line

FILE_LIMIT = 16 << 20
"""Bytes of a file that a task names, at most."""
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""Not blocking: nobody may ever write into a pipe."""
_LINKS = 40
_OPENAT2 = 437
"""The call's number, the same on all machines."""
_BENEATH = 0x08 | 0x02
"""RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS."""
_TRIES = 16
_LACKING = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG})
"""No such call here, or none that is allowed (a container's filter): the walk says what it is, then."""


def read_confined(top: Path, name: str, limit: int = FILE_LIMIT) -> bytes:
    """All of a regular file inside `top`. Raises `UsageError` in words for anything else: nothing is read, then.

    `name` is a relative path. A symbolic link counts as what it leads to inside of `top`; blocking.
    """
    shown = one_line(name, 200)
    with os.fdopen(open_confined(top, name), "rb") as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise UsageError(f"{shown!r} can't be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise UsageError(f"{shown!r} is larger than {limit >> 10} KiB")
    return data


def open_confined(top: Path, name: str) -> int:
    """The same, as a descriptor that the caller closes."""
    shown = one_line(name, 200)
    try:
        file = _opened(top, name)
    except OSError as error:
        raise UsageError(f"{shown!r} {_why(error)}") from error
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        raise UsageError(f"{shown!r} is no file, but {_what(mode)}")
    return file


def check_sha1(name: str, data: bytes, wanted: str | None) -> None:
    """Raise `UsageError` unless the content has that hash; None asks for none."""
    found = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    if wanted is not None and found != wanted.lower():
        words = f"{one_line(name, 200)!r} has the hash {found}, and its step wants {wanted} (`pilot hash` prints it)"
        raise UsageError(f"{words}: the file was changed after the plan was written, or is another one")


def _opened(top: Path, name: str) -> int:
    parts = _parts(name)
    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = opened_at_once(root, name)
        return opened_in_steps(root, parts) if file is None else _kept_out_of_git(file, top)
    finally:
        os.close(root)


def _parts(name: str) -> list[str]:
    """The steps of a path. Raises OSError for one that is not meant to stay inside."""
    if not name or "\0" in name or len(name) > 4096:
        raise OSError(errno.EINVAL, "can't be a path")
    if name.startswith("/"):
        raise OSError(errno.EXDEV, "is absolute")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EXDEV, "has ..")
    if not parts or name.endswith("/"):
        raise OSError(errno.EISDIR, "is a directory")
    _refuse_git(parts)
    return parts


def opened_at_once(root: int, name: str) -> int | None:
    """The file, opened by one call of the kernel; None where there is no such call. Raises OSError."""
    how = struct.pack("=QQQ", _FLAGS, 0, _BENEATH)
    call = ctypes.CDLL(None, use_errno=True).syscall
    path = ctypes.c_char_p(os.fsencode(name))
    for _ in range(_TRIES):
        file: int = call(ctypes.c_long(_OPENAT2), ctypes.c_int(root), path, how, ctypes.c_size_t(len(how)))
        if file >= 0:
            return file
        code = ctypes.get_errno()
        if code in _LACKING:
            return None
        if code not in (errno.EAGAIN, errno.EINTR):  # something was renamed on the way: once more
            raise OSError(code, os.strerror(code))
    return None


def opened_in_steps(root: int, parts: list[str]) -> int:
    """The same without that call: a link is read, and walked like the path itself. Raises OSError."""
    left, links = list(reversed(parts)), 0
    folders = [os.dup(root)]
    try:
        while left:
            part = left.pop()
            if part == "..":
                if len(folders) == 1:
                    raise OSError(errno.EXDEV, "leads out")
                os.close(folders.pop())
                continue
            target = _link(folders[-1], part)
            if target is not None:
                links += 1
                left += _followed(target, links)
            elif left:
                folders.append(os.open(part, _FLAGS | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folders[-1]))
            else:
                _refuse_git([part])
                return os.open(part, _FLAGS | os.O_NOFOLLOW, dir_fd=folders[-1])
            _refuse_git([part])
        raise OSError(errno.EISDIR, "is a directory")
    finally:
        for folder in folders:
            os.close(folder)


def _followed(target: str, links: int) -> list[str]:
    """The steps that a link stands for, last first."""
    if target.startswith("/"):
        raise OSError(errno.EXDEV, "leads out")
    if links > _LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    steps = [step for step in reversed(target.split("/")) if step not in ("", ".")]
    # what ends in a slash or a dot can only be a directory
    return [".", *steps] if target.endswith(("/", "/.")) else steps


def _link(folder: int, name: str) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(name, dir_fd=folder)
    return None


def _kept_out_of_git(file: int, top: Path) -> int:
    """The file, unless a link led into a git directory: what is in there is no part of the work."""
    try:
        place = Path(f"/proc/self/fd/{file}").readlink()
        _refuse_git(os.path.relpath(place, os.path.realpath(top)).split("/"))
    except OSError:
        os.close(file)
        raise
    return file


def _refuse_git(parts: list[str]) -> None:
    if ".git" in map(str.casefold, parts):
        raise OSError(errno.EXDEV, "is in .git")


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EXDEV:
            return f"does not stay inside the repository ({error.strerror})"
        case errno.EINVAL:
            return "can't be a path"
        case errno.ENOENT | errno.ENOTDIR:
            return "is not there; it has to be a file of the repository"
        case errno.EISDIR:
            return "is no file, but a directory"
        case errno.ELOOP:
            return "is a link that leads nowhere it may"
        case errno.ENXIO:
            return "is no file, but a socket or a device"
    return f"can't be opened: {error.strerror or error}"


def _what(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device"
