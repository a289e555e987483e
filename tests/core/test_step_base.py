"""A plan's step starts from what the steps before it have made, brought together; real git in all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pilot.domain.execution import Status
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.domain.policy import Settlement, settle
from pilot.domain.ports import Finish
from pilot.domain.work import Made
from tests.core.pointed import runner, step
from tests.core.stage import Stage
from tests.core.worksite import Scripted, Site, again, execution, files_of, git, looks, repository, site

LINES = "".join(f"{n}\n" for n in range(20))
MODES = pytest.mark.parametrize("mode", ["clone", "worktree"])


def place(tmp_path: Path, **settings: object) -> Site:
    return site(tmp_path, path=repository(tmp_path / "api", {"README": "hello\n", "lines": LINES}), **settings)


async def work(s: Site, id: int, name: str, made: Sequence[Made] = (), script: str = "") -> tuple[Outcome, Made]:
    """One step, done by an agent that makes a file of its name; and what those after it know of it."""
    backend = Scripted([script or f"echo {name} > {name}"])
    s.backend = backend
    one = execution(id=id, task_id=f"p::{name}", plan="p")
    outcome = await runner(s, backend, made)(one)
    return outcome, Made(id=id, task_id=one.task_id, branch=outcome.branch, head_sha=outcome.head_sha)


def there(s: Site, commit: str | None) -> set[str]:
    assert commit is not None
    return set(files_of(s.repo, commit)) - {"README", "lines"}


def parents(s: Site, commit: str | None) -> list[str]:
    return git(s.repo, "log", "-1", "--format=%P", str(commit)).split()


@MODES
async def test_a_step_after_one_starts_at_its_commit(tmp_path: Path, mode: str) -> None:
    s = place(tmp_path, workspace=mode)
    first, a = await work(s, 1, "a")

    second, _ = await work(s, 2, "b", [a], "cat a; echo b > b")

    assert second.text == "a\n"
    assert second.base_sha == first.head_sha
    assert s.notebook.facts["base_sha"] == first.head_sha
    assert parents(s, second.head_sha) == [first.head_sha]
    assert there(s, "pilot/p-b") == {"a", "b"}


@MODES
async def test_a_step_after_several_starts_from_all_of_them(tmp_path: Path, mode: str) -> None:
    s = place(tmp_path, workspace=mode)
    made = [
        (await work(s, n, name, script=f"echo {name} > {name}; sed -i {n * 4}s/$/{name}/ lines"))[1]
        for n, name in enumerate("abcd", 1)
    ]
    before = looks(s.repo)

    last, _ = await work(s, 9, "e", made, "git status --short; git log -1 --format=%s; echo e > e")

    assert last.text == "Bring together p::a and p::d\n", "its own checkout is clean"
    assert there(s, "pilot/p-e") == set("abcde")
    assert [line for line in files_of(s.repo, "pilot/p-e")["lines"].split("\n") if not line.isdigit()] == [
        "3a", "7b", "11c", "15d"
    ]  # fmt: skip
    assert parents(s, last.head_sha) == [last.base_sha]
    assert {one.head_sha for one in made} <= set(git(s.repo, "rev-list", "pilot/p-e").split())
    assert looks(s.repo) == before
    assert git(s.repo, "fsck", "--strict", "--no-dangling") == ""


async def test_nothing_is_merged_that_is_in_there_already(tmp_path: Path) -> None:
    """A diamond of which one side did nothing, and a chain that is named twice."""
    s = place(tmp_path)
    _, a = await work(s, 1, "a")
    _, b = await work(s, 2, "b", [a])
    nothing, c = await work(s, 3, "c", [a], "true")
    assert (nothing.ending, nothing.head_sha) == (Ending.NO_CHANGE, None)

    last, _ = await work(s, 4, "d", [a, b, c])

    assert last.base_sha == b.head_sha


async def test_where_nobody_changed_anything_it_is_the_project_s_base(tmp_path: Path) -> None:
    s = place(tmp_path)
    _, a = await work(s, 1, "a", script="true")
    outcome, _ = await work(s, 2, "b", [a])
    assert outcome.base_sha == git(s.repo, "rev-parse", "main")


async def test_what_the_base_has_by_now_counts_as_the_base(tmp_path: Path) -> None:
    s = place(tmp_path)
    _, a = await work(s, 1, "a")
    git(s.repo, "merge", "-q", "--no-ff", "-m", "merged", "pilot/p-a")

    outcome, _ = await work(s, 2, "b", [a])

    assert outcome.base_sha == git(s.repo, "rev-parse", "main")


@MODES
async def test_a_green_check_of_a_merge_has_it_as_its_branch(tmp_path: Path, mode: str) -> None:
    """Else what a plan has made would be on no branch as a whole when its last step is a test."""
    s = place(tmp_path, workspace=mode)
    made = [(await work(s, n, name))[1] for n, name in enumerate("ab", 1)]

    checked, t = await work(s, 3, "t", made, "test -e a -a -e b")

    assert (checked.ending, checked.delivered, checked.branch) == (Ending.NO_CHANGE, True, "pilot/p-t")
    assert checked.head_sha == checked.base_sha == git(s.repo, "rev-parse", "pilot/p-t")
    assert there(s, checked.head_sha) == {"a", "b"}
    assert not list((s.state / "workspaces").glob("3-*"))
    outcome, _ = await work(s, 4, "d", [*made, t])
    assert (outcome.base_sha, there(s, outcome.head_sha)) == (checked.head_sha, {"a", "b", "d"})


async def test_a_green_check_of_one_step_or_of_the_base_needs_no_branch(tmp_path: Path) -> None:
    s = place(tmp_path)
    _, a = await work(s, 1, "a")
    after_one, _ = await work(s, 2, "t", [a], "test -e a")
    git(s.repo, "merge", "-q", "--no-ff", "-m", "merged", "pilot/p-a")
    after_base, _ = await work(s, 3, "u", [a], "test -e a")
    for outcome in (after_one, after_base):
        assert (outcome.ending, outcome.delivered, outcome.branch, outcome.head_sha) == (
            Ending.NO_CHANGE, False, None, None
        )  # fmt: skip
    assert git(s.repo, "branch", "--list", "pilot/p-t", "pilot/p-u") == ""


async def test_steps_that_contradict_each_other_are_named_with_the_files(tmp_path: Path) -> None:
    s = place(tmp_path)
    _, a = await work(s, 1, "a", script="sed -i 5s/$/a/ lines")
    _, b = await work(s, 2, "b")
    _, c = await work(s, 3, "c", script="sed -i 5s/$/c/ lines; echo $(printf '\\033[31m') > x")

    outcome, _ = await work(s, 4, "d", [b, a, c])

    assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.CONFLICT)
    assert "steps p::a and p::c change the same lines: lines." in outcome.detail
    assert settle(step("@cmd:true"), outcome, now=1, jitter=0.0).to is Status.NEEDS_HUMAN
    assert s.notebook.phases[-1] == "workspace"
    assert not list((s.state / "workspaces").glob("4-*"))


async def test_it_goes_on_when_a_person_has_resolved_it(tmp_path: Path) -> None:
    s = place(tmp_path)
    _, a = await work(s, 1, "a", script="sed -i 5s/$/a/ lines")
    _, b = await work(s, 2, "b", script="sed -i 5s/$/b/ lines")
    failed, _ = await work(s, 4, "d", [a, b])
    assert failed.failure is FailureClass.CONFLICT
    git(s.repo, "switch", "-q", "pilot/p-b")
    git(s.repo, "merge", "-q", "-X", "ours", "-m", "resolved", "pilot/p-a")
    git(s.repo, "switch", "-q", "main")

    outcome, _ = await work(s, 4, "d", [a, replace(b, head_sha=git(s.repo, "rev-parse", "pilot/p-b"))])

    assert outcome.ending is Ending.DONE


@pytest.mark.parametrize("sha", ["1" * 40, "--help", "MAIN", "MAIN~0\nMAIN"])
async def test_a_commit_that_is_not_here_is_asked_for(tmp_path: Path, sha: str) -> None:
    """Made on another machine; or said by a worker that is no good."""
    s = place(tmp_path)
    sha = sha.replace("MAIN", git(s.repo, "rev-parse", "main")[:12])
    made = [Made(id=1, task_id="p::a", branch="pilot/p-a", head_sha=sha)]

    outcome, _ = await work(s, 2, "b", made)

    assert outcome.failure is FailureClass.CONFLICT
    assert "p::a" in outcome.detail
    assert "branch pilot/p-a" in outcome.detail
    assert "git fetch" in outcome.detail


async def test_a_tree_is_no_commit(tmp_path: Path) -> None:
    s = place(tmp_path)
    made = [Made(id=1, task_id="p::a", branch=None, head_sha=git(s.repo, "rev-parse", "main^{tree}"))]
    assert (await work(s, 2, "b", made))[0].failure is FailureClass.CONFLICT


async def test_the_next_attempt_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    """Although there would be another base by now."""
    s = place(tmp_path, gate_repairs=0)
    made = [(await work(s, n, name))[1] for n, name in enumerate("ab", 1)]
    s.set(gates=[{"name": "g", "run": "test -e good"}])
    one = execution(id=4, task_id="p::d", plan="p")
    s.backend = Scripted(["echo bad > bad", "cat bad; touch good"])
    own = runner(s, s.backend, made)
    red = await own(one)
    assert red.failure is FailureClass.TEST

    green = await own(again(one, s.notebook, branch=red.branch, head_sha=red.head_sha))

    assert (green.ending, green.text) == (Ending.DONE, "bad\n")
    assert green.base_sha == red.base_sha
    assert there(s, green.head_sha) == {"a", "b", "bad", "good"}


@MODES
async def test_a_workspace_that_is_gone_is_made_anew_from_the_branch(tmp_path: Path, mode: str) -> None:
    s = place(tmp_path, workspace=mode, gate_repairs=0, keep_workspace="never")
    made = [(await work(s, n, name))[1] for n, name in enumerate("ab", 1)]
    s.set(gates=[{"name": "g", "run": "test -e good"}])
    one = execution(id=4, task_id="p::d", plan="p")
    s.backend = Scripted(["echo bad > bad", "cat bad; touch good"])
    own = runner(s, s.backend, made)
    red = await own(one)
    assert not (s.state / "workspaces/4-p-d").exists()

    green = await own(again(one, s.notebook, branch=red.branch, head_sha=red.head_sha))

    assert (green.ending, green.text) == (Ending.DONE, "bad\n")
    assert there(s, green.head_sha) == {"a", "b", "bad", "good"}


async def test_the_clone_s_own_base_branch_is_where_it_was(tmp_path: Path) -> None:
    s = place(tmp_path)
    _, a = await work(s, 1, "a")
    outcome, _ = await work(s, 2, "b", [a], "git rev-parse main origin/main; git rev-parse HEAD")
    main = git(s.repo, "rev-parse", "main")
    assert outcome.text.split() == [main, main, a.head_sha]


async def test_a_mirror_s_steps_start_from_each_other_too(tmp_path: Path) -> None:
    origin = repository(tmp_path / "origin", {"README": "hello\n", "lines": LINES})
    s = site(tmp_path, url=str(origin))
    made = [(await work(s, n, name))[1] for n, name in enumerate("ab", 1)]

    outcome, _ = await work(s, 3, "c", made, "ls; echo c > c")

    assert outcome.text.split() == ["README", "a", "b", "lines"]
    (mirror,) = (s.state / "mirrors").glob("*.git")
    assert set("abc") <= set(files_of(mirror, "pilot/p-c"))


async def test_a_checkout_can_t_start_from_other_branches(tmp_path: Path) -> None:
    s = place(tmp_path)
    _, a = await work(s, 1, "a")
    s.set(workspace="in_place")
    before = looks(s.repo)

    outcome, _ = await work(s, 2, "b", [a])

    assert outcome.failure is FailureClass.CONFLICT
    assert "in_place" in outcome.detail
    assert looks(s.repo) == before
    assert (await work(s, 3, "c", [replace(a, head_sha=None)]))[0].ending is Ending.DONE


async def test_nobody_asks_for_what_is_no_step(tmp_path: Path) -> None:
    s = place(tmp_path)
    _, a = await work(s, 1, "a")
    s.backend = Scripted(["echo x > x"])
    outcome = await runner(s, s.backend, [a])(execution(id=2, task_id="GH-2"))
    assert outcome.base_sha == git(s.repo, "rev-parse", "main")


async def test_an_old_git_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = place(tmp_path)
    made = [(await work(s, n, name))[1] for n, name in enumerate("ab", 1)]
    old = tmp_path / "bin/git"
    old.parent.mkdir()
    # as 2.37 answers a merge-tree that it does not know
    old.write_text('#!/bin/sh\nfor word; do [ "$word" = merge-tree ] && exit 129; done\nexec /usr/bin/git "$@"\n')
    old.chmod(0o755)
    own = runner(s, Scripted(["true"]), made)
    own._workspaces.git = replace(own._workspaces.git, program=str(old))

    outcome = await own(execution(id=3, task_id="p::c", plan="p"))

    assert outcome.failure is FailureClass.CONFLICT
    assert "git 2.38" in outcome.detail
    assert (await work(s, 4, "d", made[:1]))[0].ending is Ending.DONE


async def test_the_store_looks_behind_what_made_nothing(stage: Stage) -> None:
    """a is a change, b a green test of it, c a note behind b; d waits for all but a, which has z in it."""
    api = await stage.project("api")
    z = await stage.task(api, "p::z", plan="p")
    a = await stage.task(api, "p::a", plan="p", after=(z,))
    e = await stage.task(api, "p::e", plan="p")
    b = await stage.task(api, "p::b", plan="p", after=(a,))
    c = await stage.task(api, "p::c", plan="p", after=(b,), instant=True)
    d = await stage.task(api, "p::d", plan="p", after=(b, c, e))
    for id, head in ((z, "f" * 40), (a, "a" * 40), (e, "e" * 40), (b, None)):
        outcome = Outcome(ending=Ending.DONE if head else Ending.NO_CHANGE, head_sha=head)
        (one,) = await stage.store.queue.claim("n", lease=1000, projects=[api.id])
        assert one.id == id
        settlement = Settlement(to=Status.COMPLETED)
        await stage.store.queue.finish(Finish(execution=one, outcome=outcome, settlement=settlement))

    made = await stage.store.history.made(await stage.row(d))

    assert [(one.task_id, one.head_sha) for one in made] == [
        ("p::a", "a" * 40), ("p::e", "e" * 40), ("p::b", None), ("p::c", None)
    ]  # fmt: skip
