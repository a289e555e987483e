"""Git as pilot runs it: bounded, cancel-safe, deaf to configuration, with errors that have a class."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.runner.git import Git, classify
from pilot.runner.process import end_marked
from pilot.runner.proctree import MARKER
from tests.core.worksite import ENVIRON, STORE, Site, again, execution, git, repository, shell, site, until


def program(place: Path, script: str) -> Git:
    """A git that is a script."""
    place.write_text(f"#!/bin/sh\n{script}\n")
    place.chmod(0o755)
    return Git(program=str(place), environ=ENVIRON)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_output_comes_back_whole(tmp_path: Path) -> None:
    done = await program(tmp_path / "git", "cat; head -c 300000 /dev/zero").run("x", stdin=b"\xff in")

    assert done.out == b"\xff in" + bytes(300000)


async def test_nothing_of_the_surroundings_counts(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    home = tmp_path / "home"
    (home / ".config/git").mkdir(parents=True)
    (home / ".config/git/ignore").write_text("*\n")
    (home / ".gitconfig").write_text(f"[core]\n hooksPath = {home}\n[alias]\n status = !false\n[user]\n name = Me\n")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "GIT_DIR": "/nonexistent",
        "GIT_CONFIG_PARAMETERS": "'core.bare=true'",
        "GIT_TRACE": "1",
        "GITHUB_TOKEN": "secret",
    }
    here = Git(environ=environ).at(repo / ".git", work_tree=repo)
    (repo / "new").write_text("x")

    assert (await here.run("status", "--porcelain")).text == "?? new"
    assert (await here.run("config", "--get", "user.name")).text == "Ann", "that is the repository's own"
    assert here.environment().keys().isdisjoint({"GITHUB_TOKEN", "HOME", "GIT_TRACE", "XDG_CONFIG_HOME"})
    assert "GITHUB_TOKEN" not in here.over_network().environment()


async def test_hooks_of_a_repository_do_not_run(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    hook = repo / ".git/hooks/reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)

    await Git(environ=ENVIRON).at(repo / ".git").run("update-ref", "refs/heads/x", "HEAD")

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("url", ["ext::sh -c 'touch ran'", "http://127.0.0.1:1/x.git", "fd::7"])
async def test_other_transports_are_off(tmp_path: Path, url: str) -> None:
    repo = repository(tmp_path / "repo")

    with pytest.raises(WorkspaceError, match=r"not allowed|unable to find"):
        await Git(environ=ENVIRON).at(repo / ".git").run("fetch", "--", url)


@pytest.mark.parametrize(
    ("words", "failure"),
    [
        ("error: unable to write file x: No space left on device", FailureClass.INFRA),
        ("fatal: Unable to create '/r/.git/refs/heads/x.lock': File exists.", FailureClass.INFRA),
        ('error: open("x"): Permission denied', FailureClass.INFRA),
        ("fatal: cannot lock ref 'refs/heads/x': is at 1 but expected 2", FailureClass.CONFLICT),
        ("fatal: Authentication failed for 'https://x/'", FailureClass.AUTH),
        ("fatal: could not read Username for 'https://x': terminal prompts disabled", FailureClass.AUTH),
        ("git@x: Permission denied (publickey).\nfatal: Could not read from remote repository.", FailureClass.AUTH),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 403", FailureClass.AUTH),
        ("fatal: unable to access 'https://x/': Could not resolve host: x", FailureClass.NETWORK),
        ("ssh: connect to host x port 22: Connection timed out", FailureClass.NETWORK),
        ("fatal: unable to access 'https://x/': The requested URL returned error: 503", FailureClass.NETWORK),
        ("remote: Repository not found.\nfatal: repository 'https://x/' not found", FailureClass.INVALID_CONFIG),
        ("fatal: '/x' does not appear to be a git repository", FailureClass.INVALID_CONFIG),
        ("something else entirely", FailureClass.INFRA),
    ],
)
def test_the_class_of_what_git_says(words: str, failure: FailureClass) -> None:
    assert classify(words) is failure


async def test_an_error_is_one_sentence_with_its_evidence(tmp_path: Path) -> None:
    broken = program(tmp_path / "git", "echo 'warning: \x1b[31mhm' >&2; echo 'fatal: it broke' >&2; exit 128")

    with pytest.raises(WorkspaceError) as raised:
        await broken.run("-c", "x=y", "fetch")

    assert str(raised.value).endswith(": it broke")
    assert "\x1b" not in raised.value.excerpt
    assert "hm" in raised.value.excerpt


async def test_no_git_at_all() -> None:
    with pytest.raises(WorkspaceError, match="can't be run") as raised:
        await Git(program="/nonexistent/git").run("status")
    assert raised.value.failure is FailureClass.INFRA


@pytest.mark.parametrize("network", [False, True])
async def test_a_git_that_hangs_is_ended(tmp_path: Path, network: bool) -> None:
    hangs = program(tmp_path / "git", f"echo $$ > {tmp_path}/pid; sleep 60")
    hangs = hangs.over_network() if network else hangs

    with pytest.raises(WorkspaceError, match="did not end within") as raised:
        await hangs.run("x", timeout=0.5)

    assert raised.value.failure is (FailureClass.NETWORK if network else FailureClass.INFRA)
    assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("stubborn", [False, True])
async def test_cancelled_it_is_gone_before_the_call_is_left(tmp_path: Path, stubborn: bool) -> None:
    trap = "trap '' TERM" if stubborn else f"trap 'touch {tmp_path}/tidied; exit 1' TERM"
    hangs = program(tmp_path / "git", f"{trap}; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done")
    task = asyncio.ensure_future(hangs.run("x"))
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not alive(int((tmp_path / "pid").read_text()))
    assert (tmp_path / "tidied").exists() is not stubborn


async def test_a_child_that_keeps_the_pipes_keeps_nobody_waiting(tmp_path: Path) -> None:
    started = time.monotonic()
    done = await program(tmp_path / "git", f"sleep 30 & echo $! > {tmp_path}/pid; echo done").run("x")
    took = time.monotonic() - started

    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert done.text == "done"
    assert took < 10


async def test_recovery_finds_the_git_of_a_run_by_its_marker(tmp_path: Path) -> None:
    hangs = program(tmp_path / "git", f"echo ${MARKER} > {tmp_path}/marker; exec sleep 60").marked(f"{STORE}:7:3")
    task = asyncio.ensure_future(hangs.run("x"))
    await until(lambda: (tmp_path / "marker").exists() and (tmp_path / "marker").read_text())

    ended = await end_marked(f"{STORE}:7:")

    with pytest.raises(WorkspaceError):
        await task
    assert ended


async def test_a_lock_that_a_killed_git_left_is_removed(tmp_path: Path) -> None:
    s = site(tmp_path)
    (s.repo / ".git/refs/heads/pilot").mkdir()
    lock = s.repo / ".git/refs/heads/pilot/GH-46.lock"
    lock.touch()

    outcome = await s.run("echo 1 > one", execution=execution())

    assert outcome.delivered
    assert not lock.exists()


async def test_so_is_the_lock_of_all_refs(tmp_path: Path) -> None:
    s = site(tmp_path)
    await s.run('echo 1 > one; printf \'```pilot-question\\n{"question": "?"}\\n```\\n\'', execution=execution())
    lock = s.repo / ".git/packed-refs.lock"
    lock.touch()

    outcome = await s.run("true", execution=again(execution(), s.notebook))

    assert outcome.delivered
    assert not lock.exists()
    assert git(s.repo, "for-each-ref", "refs/pilot") == ""


async def test_a_lock_that_somebody_holds_is_left(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    here = Git(environ=ENVIRON).at(repo / ".git", hold=tmp_path / "hold")
    lock = repo / ".git/refs/heads/x.lock"
    with lock.open("w"):
        with pytest.raises(WorkspaceError) as raised:
            await here.run("update-ref", "refs/heads/x", "HEAD")
        assert raised.value.failure is FailureClass.INFRA
        assert lock.exists()
    await here.run("update-ref", "refs/heads/x", "HEAD")
    assert not lock.exists()


async def test_a_lock_is_left_while_a_git_of_ours_works_there(tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    slow = program(tmp_path / "git", f"echo $$ > {tmp_path}/pid; exec sleep 60").at(
        repo / ".git", hold=tmp_path / "hold"
    )
    task = asyncio.ensure_future(slow.run("x"))
    await until(lambda: (tmp_path / "pid").exists())
    here = Git(environ=ENVIRON).at(repo / ".git", hold=tmp_path / "hold")
    lock = repo / ".git/refs/heads/x.lock"
    lock.touch()

    with pytest.raises(WorkspaceError):
        await here.run("update-ref", "refs/heads/x", "HEAD")

    assert lock.exists()
    task.cancel()
    await asyncio.wait([task])


_PREPARE = """
import asyncio, sys
from pathlib import Path
from tests.core.worksite import execution, site
s = site(Path(sys.argv[1]), path=Path(sys.argv[1]) / "api", workspace=sys.argv[2])
asyncio.run(s.workspaces.prepare(s.project, execution()))
print("prepared", flush=True)
asyncio.run(asyncio.sleep(60))
"""


def begun(s: Site, place: Path, files: int) -> bool:
    return (s.state / "workspaces/7-gh-46").exists() and (not files or len(list(place.glob("*/*"))) >= files)


@pytest.mark.parametrize("workspace", ["clone", "worktree", "in_place"])
async def test_a_start_that_was_killed_anywhere_is_made_again(tmp_path: Path, workspace: str) -> None:
    """kill -9 after so many files; the git that goes on alone is ended by its marker, as recovery does it."""
    repo = repository(tmp_path / "api", {f"d{n % 20}/f{n}": f"{n}\n" * 20 for n in range(600)})
    shell(repo, "git switch -qc other; git rm -rq d3; echo x > x; git add x; git commit -qm other; git switch -q main")
    s = site(tmp_path, path=repo, workspace=workspace, base="other")
    place = repo if workspace == "in_place" else s.state / "workspaces/7-gh-46/api"
    for files in (1, 300):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PREPARE, str(tmp_path), workspace, cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await until(partial(begun, s, place, files))
        child.kill()
        await child.wait()
        await end_marked(f"{STORE}:7:")

        outcome = await s.run("git status --porcelain", execution=execution(attempt=2, fence=2))

        assert outcome.text == "", f"killed after {files} files"
        assert git(repo, "status", "--porcelain") == ""
        assert git(repo, "symbolic-ref", "HEAD") == "refs/heads/main"
        assert git(repo, "for-each-ref", "refs/heads/pilot") == ""
        shell(tmp_path, "rm -rf state; rm -rf api/.git/worktrees")
