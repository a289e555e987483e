"""Comments in code that ask for something: found in git's objects, asked once, whatever they are called."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pilot.config.schema import ProjectSettings, TodoScanSettings
from pilot.domain.errors import NotFound
from pilot.domain.outside import SourcePaused
from pilot.sources.desk import Desk
from pilot.sources.todo_comments import is_vendored, read_comment
from pilot.sources.todo_scan import AT_ONCE, DUTY, TodoScan
from pilot.store import Store, open_store
from tests.adapters.desks import Clock, desk, executions, served
from tests.core.worksite import git, repository

MARKER = "TODO(pilot)"


@asynccontextmanager
async def scanning(
    tmp_path: Path, *projects: ProjectSettings, node: str = "node-1"
) -> AsyncIterator[tuple[TodoScan, Store, Desk]]:
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=Clock()) as store:
        made = desk(store, await served(store, *projects), node=node)
        assert await made.duties.hold(DUTY, node, 60_000)
        yield TodoScan(made, TodoScanSettings(), tmp_path), store, made


def project(tmp_path: Path, files: dict[str, str], name: str = "api", **more: object) -> ProjectSettings:
    return ProjectSettings.model_validate({"name": name, "path": repository(tmp_path / name, files), **more})


def change(own: ProjectSettings, **files: str) -> None:
    assert own.path is not None
    for path, text in files.items():
        (own.path / path.replace("__", ".")).write_text(text)
    git(own.path, "add", "-A")
    git(own.path, "commit", "-qm", "more")


def comment(text: str, path: str = "a.py") -> str | None:
    lines = text.split("\n")
    at = next(number for number, line in enumerate(lines) if MARKER in line)
    found = read_comment(path, lines, at, MARKER)
    return None if found is None else found.text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("# TODO(pilot): tidy up", "tidy up"),
        ("# TODO(pilot) tidy up", "tidy up"),
        ("x = 1  # TODO(pilot): why 1?", "why 1?"),
        ("  // TODO(pilot): first\n  // second\n  code()", "first\nsecond"),
        ("# TODO(pilot): first\n#\n# third\n\n# another comment", "first\n\nthird"),
        ("x = 1  # TODO(pilot): first\n# elsewhere", "first"),
        ("    # TODO(pilot): first\n# elsewhere", "first"),
        ("# TODO(pilot): one\n# TODO(pilot): two", "one"),
        ("/* TODO(pilot): one\n * two\n */ code // three", "one\ntwo"),
        ("/*\n * TODO(pilot): one\n * two\n */\nint x;", "one\ntwo"),
        ("/* TODO(pilot): one */ int x; /* two */", "one"),
        ("<!-- TODO(pilot): one\n     two -->\n<p>", "one\ntwo"),
        ('"""TODO(pilot): one"""', "one"),
        ("-- TODO(pilot): one\n-- two\nSELECT 1", "one\ntwo"),
        ("; TODO(pilot): one", "one"),
        ("% TODO(pilot): one", "one"),
        ("TODO(pilot): no comment", None),
        ("word TODO(pilot): no comment", None),
        ("marker = 'TODO(pilot)'", None),
        ("a * TODO(pilot)", None),
        ("# TODO(pilot):", None),
        ("# TODO(pilot): see <!-- hidden --> here\u200b", "see  here"),
        ("# TODO(pilot): " + "x" * 3000, None),
    ],
    ids=range(23),
)
def test_a_comments_words_are_read_to_its_end(code: str, text: str | None) -> None:
    assert comment(code) == text


def test_a_comment_is_the_same_wherever_it_moves_and_another_one_in_another_file() -> None:
    lines = ["", "#  TODO(pilot):  do it", "# now"]
    one, moved = read_comment("a", lines, 1, MARKER), read_comment("a", ["x", *lines], 2, MARKER)
    other = read_comment("b", lines, 1, MARKER)

    assert one
    assert moved
    assert other
    assert one.digest == moved.digest != other.digest
    assert (one.line, moved.line, one.title) == (2, 3, "do it")


@pytest.mark.parametrize("path", ["node_modules/a.js", "x/vendor/y.go", "a.min.js", "third_party/b.c", "uv.lock"])
def test_what_others_wrote_asks_nothing(path: str) -> None:
    assert is_vendored(path)
    assert not is_vendored("src/vendors.py")


async def test_a_comment_becomes_one_task(tmp_path: Path) -> None:
    own = project(tmp_path, {"src/a.py": "import os\n\n\ndef f():\n    # TODO(pilot): return 2\n    return 1\n"})
    async with scanning(tmp_path, own) as (scan, store, _):
        await scan.poll()
        await scan.poll()

        (found,) = await executions(store)
        assert found["task_id"].startswith("TODO-")
        assert len(found["task_id"]) == 13
        assert (found["title"], found["source"], found["status"]) == ("return 2", "todo_scan", "queued")
        assert "src/a.py:5:\n\nreturn 2\n" in found["body"]
        assert "     4 def f():" in found["body"]
        assert "     6     return 1" in found["body"]
        assert "remove the comment" in found["body"]
        origin = json.loads(found["origin"])
        assert origin | {"at": 0} == {
            "source": "todo_scan", "url": "", "ref": "src/a.py:5", "actor": "", "at": 0,
        }  # fmt: skip


async def test_moved_it_is_no_new_one_and_changed_it_is(tmp_path: Path) -> None:
    own = project(tmp_path, {"a.py": "# TODO(pilot): one\n"})
    async with scanning(tmp_path, own) as (scan, store, _):
        await scan.poll()
        change(own, a__py="\n\nx = 1\n# TODO(pilot): one\n")
        await scan.poll()
        assert len(await executions(store)) == 1

        change(own, a__py="# TODO(pilot): one, and better\n")
        await scan.poll()
        assert len(await executions(store)) == 2


async def test_it_is_asked_once_though_its_task_has_ended_and_another_node_looks(tmp_path: Path) -> None:
    own = project(tmp_path, {"a.py": "# TODO(pilot): one\n"})
    async with scanning(tmp_path, own) as (scan, store, made):
        await scan.poll()
        (found,) = await executions(store)
        await store.queue.cancel(found["id"], by="me", reason="no")
        await made.duties.release(DUTY, "node-1")
        await made.duties.hold(DUTY, "node-2", 60_000)
        await made.duties.remember(DUTY, "node-2", {})
        again = TodoScan(desk(store, made.projects(), node="node-2"), TodoScanSettings(), tmp_path)
        await again.poll()

        assert [row["status"] for row in await executions(store)] == ["cancelled"]


async def test_only_what_is_committed_on_the_base_branch_counts(tmp_path: Path) -> None:
    own = project(tmp_path, {"a.py": "x = 1\n"}, base="main")
    assert own.path is not None
    git(own.path, "checkout", "-qb", "feature")
    change(own, a__py="# TODO(pilot): not yet\n")
    (own.path / "a.py").write_text("# TODO(pilot): not even committed\n")
    async with scanning(tmp_path, own) as (scan, store, _):
        await scan.poll()
        assert await executions(store) == []
    assert git(own.path, "status", "--short") == " M a.py"


async def test_a_project_that_has_not_moved_is_not_searched(tmp_path: Path) -> None:
    own = project(tmp_path, {"a.py": "# TODO(pilot): one\n"})
    async with scanning(tmp_path, own) as (scan, _, made):
        await scan.poll()
        (head,) = (await made.duties.recall(DUTY)).values()
        assert own.path is not None
        assert head == f"{git(own.path, 'rev-parse', 'HEAD')} {MARKER}"
        objects = own.path / ".git" / "objects"
        objects.rename(tmp_path / "away")  # whoever searched now would fail
        objects.mkdir()
        await scan.poll()


async def test_many_at_once_come_in_turns_and_none_is_lost(tmp_path: Path) -> None:
    many = AT_ONCE * 2 + 3
    own = project(tmp_path, {"a.py": "".join(f"x = {n}  # TODO(pilot): number {n}\n" for n in range(many))})
    async with scanning(tmp_path, own) as (scan, store, _):
        for asked in (AT_ONCE, AT_ONCE * 2, many, many):
            await scan.poll()
            assert len(await executions(store)) == asked


async def test_a_node_that_ends_in_the_middle_leaves_nothing_out(tmp_path: Path) -> None:
    own = project(tmp_path, {"a.py": "# TODO(pilot): one\n\n# TODO(pilot): two\n"})
    async with scanning(tmp_path, own) as (scan, store, made):
        submit, calls = made.submit, []

        async def killed(*given: object) -> object:
            calls.append(given)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return await submit(*given)  # type: ignore[arg-type]

        object.__setattr__(made, "submit", killed)
        with pytest.raises(KeyboardInterrupt):
            await scan.poll()
        object.__setattr__(made, "submit", submit)
        await scan.poll()
        assert [row["title"] for row in await executions(store)] == ["one", "two"]


async def test_names_and_words_are_data(tmp_path: Path) -> None:
    names = ["-e", "a b;touch x", "n\nl.py", "--open-files-in-pager=touch x", "ümläut", ":(glob)x", "'$(touch x)'"]
    files = {name: f"# TODO(pilot): \x1b[31m{number} ${{HOME}} `touch x` {{}}\n" for number, name in enumerate(names)}
    own = project(tmp_path, files)
    assert own.path is not None
    git(own.path, "config", "grep.column", "true")
    git(own.path, "config", "color.grep", "always")
    async with scanning(tmp_path, own) as (scan, store, _):
        await scan.poll()
        found = await executions(store)
        assert len(found) == len(names)
        assert all("\x1b" not in json.loads(row["origin"])["ref"] + row["title"] for row in found)
        assert all("\n" not in json.loads(row["origin"])["ref"] for row in found)
    assert not list(tmp_path.rglob("x"))


async def test_binary_huge_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    own = project(
        tmp_path,
        {
            "bin": "\0\0# TODO(pilot): binary\n",
            "huge.py": "# TODO(pilot): huge\n" + "x\n" * 600_000,
            "node_modules/b.js": "// TODO(pilot): theirs\n",
            "latin.py": "# TODO(pilot): mine\n",
        },
    )
    async with scanning(tmp_path, own) as (scan, store, _):
        await scan.poll()
        assert [row["title"] for row in await executions(store)] == ["mine"]


async def test_one_project_that_cannot_be_read_is_said_and_keeps_nobody(tmp_path: Path) -> None:
    gone = project(tmp_path, {"a.py": "# TODO(pilot): gone\n"}, name="gone")
    own = project(tmp_path, {"a.py": "# TODO(pilot): one\n"})
    async with scanning(tmp_path, gone, own) as (scan, store, made):
        assert gone.path is not None
        gone.path.rename(tmp_path / "moved")
        with pytest.raises(SourcePaused, match="project gone") as caught:
            await scan.poll()
        assert caught.value.until == made.clock() + 3_600_000
        assert caught.value.remedy
        assert [row["title"] for row in await executions(store)] == ["one"]

        (tmp_path / "moved").rename(gone.path)
        await scan.poll()
        assert [row["title"] for row in await executions(store)] == ["one", "gone"]


async def test_a_failed_read_is_no_empty_one(tmp_path: Path) -> None:
    own = project(tmp_path, {"a.py": "# TODO(pilot): one\n"})
    async with scanning(tmp_path, own) as (scan, _, made):
        assert own.path is not None
        tree = git(own.path, "rev-parse", "HEAD:a.py")
        blob = own.path / ".git/objects" / tree[:2] / tree[2:]
        blob.chmod(0o600)
        blob.unlink()
        with pytest.raises(SourcePaused):
            await scan.poll()
        assert await made.duties.recall(DUTY) == {}


async def test_it_takes_no_webhooks_and_a_url_has_no_files_here(tmp_path: Path) -> None:
    own = ProjectSettings(name="far", url="https://example.org/x.git")
    async with scanning(tmp_path, own) as (scan, store, _):
        await scan.poll()
        assert await executions(store) == []
        with pytest.raises(NotFound):
            scan.verify({}, b"")
