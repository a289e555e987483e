"""Which repository a path or an address means: one key, however it is named. Reads files only, starts nothing."""

# Plain strings and os.path: ten thousand projects are looked at when pilot starts.
# ruff: noqa: PTH112, PTH113, PTH118, PTH120, PTH123

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pilot.domain.errors import UsageError

_SCP = re.compile(r"(?:[^@/\s]+@)?(?P<host>\[[^\]]+\]|[^:/\s]+):(?P<path>[^\s]+)")
_PORTS = {"ssh": 22, "https": 443, "http": 80, "git": 9418}
_SAME_HOST = {
    "ssh.github.com": "github.com",
    "altssh.gitlab.com": "gitlab.com",
    "altssh.bitbucket.org": "bitbucket.org",
}
"""Where a forge answers SSH on the port of HTTPS."""
_ANY_CASE = frozenset({"github.com", "gitlab.com", "bitbucket.org", "codeberg.org"})
"""Forges to which o/r and O/R are one repository."""


def machine() -> str:
    """This machine, as part of a repository's identity: stays the same over a reboot."""
    try:
        return Path("/etc/machine-id").read_text().strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()


def find_repository(cwd: str | Path) -> Path | None:
    """The top of the work tree (or the bare repository) in which a path lies; None outside of any."""
    found = _find(os.path.realpath(cwd))
    return None if found is None else Path(found[0])


def git_dir_of(root: str | Path) -> Path:
    """The git directory of a work tree's top, or of a bare repository. Raises `UsageError` when it is neither."""
    found = _git_dir(str(root)) or (str(root) if _is_git_dir(str(root)) else None)
    if found is None:
        raise UsageError(f"{root} is no git repository")
    return Path(found)


def common_dir(git_dir: str | Path) -> Path:
    """The directory that all work trees of a repository share: objects, branches, config."""
    try:
        with open(os.path.join(git_dir, "commondir")) as file:
            shared = file.read().rstrip("\n")
    except FileNotFoundError:
        return Path(os.path.realpath(git_dir))
    return Path(os.path.realpath(os.path.join(git_dir, shared)))


def repository_key(path: str | Path) -> tuple[str, Path]:
    """Identity and top of the repository in which a path lies.

    Work trees, submodule checkouts, sub-folders, symlinks and bare repositories all give the key of their common
    git directory, on this machine. Raises `UsageError` when there is no repository, `FileNotFoundError` no path.
    """
    found = _find(os.path.realpath(path, strict=True))
    if found is None:
        raise UsageError(f"{path} is in no git repository; `git init` makes one")
    root, git_dir = found
    return f"{machine()}:{common_dir(git_dir)}", Path(root)


def url_key(url: str) -> str:
    """Identity of the repository at an address.

    The forms of one address give one key: `git@host:o/r.git`, `ssh://git@host:22/o/r`, `https://host/o/r.git/`.
    A path of this machine gives the key that it has as a path.
    """
    local = local_path(url)
    if local is not None:
        try:
            return repository_key(local)[0]
        except (OSError, UsageError):
            return f"{machine()}:{os.path.realpath(local)}"
    if "://" in url:
        parts = urlsplit(url)
        scheme = parts.scheme.lower().removeprefix("git+")
        host, path, port = parts.hostname or "", parts.path, parts.port
    else:
        found = _SCP.fullmatch(url)
        if found is None:
            raise UsageError(f"{url!r} is no repository's address")
        scheme, host, path, port = "ssh", found["host"].strip("[]").lower(), found["path"], None
    host = _SAME_HOST.get(host, host)
    # Over SSH a port says nothing about which repository it is: the same server has another one for HTTPS.
    shown_port = "" if port is None or scheme == "ssh" or port == _PORTS.get(scheme) else f":{port}"
    path = re.sub(r"/{2,}", "/", unquote(path)).strip("/").removesuffix(".git").rstrip("/")
    if host in _ANY_CASE:
        path = path.lower()
    return f"{host}{shown_port}/{path}"


def without_secrets(url: str) -> str:
    """The address as it may be stored and shown: without a password, or a token in its place."""
    if "://" not in url:
        return url
    head, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    who, at, host = host.rpartition("@")
    # `git@` over SSH is a name; all there is before an `@` of HTTPS may be a token
    kept = f"{who.partition(':')[0]}@" if at and head.lower().endswith("ssh") else ""
    return f"{head}://{kept}{host}{slash}{path}"


def local_path(url: str) -> str | None:
    """The path that an address means on this machine, or None."""
    if url.lower().startswith("file://"):
        return unquote(urlsplit(url).path)
    return url if url.startswith("/") else None


def _find(place: str) -> tuple[str, str] | None:
    """Top and git directory of the repository around a real path."""
    while True:
        git_dir = _git_dir(place)
        if git_dir is not None:
            return place, git_dir
        above = os.path.dirname(place)
        if _is_git_dir(place):
            return (above if place.endswith("/.git") else place), place
        if above == place:
            return None
        place = above


def _git_dir(top: str) -> str | None:
    """What `.git` in a directory leads to, when it leads to a git directory."""
    dot = os.path.join(top, ".git")
    if _is_git_dir(dot):
        return dot
    if not os.path.isfile(dot):  # a pipe would be waited for
        return None
    try:
        with open(dot, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(8192)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return None
    if not text.startswith("gitdir:"):
        return None
    found = os.path.join(top, text.removeprefix("gitdir:").strip())
    return found if os.path.isfile(os.path.join(found, "HEAD")) else None


def _is_git_dir(path: str) -> bool:
    return (
        os.path.isdir(os.path.join(path, "objects"))
        and os.path.isdir(os.path.join(path, "refs"))
        and os.path.lexists(os.path.join(path, "HEAD"))
    )
