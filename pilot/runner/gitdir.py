"""Git directories made by hand: a bare one that only pilot uses, and the one inside an agent's clone.

An agent may write anything into its clone's git directory, so pilot never runs git there. It puts the directory in
order by plain file operations that follow no symlink, and a fetch from the clone starts on such a directory only.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pilot.runner.files import read_regular

_KEPT = frozenset({"objects", "modules", "lfs", "annex", "logs", "rr-cache", "worktrees"})
"""What stays in a clone: data that no config hides in. All else is pilot's to write or is removed."""
_STATE = frozenset(
    {"HEAD", "refs", "packed-refs", "index", "MERGE_HEAD", "MERGE_MODE", "MERGE_MSG", "AUTO_MERGE", "ORIG_HEAD"}
    | {"CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD", "sequencer", "rebase-merge", "rebase-apply"}
)
"""Where an agent stands, and what it is in the middle of: no git but its own reads that."""
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIMIT = 64 << 20

Refs = Mapping[str, str]
"""Full ref names to commits (or tag objects)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What pilot writes into a git directory. `objects`: where those are that it does not have itself."""

    objects: Path | None = None
    sha256: bool = False
    exclude: bytes = b""
    shallow: bytes = b""
    author: tuple[str, str] | None = None

    def config(self, *, bare: bool) -> bytes:
        """The config file."""
        lines = ["[core]", f"\trepositoryformatversion = {int(self.sha256)}", "\tfilemode = true"]
        lines += [f"\tbare = {str(bare).lower()}", "\tlogallrefupdates = true"]
        if self.sha256:
            lines += ["[extensions]", "\tobjectformat = sha256"]
        if self.author is not None:
            name, email = (_quoted(part) for part in self.author)
            lines += ["[user]", f"\tname = {name}", f"\temail = {email}", "[commit]", "\tgpgsign = false"]
            lines += ["[tag]", "\tgpgsign = false", "[gc]", "\tauto = 0", "[maintenance]", "\tauto = false"]
        return "\n".join([*lines, ""]).encode(errors="surrogateescape")


def make_bare(path: Path, layout: Layout) -> None:
    """A bare repository at `path`, whole or not at all; an existing one gets what of the layout may change."""
    if not (path / "HEAD").exists():
        made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        for name in ("objects/info", "objects/pack", "refs/heads", "info"):
            (made / name).mkdir(parents=True)
        (made / "HEAD").write_text("ref: refs/heads/none\n")
        (made / "config").write_bytes(layout.config(bare=True))
        try:
            made.rename(path)
        except OSError:
            shutil.rmtree(made)
            if not (path / "HEAD").exists():
                raise
    _keep_written(path / "objects/info/alternates", _alternates(layout.objects))
    _keep_written(path / "info/exclude", layout.exclude)
    _keep_written(path / "shallow", layout.shallow)


def disarm(tree: Path, layout: Layout) -> None:
    """Leave nothing in the clone's git directory that could make git run or read something else.

    Branches and commits stay. Afterwards `tree/.git` is a real directory, whatever the agent made of it.
    """
    with _opened_git(tree) as git:
        _clear(git, _KEPT | _STATE)
        _write(git, "config", layout.config(bare=False))
        with _opened(git, "info") as info:
            _write(info, "exclude", layout.exclude)
        with _opened(git, "objects") as objects:
            _unlink_symlinks(objects)
            _remove(objects, "info")
            with _opened(objects, "info") as info:
                _write(info, "alternates", _alternates(layout.objects))
            with _opened(objects, "pack"):
                pass
        if layout.shallow:
            _write(git, "shallow", layout.shallow)


def put_state(tree: Path, branch: str, head: str, refs: Refs, index: Path) -> None:
    """Make a disarmed clone stand on `branch` at `head`, with these other refs and this index."""
    packed = {**refs, f"refs/heads/{branch}": head}
    lines = ["# pack-refs with: sorted \n", *(f"{sha} {name}\n" for name, sha in sorted(packed.items()))]
    with _opened_git(tree) as git:
        for name in _STATE:
            _remove(git, name)
        with _opened(git, "refs") as inside, _opened(inside, "heads"), _opened(inside, "tags"):
            pass
        _write(git, "packed-refs", "".join(lines).encode())
        _write(git, "index", index.read_bytes())
        _write(git, "HEAD", f"ref: refs/heads/{branch}\n".encode())


def read_state(tree: Path) -> tuple[str | None, dict[str, str]]:
    """Where a clone's HEAD leads, and all its refs, as far as they are plain files. Follows no symlink of its own.

    Only to see whether anything is new: a fetch says what it really is.
    """
    found: dict[str, str] = {}
    try:
        with _opened_git(tree, make=False) as git:
            for line in _text(git, "packed-refs").splitlines():
                sha, _, name = line.partition(" ")
                if _SHA.fullmatch(sha) and name:
                    found[name] = sha
            found.update(_loose(git, "refs"))
            head = _text(git, "HEAD").strip()
    except OSError:
        return None, {}
    if head.startswith("ref: "):
        return found.get(head.removeprefix("ref: ").strip()), found
    return (head if _SHA.fullmatch(head) else None), found


def is_intact(tree: Path) -> bool:
    """Whether a clone is one: a directory with a git directory in it, neither by way of a symlink."""
    try:
        return all(stat.S_ISDIR(os.lstat(place).st_mode) for place in (tree, tree / ".git"))
    except OSError:
        return False


def _quoted(text: str) -> str:
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ").replace("\0", "")
    return f'"{plain}"'


def _alternates(objects: Path | None) -> bytes:
    return b"" if objects is None else os.fsencode(objects) + b"\n"


def _keep_written(path: Path, data: bytes) -> None:
    """Write it unless it is so already; no data, no file."""
    if not data:
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == data:
            return
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    part.write_bytes(data)
    part.replace(path)


@contextlib.contextmanager
def _opened_git(tree: Path, *, make: bool = True) -> Iterator[int]:
    top = os.open(tree, _DIRECTORY)
    try:
        with _opened(top, ".git", make=make) as git:
            yield git
    finally:
        os.close(top)


@contextlib.contextmanager
def _opened(parent: int, name: str, *, make: bool = True) -> Iterator[int]:
    """A directory inside another. `make`: whatever else has that name gives way."""
    try:
        inside = os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError:
        if not make:
            raise
        _remove(parent, name)
        os.mkdir(name, 0o755, dir_fd=parent)
        inside = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield inside
    finally:
        os.close(inside)


def _clear(directory: int, kept: frozenset[str]) -> None:
    for name in os.listdir(directory):
        if name not in kept or stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
            _remove(directory, name)


def _remove(parent: int, name: str) -> None:
    try:
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            shutil.rmtree(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return


def _unlink_symlinks(directory: int) -> None:
    """An object that is a link could be another repository's, which the agent may not see."""
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.is_symlink():
                os.unlink(entry.name, dir_fd=directory)
            elif entry.is_dir(follow_symlinks=False):
                with _opened(directory, entry.name) as inside:
                    _unlink_symlinks(inside)


def _write(parent: int, name: str, data: bytes) -> None:
    _remove(parent, name)
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent)
    with os.fdopen(file, "wb") as out:
        out.write(data)


def _text(parent: int, name: str) -> str:
    return os.fsdecode(read_regular(name, _LIMIT, dir_fd=parent) or b"")


def _loose(parent: int, path: str) -> dict[str, str]:
    found = {}
    try:
        inside = os.open(path.rpartition("/")[2], _DIRECTORY, dir_fd=parent)
    except OSError:
        return {}
    try:
        for name in os.listdir(inside):  # noqa: PTH208  an open directory has no path
            text = _text(inside, name).strip()
            if _SHA.fullmatch(text):
                found[f"{path}/{name}"] = text
            elif not text:
                found.update(_loose(inside, f"{path}/{name}"))
    finally:
        os.close(inside)
    return found
