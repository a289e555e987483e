"""An agent writes what it likes into its clone: nothing of it is run, followed or believed by pilot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import Ending
from pilot.runner.workspace import Workspace
from tests.core.worksite import Site, execution, files_of, git, repository, shell, site

# Each plants something that runs `touch $RAN` in whatever git reads it. `$G` is the clone's git directory.
EVIL = 'printf "#!/bin/sh\\ntouch $RAN\\ncat\\n" > $G/evil; chmod +x $G/evil;'
VECTORS = {
    "fsmonitor": "git config core.fsmonitor $G/evil",
    "fsmonitor by include": "printf '[core]\\n fsmonitor = %s\\n' $G/evil > $G/more; git config include.path $G/more",
    "fsmonitor by config.worktree": (
        "git config extensions.worktreeConfig true; printf '[core]\\n fsmonitor = %s\\n' $G/evil > $G/config.worktree"
    ),
    "hooks": (
        "mkdir -p $G/hooks; for h in reference-transaction post-checkout pre-commit commit-msg post-commit pre-push "
        "post-index-change post-merge pre-auto-gc proc-receive update post-update fsmonitor-watchman; do "
        "cp $G/evil $G/hooks/$h; done"
    ),
    "hooksPath": "mkdir h; for n in pre-commit reference-transaction post-index-change; do cp $G/evil h/$n; done; "
    "git config core.hooksPath $PWD/h",
    "clean filter": "git config filter.x.clean $G/evil; echo '* filter=x' > .gitattributes",
    "smudge filter": "git config filter.x.smudge $G/evil; echo '* filter=x' > .gitattributes",
    "process filter": (
        "git config filter.x.process $G/evil; git config filter.x.required true; mkdir -p $G/info; "
        "echo '* filter=x' > $G/info/attributes"
    ),
    "diff driver": "git config diff.x.command $G/evil; echo '* diff=x' > .gitattributes",
    "textconv": "git config diff.x.textconv $G/evil; echo '* diff=x' > .gitattributes",
    "external diff": "git config diff.external $G/evil",
    "merge driver": "git config merge.x.driver $G/evil; echo '* merge=x' > .gitattributes",
    "uploadpack": "git config remote.origin.url .; git config remote.origin.uploadpack $G/evil; "
    "git config uploadpack.packObjectsHook $G/evil",
    "sshCommand": "git config core.sshCommand $G/evil; git config core.gitProxy $G/evil; git config core.pager $G/evil",
    "alternateRefsCommand": "git config core.alternateRefsCommand $G/evil",
    "ext url": "git config protocol.ext.allow always; git config url.'ext::$G/evil %S'.insteadOf /",
    "gpg": "git config gpg.program $G/evil; git config commit.gpgSign true; git config tag.gpgSign true",
    "editor, credential, askpass": (
        "git config core.editor $G/evil; git config credential.helper $G/evil; git config core.askPass $G/evil"
    ),
    "nested repository": (
        "git init -q inner; git -C inner -c user.name=a -c user.email=a@b commit -q --allow-empty -m i; "
        "git -C inner config core.fsmonitor $G/evil; mkdir -p inner/.git/hooks; "
        "cp $G/evil inner/.git/hooks/post-index-change; git add inner 2>/dev/null || true"
    ),
    "nested repository with a filter, committed": (
        "git init -q inner; echo x > inner/x; echo '* filter=x' > inner/.gitattributes; git -C inner add -A; "
        "git -C inner -c user.name=a -c user.email=a@b commit -qm i; git -C inner config filter.x.clean $G/evil; "
        "git add inner 2>/dev/null; git commit -qm inner; touch inner/x; echo y > inner/x"
    ),
    "replaced .git": (
        "mv $G ../g2; cp ../g2/evil .; git init -q --bare ../g3; git -C ../g3 config core.bare false; "
        "git -C ../g3 config core.fsmonitor $PWD/evil; "
        'echo "gitdir: $PWD/../g3" > .git'
    ),
    "commondir": "git init -q --bare ../g3; git -C ../g3 config core.fsmonitor $G/evil; echo $PWD/../g3 > $G/commondir",
}


async def planted(s: Site, vector: str, ran: Path) -> Workspace:
    """A workspace in which an agent made a change and planted the vector."""
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, f"echo work > work; RAN={ran}; G={ws.path}/.git; {EVIL} {VECTORS[vector]}; echo 2 > src/a.py")
    return ws


@pytest.mark.parametrize("vector", VECTORS)
async def test_nothing_planted_in_a_clone_is_run(tmp_path: Path, vector: str) -> None:
    ran = tmp_path / "ran"
    s = site(tmp_path, gates=({"name": "status", "run": "true"},))
    ws = await planted(s, vector, ran)
    ran.unlink(missing_ok=True)  # git in the agent's hands may have run it: that is the agent's own affair

    await s.workspaces.keep_wip(ws)
    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)
    shell(ws.path, "echo 3 > src/a.py")
    await s.workspaces.restore(ws)
    await s.workspaces.release(ws, keep=False)
    ws.close()
    if ws.path.exists():
        again = await s.workspaces.prepare(s.project, execution(attempt=2))
        await s.workspaces.snapshot(again, "x")
        again.close()

    assert not ran.exists()
    files = files_of_blobs(s.repo, ws.branch)
    assert (files["work"], files["src/a.py"]) == ("work", "2")


def files_of_blobs(repo: Path, branch: str) -> dict[str, str]:
    """Files, gitlinks left out."""
    links = [
        line.split("\t")[1] for line in git(repo, "ls-tree", "-r", branch).splitlines() if line.startswith("160000")
    ]
    names = [n for n in git(repo, "ls-tree", "-r", "--name-only", branch).splitlines() if n not in links]
    return {name: git(repo, "show", f"{branch}:{name}") for name in names}


@pytest.mark.parametrize("vector", VECTORS)
async def test_the_vectors_are_real(tmp_path: Path, vector: str) -> None:
    """Git as people run it in such a clone does run most of them; those that it does not are for other versions."""
    ran = tmp_path / "ran"
    ws = await planted(site(tmp_path), vector, ran)
    env = "GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b"
    for command in ("status", "diff", "add -A", "commit -m x", "mv work moved", "stash", "fetch -q origin"):
        try:
            shell(ws.path, f"{env} timeout 5 git {command} </dev/null >/dev/null 2>&1")
        except AssertionError:
            continue
    quiet = {
        "sshCommand",
        "alternateRefsCommand",
        "ext url",
        "merge driver",
        "uploadpack",
        "editor, credential, askpass",
    }
    assert ran.exists() or vector in quiet


async def test_the_gates_git_finds_pilot_s_config_again(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    s = site(tmp_path, gates=({"name": "status", "run": "git status --short && git diff HEAD && git add -A"},))

    plant = " ; ".join(VECTORS[v] for v in ("fsmonitor", "hooks", "clean filter", "external diff"))
    outcome = await s.run(f"echo w > work; RAN={ran}; G=$PWD/.git; {EVIL} {plant}; rm -f $RAN", execution=execution())

    assert outcome.ending is Ending.DONE
    assert not ran.exists()


async def test_a_repository_inside_is_not_swallowed(tmp_path: Path) -> None:
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "git init -q inner; echo x > inner/x; mkdir src/deep; git init -q src/deep/er; echo w > work")

    snapshot = await s.workspaces.snapshot(ws, "x")

    assert snapshot.files == ("work",)
    assert [note.split(" is ")[0] for note in snapshot.notes] == ["inner", "src/deep/er"]


async def test_a_repository_that_the_agent_committed_is_told_of(tmp_path: Path) -> None:
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "git init -q inner; git -C inner -c user.name=a -c user.email=a@b commit -q --allow-empty -m i")
    shell(ws.path, "git add -A 2>/dev/null; git commit -qm 'with inner'")

    snapshot = await s.workspaces.snapshot(ws, "x")

    assert snapshot.notes == ("inner is a repository of its own, of which only the address was committed",)


async def test_a_submodule_that_was_moved_is_left_where_it_was(tmp_path: Path) -> None:
    sub = repository(tmp_path / "sub")
    s = site(tmp_path)
    git(s.repo, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(sub), "lib")
    git(s.repo, "commit", "-qm", "lib")
    ws = await s.workspaces.prepare(s.project, execution())
    assert (await s.workspaces.snapshot(ws, "x")).changed is False
    shell(ws.path, "git -c protocol.file.allow=always submodule update --init -q; cd lib; echo 2 > two; git add two")
    shell(ws.path / "lib", "git -c user.name=a -c user.email=a@b commit -qm two; cd ..; echo w > work")

    snapshot = await s.workspaces.snapshot(ws, "x")

    assert snapshot.files == ("work",)
    assert "lib is a repository of its own" in snapshot.notes[0]
    assert git(ws.path / "lib", "log", "-1", "--format=%s") == "two", "the submodule still works for the agent"


@pytest.mark.parametrize("how", ["symlink", "file", "gone", "empty", "no HEAD", "no objects", "dangling", "refs"])
async def test_a_git_directory_in_ruins_costs_commits_at_most(tmp_path: Path, how: str) -> None:
    s = site(tmp_path)
    other = repository(tmp_path / "other", {"secret": "s3cret"})
    ws = await s.workspaces.prepare(s.project, execution())
    ruin = {
        "symlink": f"rm -rf .git; ln -s {other}/.git .git",
        "file": f"rm -rf .git; echo 'gitdir: {other}/.git' > .git",
        "gone": "rm -rf .git",
        "empty": "rm -rf .git/*",
        "no HEAD": "rm .git/HEAD",
        "no objects": f"rm -rf .git/objects; ln -s {other}/.git/objects .git/objects",
        "dangling": "echo 1234567890123456789012345678901234567890 > .git/HEAD",
        "refs": f"rm -rf .git/refs .git/packed-refs; ln -s {other}/.git/refs .git/refs; cp {other}/.git/HEAD .git",
    }[how]
    shell(ws.path, f"echo w > work; {ruin}")
    before = sorted((path, path.lstat().st_mtime_ns) for path in (other / ".git").rglob("*"))

    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)

    assert snapshot.files == ("work",)
    assert sorted((path, path.lstat().st_mtime_ns) for path in (other / ".git").rglob("*")) == before
    assert shell(ws.path, "git status --short --branch") == "## pilot/GH-46\n"


@pytest.mark.parametrize("how", ["alternates", "commondir", "linked pack", "linked object"])
async def test_objects_of_other_repositories_can_t_be_smuggled_out(tmp_path: Path, how: str) -> None:
    """An agent that may not read a repository must not get pilot to read it on its behalf."""
    s = site(tmp_path)
    other = repository(tmp_path / "other", {"secret": "s3cret"})
    secret = git(other, "rev-parse", "HEAD")
    ws = await s.workspaces.prepare(s.project, execution())
    there = f"{other}/.git"
    if how == "linked pack":
        git(other, "gc", "-q")
    smuggle = {
        "alternates": f"echo {there}/objects >> .git/objects/info/alternates",
        "commondir": f"echo {there} > .git/commondir",
        "linked pack": f"rm -rf .git/objects/pack; ln -s {there}/objects/pack .git/objects/pack",
        "linked object": f"for d in {there}/objects/??; do rm -rf .git/objects/${{d##*/}}; ln -s $d .git/objects; done",
    }[how]
    shell(ws.path, f"{smuggle}; mkdir -p .git/refs/heads/pilot; echo {secret} > .git/refs/heads/pilot/GH-46")

    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)

    assert not snapshot.changed
    assert snapshot.notes
    with pytest.raises(AssertionError):
        git(s.repo, "cat-file", "-e", secret)


async def test_a_workspace_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    s = site(tmp_path)
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("s3cret")
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.home, f"rm -rf api; ln -s {private} api")

    with pytest.raises(WorkspaceError):
        await s.workspaces.snapshot(ws, "x")

    ws.close()
    ws = await s.workspaces.prepare(s.project, execution(attempt=2))
    assert (ws.path / "README").exists()
    assert [path.name for path in private.iterdir()] == ["key"]


async def test_links_in_the_tree_are_taken_as_links(tmp_path: Path) -> None:
    s = site(tmp_path)
    private = tmp_path / "private"
    private.mkdir()
    (private / "a.py").write_text("s3cret")
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, f"rm -r src; ln -s {private} src; ln -s {private}/a.py other")

    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)

    files = files_of(s.repo, ws.branch)
    assert (files["src"], files["other"]) == (str(private), f"{private}/a.py")
    shell(ws.path, "rm src; mkdir src; echo x > src/new")
    await s.workspaces.restore(ws)
    assert (ws.path / "src").readlink() == private
    assert (private / "a.py").read_text() == "s3cret"
    assert await s.workspaces.release(ws, keep=False)
    assert (private / "a.py").exists()


async def test_a_commit_with_a_path_into_git_directories_is_refused(tmp_path: Path) -> None:
    """Made with plumbing; a checkout of it could overwrite a config on other systems."""
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(
        ws.path,
        "b=$(echo evil | git hash-object -w --stdin); t=$(printf '100644 blob %s\\tconfig\\n' $b | git mktree); "
        "t=$(printf '040000 tree %s\\t.GIT\\n' $t | git mktree); c=$(git commit-tree -p HEAD -m evil $t); "
        "git update-ref HEAD $c; echo w > work",
    )

    snapshot = await s.workspaces.snapshot(ws, "x")

    assert snapshot.files == ("work",)
    assert "can't be read" in snapshot.notes[0]


async def test_other_branches_and_stashes_of_the_agent_are_kept(tmp_path: Path) -> None:
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "git switch -qc side; echo 1 > one; git add one; git commit -qm side; git switch -q pilot/GH-46")
    shell(ws.path, "echo 2 > src/a.py; git stash -q; echo w > work")

    snapshot = await s.workspaces.snapshot(ws, "x")

    assert snapshot.files == ("work",)
    assert {note.split(" is ")[0] for note in snapshot.notes} == {"side", "stash"}
    assert shell(ws.path, "git log -1 --format=%s side; git stash list | wc -l").split() == ["side", "1"]
    assert (await s.workspaces.snapshot(ws, "x")).notes == ()


async def test_work_on_the_branch_counts_when_the_agent_went_back_to_the_start(tmp_path: Path) -> None:
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo 1 > one; git add one; git commit -qm one; git switch -q main")

    snapshot = await s.workspaces.snapshot(ws, "x")

    assert snapshot.files == ("one",)
    assert (ws.path / "one").exists()


async def test_two_snapshots_of_one_workspace_do_not_meet(tmp_path: Path) -> None:
    """Cancelled in the middle of git, nothing is left that keeps the next one from working."""
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "for i in $(seq 300); do echo $i > f$i; done")
    for steps in range(1, 12):
        task = asyncio.ensure_future(s.workspaces.snapshot(ws, "x"))
        for _ in range(steps * 3):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])

    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)

    assert len(snapshot.files) == 300
