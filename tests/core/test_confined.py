"""What a task names is opened inside its workspace only: by the kernel's own call, and where there is none."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pilot.domain.errors import UsageError
from pilot.runner import confined
from pilot.runner.confined import read_confined

Lay = Callable[[Path], str]
"""Puts something into a workspace, and gives its name."""


def _named(name: str) -> Lay:
    return lambda _: name


def _link(target: str, name: str = "link", then: str = "") -> Lay:
    def lay(top: Path) -> str:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).symlink_to(target)
        return name + then

    return lay


def _secret(top: Path) -> str:
    return os.fspath(top.parent / "secret")


def _fifo(top: Path) -> str:
    os.mkfifo(top / "pipe")
    return "pipe"


def _socket(top: Path) -> str:
    held = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(top)  # the name of a socket is short
    try:
        held.bind("sock")
    finally:
        os.chdir(here)
        held.close()
    return "sock"


def _large(top: Path) -> str:
    (top / "large").write_bytes(b"x" * 4097)
    return "large"


def _submodule(top: Path) -> str:
    (top / "sub").mkdir()
    (top / "sub/.git").write_text("gitdir: elsewhere")
    return "sub/.git"


def _deep(top: Path) -> str:
    for number in range(60):
        (top / f"l{number}").symlink_to(f"l{number + 1}")
    (top / "l60").write_text("at last")
    return "l0"


ATTACKS: dict[str, tuple[Lay, str]] = {
    "up": (_named("../secret"), "has .."),
    "up and down": (_named("dir/../../secret"), "has .."),
    "absolute": (_secret, "is absolute"),
    "proc": (_named("/proc/self/root" "/etc/passwd"), "is absolute"),
    "nul": (_named("ok\0x"), "can't be a path"),
    "nothing": (_named(""), "can't be a path"),
    "itself": (_named("."), "a directory"),
    "link out": (_link("../secret"), "stay inside"),
    "absolute link": (lambda top: _link(_secret(top))(top), "stay inside"),
    "link to a folder outside": (_link("..", then="/secret"), "stay inside"),
    "link out of a folder": (_link("../../secret", "dir/link"), "stay inside"),
    "link over a link": (lambda top: (_link("..", "dir/up")(top), _link("dir/up/../secret")(top))[1], "stay inside"),
    "magic link": (_link("/proc/self/root", then="/etc/passwd"), "stay inside"),
    "magic descriptor": (_link("/proc/self/fd/0"), "stay inside"),
    "device": (_link("/dev/zero"), "stay inside"),
    "loop": (_link("link"), "leads nowhere"),
    "too many links": (_deep, "leads nowhere"),
    "directory": (_named("dir"), "a directory"),
    "link to a directory": (_link("dir"), "a directory"),
    "as a directory": (_named("ok/"), "a directory"),
    "beyond a file": (_named("ok/x"), "is not there"),
    "missing": (_named("missing"), "is not there"),
    "dangling": (_link("missing"), "is not there"),
    "pipe": (_fifo, "a pipe"),
    "socket": (_socket, "a socket"),
    "too large": (_large, "larger than 4 KiB"),
    "git": (_named(".git/config"), "is in .git"),
    "GIT": (_named(".GIT/config"), "is in .git"),
    "git by a link": (_link(".git/config"), "is in .git"),
    "git by a folder": (_link(".git", then="/config"), "is in .git"),
    "another's git": (_submodule, "is in .git"),
}  # fmt: skip


@pytest.fixture(params=["at once", "in steps"])
def top(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace beside a secret; both ways to open what is in it."""
    if request.param == "in steps":
        monkeypatch.setattr(confined, "opened_at_once", lambda _root, _name: None)
    top = tmp_path / "work"
    for name, text in {"ok": "fine", "dir/deep/file": "deep", ".git/config": "token"}.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (tmp_path / "secret").write_text("secret")
    return top


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_else_is_opened(top: Path, attack: str) -> None:
    lay, words = ATTACKS[attack]
    name = lay(top)
    before = _open_files()
    with pytest.raises(UsageError, match=words):
        read_confined(top, name, 4096)
    assert _open_files() == before


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_files_and_links_inside_are_read(top: Path) -> None:
    (top / "beside").symlink_to("dir/../ok")
    (top / "dir/up").symlink_to("../ok")
    (top / "dir/here").symlink_to("./deep")
    names = {"ok": b"fine", "./dir//deep/file": b"deep", "beside": b"fine", "dir/up": b"fine", "dir/here/file": b"deep"}
    assert {name: read_confined(top, name, 4096) for name in names} == names


def test_a_file_may_be_as_large_as_said(top: Path) -> None:
    (top / "full").write_bytes(b"x" * 4096)
    assert len(read_confined(top, "full", 4096)) == 4096


def test_the_kernel_has_its_say_here(tmp_path: Path) -> None:
    """Else the half of this file that is named after it would test the other half twice."""
    (tmp_path / "ok").write_text("fine")
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        file = confined.opened_at_once(root, "ok")
        assert file is not None
        os.close(file)
        with pytest.raises(OSError, match=r"cross-device|Invalid"):
            confined.opened_at_once(root, "../x")
    finally:
        os.close(root)


def test_a_folder_that_is_swapped_while_it_is_walked_leads_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk goes on from the folder that it has open, not from a name."""
    top = tmp_path / "work"
    (top / "dir").mkdir(parents=True)
    (top / "dir/file").write_text("inside")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("secret")
    looked = confined._link

    def swapped(folder: int, name: str) -> str | None:
        found = looked(folder, name)
        if name == "dir":  # it was a folder when it was looked at
            (top / "dir").rename(top / "gone")
            (top / "dir").symlink_to(tmp_path / "out")
        return found

    monkeypatch.setattr(confined, "opened_at_once", lambda _root, _name: None)
    monkeypatch.setattr(confined, "_link", swapped)
    with pytest.raises(UsageError):
        read_confined(top, "dir/file")
