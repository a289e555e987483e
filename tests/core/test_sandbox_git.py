"""Git in the sandbox: agents work with it in all kinds of workspace, and plant nothing that is run outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot.domain.errors import WorkspaceError
from tests.core.cell import Cell, cell, words
from tests.core.test_hostile import VECTORS
from tests.core.worksite import git, looks, shell

SHARED = ("worktree", "in_place")
MODES = ("clone", *SHARED)
OF_USERS = ("status", "diff", "add -A", "commit -qm x", "stash", "fetch -q .", "switch -q -", "switch -q -", "gc -q")
"""What people do in their checkout afterwards."""


async def delivered(c: Cell) -> None:
    """All that pilot does with a workspace when its agent has ended."""
    s, ws = c.site, c.workspace
    await s.workspaces.keep_wip(ws)
    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)
    (ws.path / "src/a.py").write_text("3\n")
    await s.workspaces.restore(ws)
    await s.workspaces.release(ws, keep=False)
    c.sandbox.close()
    ws.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vector", VECTORS)
async def test_nothing_planted_is_run_outside(tmp_path: Path, mode: str, vector: str) -> None:
    """Inside, git may well run it: that is the agent's own affair, and leaves no file out here."""
    ran = tmp_path / "ran"
    c = await cell(tmp_path, workspace=mode)
    evil = c.path / "evil"
    plant = VECTORS[vector].replace("$G/evil", str(evil))
    await c.run(
        "/bin/sh",
        "-c",
        f"printf '#!/bin/sh\\ntouch {ran}\\ncat\\n' > {evil}; chmod +x {evil}; echo work > work; echo 2 > src/a.py; "
        "own=$(git rev-parse --absolute-git-dir); shared=$(cd $(git rev-parse --git-common-dir); pwd)\n"
        f"for G in $own $shared; do cp {evil} $G/evil; ( {plant} ); done",
    )

    try:
        await delivered(c)
    except WorkspaceError:
        # it moved the shared directory's contents away: an agent can destroy what it shares, and no more
        assert vector == "replaced .git"
        assert mode in SHARED
        assert not ran.exists()
        return

    assert not ran.exists()
    assert git(c.site.repo, "show", f"{c.workspace.branch}:src/a.py") == "2"
    assert git(c.site.repo, "show", f"{c.workspace.branch}:work") == "work"
    for command in OF_USERS:
        git(c.site.repo, *command.split(), check=False)
    assert not ran.exists()


@pytest.mark.parametrize("mode", MODES)
async def test_git_works_as_agents_use_it(tmp_path: Path, mode: str) -> None:
    c = await cell(tmp_path, workspace=mode)
    before = (c.site.repo / ".git/config").read_bytes()
    said = await c.sh(
        "git status --short; echo 1 > one; git add one; git commit -qm one; git switch -qc side; echo 2 > two; "
        "git add two; git commit -qm two; git switch -q -; git merge -q --no-ff -m merged side; echo 3 >> one; "
        "git stash -q; git stash pop -q; git commit -qam three; git rebase -q HEAD~1; git log --format=%s -4; "
        "git branch -D -q side; git tag t; git diff HEAD~1 --stat | tail -1; git blame one | wc -l; git fsck"
    )
    wrong = [line for line in said.split("\n") if line.startswith(("error", "fatal"))]
    assert all("could not write config file" in line for line in wrong), said
    assert "three\nmerged\n" in said

    await delivered(c)

    assert git(c.site.repo, "log", "-1", "--format=%s", c.workspace.branch) == "three"
    assert (c.site.repo / ".git/config").read_bytes() == before
    assert sorted({"commondir", "config.worktree"} & {p.name for p in (c.site.repo / ".git").iterdir()}) == []
    git(c.site.repo, "fsck")


@pytest.mark.parametrize("mode", SHARED)
async def test_what_makes_git_run_programs_stays(tmp_path: Path, mode: str) -> None:
    c = await cell(tmp_path, workspace=mode)
    there = c.site.repo / ".git"
    at = words(there)
    await c.refused(
        "git config user.name evil",
        *(f"echo x > {at}/{name}" for name in ("config", "commondir", "config.worktree", "hooks/post-commit")),
        *(f"rm {at}/{name}" for name in ("config", "commondir", "config.worktree")),
        *(f"mv {at}/{name} {at}/moved" for name in ("config", "hooks", "info", "objects", "objects/info")),
        f"echo /x > {at}/objects/info/alternates", f"echo '* filter=x' > {at}/info/attributes",
        f"mv {at} {words(c.site.repo)}/moved", "mv .git moved", "rm .git", "rmdir .git",
        "echo gitdir: /x > .git", "echo x > .git/commondir",
        "echo /x > $(git rev-parse --git-dir)/commondir", "echo /x > $(git rev-parse --git-dir)/config.worktree",
    )  # fmt: skip
    assert await c.sh("git status --short; git log -1 --format=%s") == "first"


async def test_a_worktree_shows_nothing_of_the_checkout(tmp_path: Path) -> None:
    c = await cell(tmp_path, workspace="worktree")
    (c.site.repo / "private").write_text("not committed")
    before = looks(c.site.repo)
    await c.refused(f"cat {words(c.site.repo)}/README", f"cat {words(c.site.repo)}/private")
    await c.refused(f"echo ref: refs/heads/x > {words(c.site.repo)}/.git/HEAD", f"rm {words(c.site.repo)}/.git/index")
    c.sandbox.close()
    assert looks(c.site.repo) == before


@pytest.mark.parametrize("mode", SHARED)
@pytest.mark.parametrize("name", ["hooks", "info", "objects/info"])
async def test_a_link_is_not_followed_to_where_an_agent_leads_it(tmp_path: Path, mode: str, name: str) -> None:
    """A source that an agent made a link in an attempt without a sandbox would show whatever it likes."""
    c = await cell(tmp_path, workspace=mode)
    secret = tmp_path / "secret"
    secret.mkdir()
    place = c.site.repo / ".git" / name
    shell(tmp_path, f"rm -rf {place}; ln -s {secret} {place}")
    with pytest.raises(WorkspaceError, match="is a link"):
        await c.sh("true")


async def test_objects_that_are_borrowed_twice_are_there(tmp_path: Path) -> None:
    first = await cell(tmp_path / "a")
    git(tmp_path, "clone", "-q", "--shared", str(first.site.repo), str(tmp_path / "shared"))
    c = await cell(tmp_path / "b", path=tmp_path / "shared")
    assert await c.sh("git log -1 --format=%s; git fsck") == "first"
    await c.refused(f"ls {words(first.site.repo)}/.git/HEAD", f"ls {words(tmp_path)}/shared/.git/HEAD")


async def test_two_that_share_a_git_directory_protect_it_until_both_are_gone(tmp_path: Path) -> None:
    c = await cell(tmp_path, workspace="worktree")
    d = await cell(tmp_path, workspace="worktree", id=8, at=c.site)
    await c.sh("true")
    async with d.running(
        "/bin/sh",
        "-c",
        "echo up; read x; echo /evil > $0/commondir; cat $0/commondir",
        str(c.site.repo / ".git"),
        keep_stdin=True,
    ) as process:
        lines = process.lines()
        assert (await anext(lines)).data == b"up"
        c.sandbox.close()
        await process.write(b"\n")
        said = [line.data async for line in lines]
    assert said[-1] == b"."
    assert (c.site.repo / ".git/commondir").exists()
    d.sandbox.close()
    d.sandbox.close()
    assert not (c.site.repo / ".git/commondir").exists()
