"""The repository's own text for agents: regular files of the workspace, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from pilot.runner.prompt import instructions


def test_both_files_are_read_and_one_only_once(tmp_path: Path) -> None:
    assert instructions(tmp_path) == ""
    (tmp_path / "AGENTS.md").write_text("be brief")
    (tmp_path / "CLAUDE.md").symlink_to("AGENTS.md")
    assert instructions(tmp_path) == "be brief"
    (tmp_path / "CLAUDE.md").unlink()
    (tmp_path / "CLAUDE.md").write_text("be kind")
    assert instructions(tmp_path) == "be brief\n\nbe kind"


def test_nothing_outside_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    workspace = tmp_path / "ws"
    (workspace / "docs").mkdir(parents=True)
    (workspace / "AGENTS.md").symlink_to("../secret")
    (workspace / "CLAUDE.md").symlink_to("docs")
    assert instructions(workspace) == ""


def test_what_is_no_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "AGENTS.md")
    (tmp_path / "CLAUDE.md").mkdir()
    assert instructions(tmp_path) == ""


def test_it_is_bounded_and_storable(tmp_path: Path) -> None:
    (tmp_path / "AGENTS.md").write_bytes(b"\x00\xff" + "é".encode() * 30_000)
    text = instructions(tmp_path)
    assert len(text.encode()) <= (32 << 10) + 2
    assert "\x00" not in text
