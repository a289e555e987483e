"""A pull request's title and text: what is true of the change, and nothing that foreign words could do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pilot.domain.delivery import Report
from pilot.domain.outcome import GateResult
from pilot.publish.change import Change, Commit, File
from pilot.publish.describe import body, closing, code, renewed, title
from tests.unit.rows import execution

TREE = "ab" * 20
GATE = GateResult("test", "test", "make test", True, 0, 61_000, TREE)


def same(text: str) -> str:
    return text


def change(**more: Any) -> Change:
    given: dict[str, Any] = {
        "base": "1" * 40,
        "head": "2" * 40,
        "tree": TREE,
        "files": (File("src/a.py", 3, 1),),
        "commits": (Commit("2" * 40, "Fix it"),),
    }
    return Change(**given | more)


def report(**more: Any) -> Report:
    of_report = {"origin", "summary", "gates", "tree"}
    own: dict[str, Any] = {"id": 7, "backend": "claude-code", "attempt": 2}
    own |= {key: value for key, value in more.items() if key not in of_report}
    rest = {key: value for key, value in more.items() if key in of_report}
    return Report(execution=execution(**own), event=1, type="execution.completed", **{"origin": None, **rest})


def text(what: Change | None = None, **more: Any) -> str:
    return body(report(**{"gates": (GATE,), **more}), what or change(), "acme/api", same)


def test_it_says_what_git_and_the_gates_say() -> None:
    said = text(
        change(
            files=(File("src/a.py", 3, 1), File("logo.png", None, None), File("b.py", 0, 0, "a.py")),
            commits=(Commit("2" * 40, "Second"), Commit("3" * 40, "First")),
        ),
        summary="I fixed it.",
        origin={"source": "github", "ref": "acme/api#46"},
        input_tokens=1200,
        output_tokens=34,
        cost_usd=0.125,
        model="opus",
        started_at=0,
        finished_at=125_000,
    )

    assert "Closes #46\n" in said
    assert "> I fixed it\\." in said
    assert "3 files, +3 -1" in said
    assert "| <code>src&#47;a&#46;py</code> | 3 | 1 |" in said
    assert "| <code>logo&#46;png</code> | binary | |" in said
    assert "| <code>a&#46;py</code> → <code>b&#46;py</code> | 0 | 0 |" in said
    assert "- 2222222222 <code>Second</code>\n- 3333333333 <code>First</code>" in said
    assert "| ✅ <code>test</code> | <code>make test</code> | 0 | 1 min 1 s |" in said
    assert f"on exactly this tree: `{TREE}`" in said
    assert "| Execution | Agent | Attempts | Tokens | Cost | Time |" in said
    assert ", model <code>opus</code> | 2 | 1,200 in, 34 out | 0.12 USD | 2 min 5 s |" in said
    assert said.endswith("<!-- pilot:execution=7 -->")


def test_unknown_is_said_to_be_unknown() -> None:
    assert "| unknown in, unknown out | unknown |" in text()


def test_a_gate_that_ran_on_another_tree_is_no_proof() -> None:
    said = text(gates=(GateResult("test", "test", "make test", True, 0, 10, "cd" * 20),))

    assert "exactly this tree" not in said
    assert f"⚠️ Run by pilot on tree `{'cd' * 20}`; this branch's tree is `{TREE}`" in said


def test_no_gates_are_said_to_be_none() -> None:
    assert "nothing was checked" in text(gates=())


def test_a_red_gate_that_need_not_be_green_is_marked() -> None:
    lint = GateResult("lint", "lint", "make lint", False, 2, 10, TREE)
    slow = GateResult("slow", "test", "sleep 9", False, None, 10, TREE, timed_out=True)

    said = text(gates=(GATE, lint, slow))

    assert "| ⚠️ <code>lint</code> (not required) | <code>make lint</code> | 2 |" in said
    assert "| timed out |" in said


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ({"source": "github", "ref": "acme/api#46"}, "Closes #46"),
        ({"source": "github", "ref": "Acme/API#46"}, "Closes #46"),
        ({"source": "github", "ref": "acme/tickets#4"}, "Closes acme/tickets#4"),
        ({"source": "github", "ref": "acme/api#46, closes #1"}, ""),
        ({"source": "linear", "ref": "ENG-12"}, "Fixes ENG-12"),
        ({"source": "linear", "ref": "ENG-12 and ENG-13"}, ""),
        ({"source": "failing_ci", "ref": "acme/api#46"}, ""),
        ({"source": "todo_scan", "ref": "a.py:3"}, ""),
        ({"source": "telegram", "ref": "telegram:12"}, ""),
        (None, ""),
    ],
    ids=["github", "case", "elsewhere", "injected", "linear", "two", "ci", "todo", "telegram", "none"],
)
def test_only_the_ticket_that_asked_is_closed(origin: dict[str, Any] | None, line: str) -> None:
    assert closing(origin, "acme/api") == line


EVIL = "closes #12 @mona ![x](http://evil/a.png) <img src=x> <!-- pilot:execution=1 --> fixes https://github.com/a/b/issues/3"


def test_foreign_words_do_nothing() -> None:
    said = text(
        change(
            files=(File("a|b`@mona`\n# x <!-- y -->.py", 1, 1),),
            commits=(Commit("2" * 40, EVIL), Commit("3" * 40, "| x | closes #9")),
        ),
        summary=f"{EVIL}\n\n# Head\n- [ ] todo\n```\n/close\n",
        gates=(GateResult("t|t", "test", "echo 'a|b' @mona closes #5 `x`", True, 0, 1, TREE),),
        model="<b>|x",
    )

    assert said.count("<!--") == 2, "only our own two markers"
    assert re.search(r"(?<!&)#\d", said) is None
    for live in ("@mona", "://", "![", "<img", "<b>", "\n# ", "\n/close", "- [ ]", "```"):
        assert live not in said, live
    tables = [line for line in said.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables if "t&#124;t" in line} == {5}
    assert {line.count("|") for line in tables if "mona" in line and "echo" not in line} == {4}


def test_a_title_is_one_line_and_closes_nothing() -> None:
    assert title(execution(title="Fix\u202e  it <!-- x -->now"), same) == "Fix it now"
    said = title(execution(title="Closes #12, GH-3 and https://github.com/a/b/issues/3\x1b[2J"), same)
    assert "#12" not in said
    assert "://" not in said
    assert "GH-3" not in said
    assert title(execution(id=7, title="<!-- x -->"), same) == "Execution 7"
    assert len(title(execution(title="x" * 999), same)) == 200


def test_secrets_are_taken_out_of_everything() -> None:
    def redact(words: str) -> str:
        return words.replace("hunter2222", "[redacted]")

    said = body(
        report(
            summary="hunter2222",
            model="hunter2222",
            gates=(GateResult("test", "test", "curl -u hunter2222", True, 0, 1, TREE),),
        ),
        change(
            files=(File("hunter2222.py", 1, 1, "old-hunter2222"),),
            commits=(Commit("2" * 40, "hunter2222"), Commit("3" * 40, "x")),
        ),
        "acme/api",
        redact,
    )

    assert "hunter2222" not in said
    assert "hunter2222" not in title(execution(title="hunter2222"), redact)


def test_much_of_everything_fits() -> None:
    said = text(
        change(
            files=tuple(File(f"{'<' * 190}{n}", 1, 1, f"{'>' * 190}{n}") for n in range(5000)),
            commits=tuple(Commit(f"{n:040x}", "`" * 500) for n in range(1000)),
        ),
        summary="*" * 100_000,
        gates=tuple(GateResult("#" * 300, "test", "|" * 300, True, 0, 1, TREE) for _ in range(200)),
    )

    assert len(said) <= 65_536
    assert "more files" in said or "files more" in said
    assert said.endswith("<!-- pilot:execution=7 -->")


def test_code_is_never_ended_by_what_is_in_it() -> None:
    assert code("</code>|`x`") == "<code>&#60;&#47;code&#62;&#124;&#96;x&#96;</code>"


def test_what_people_wrote_around_ours_stays() -> None:
    first, second = text(), text(summary="More.", id=8)

    assert renewed(f"Look here:\n{first}\n\nSigned-off", second) == f"Look here:\n{second}\n\nSigned-off"
    assert renewed("All mine now.", second) is None
    assert renewed(text(summary=r"\1 \g<0>"), second) == second
