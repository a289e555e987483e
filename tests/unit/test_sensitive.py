"""Which paths a person has to see, by whatever name they go."""

from __future__ import annotations

import pytest

from pilot.domain.sensitive import Change, Finding, allows, findings, new_filters, question, why_sensitive

FILE, LINK, SUBMODULE, NONE = "100644", "120000", "160000", "000000"


@pytest.mark.parametrize(
    "path",
    [
        ".github/workflows/ci.yml",
        ".github/actions/x/action.yml",
        ".GitHub/Workflows/ci.yml",
        "./.github//workflows/ci.yml",
        "a/../.github/workflows/ci.yml",
        ".github/workflows",
        ".git\u200chub/workflows/x",
        ".github\u200b/work\u200dflows/x",
        "\uff0egithub/workflows/x",
        ".github./workflows /x",
        ".github\\workflows\\x",
        ".github/workflows::$INDEX_ALLOCATION/x",
        "packages/a/.github/workflows/ci.yml",
        ".gitlab-ci.yml",
        ".gitlab-ci.release.yaml",
        ".woodpecker.yml",
        ".woodpecker/test.yaml",
        ".circleci/config.yml",
        "Jenkinsfile",
        "ci/Jenkinsfile.release",
        "azure-pipelines.yml",
        ".husky/pre-commit",
        ".githooks/post-checkout",
        "lefthook.yml",
        "lefthook-local.yml",
        ".pre-commit-config.yaml",
        ".gitmodules",
        ".claude/settings.json",
        ".claude/settings.local.json",
        ".claude/hooks/a.sh",
        ".mcp.json",
        ".codex/config.toml",
        ".opencode/plugin/x.ts",
        "opencode.json",
        "opencode.jsonc",
        ".gemini/settings.json",
        ".cursor/mcp.json",
        ".vscode/tasks.json",
        ".devcontainer/devcontainer.json",
        ".devcontainer.json",
        "web/.envrc",
        "CODEOWNERS",
        "docs/CODEOWNERS",
        "pilot.yaml",
    ],
)  # fmt: skip
def test_sensitive_paths_are_known(path: str) -> None:
    assert why_sensitive(path)


@pytest.mark.parametrize(
    "path",
    [
        "src/workflows/a.py",
        ".github/ISSUE_TEMPLATE/bug.md",
        "github/workflows/a.yml",
        "CLAUDE.md",
        "AGENTS.md",
        ".claude/commands/x.md",
        "docs/codeowners.md",
        "my.mcp.json.txt",
        ".gitignore",
        ".gitattributes",
        "src/jenkins/file.py",
        "test_opencode.json.py",
    ],
)
def test_others_are_not(path: str) -> None:
    assert why_sensitive(path) is None


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        (".github", NONE, LINK),
        (".claude", NONE, SUBMODULE),
        (".vscode", FILE, LINK),
        ("vendor/lib", SUBMODULE, SUBMODULE),
        ("vendor/lib", NONE, SUBMODULE),
        ("vendor/lib", FILE, SUBMODULE),
    ],
)
def test_links_and_submodules_are_seen(path: str, before: str, after: str) -> None:
    assert findings([Change(path, before, after)], {})


def test_what_a_link_of_a_sensitive_name_leads_to_is_sensitive() -> None:
    links = {
        ".claude": "tools/claude",
        "tools": "really/tools",
        ".mcp.json": "conf/mcp.json",
        "loop": "loop",
        "a": "/etc",
    }
    changes = [Change(path, FILE, FILE) for path in ("really/tools/claude/settings.json", "conf/mcp.json", "conf/x")]

    assert [one.path for one in findings(changes, links)] == ["really/tools/claude/settings.json", "conf/mcp.json"]


def test_a_link_to_the_top_gives_every_file_a_second_name() -> None:
    changes = [Change("workflows/ci.yml", NONE, FILE), Change("src/a.py", NONE, FILE)]

    assert [one.path for one in findings(changes, {".github": "."})] == ["workflows/ci.yml"]


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ("", "*.txt filter=lfs\n", True),
        ("*.txt filter=lfs\n", "*.txt filter=lfs\n*.md text\n", False),
        ("", "*.txt text eol=lf\n", False),
        ("", "[attr]x filter=evil\n", True),
        ("", "*.c merge=evil", True),
        ("*.a filter=x\n", "", False),
    ],
)
def test_filters_are_seen_when_they_are_new(before: str, after: str, new: bool) -> None:
    assert new_filters(before, after) is new


def test_a_question_is_one_whatever_the_names_are() -> None:
    asked = question([Finding("a\n```\x1b[31m" + "x" * 500, "runs in CI")] * 30, [Finding("b", "a GitHub token")])

    assert asked.options == ("publish",)
    assert "\x1b" not in asked.text
    assert "and 10 more" in asked.text
    assert max(map(len, asked.text.split("\n"))) < 200


@pytest.mark.parametrize("answer", ["publish", " Publish.", "`publish`", "PUBLISH!"])
def test_a_person_may_say_it_in_their_way(answer: str) -> None:
    assert allows(answer)


@pytest.mark.parametrize("answer", [None, "", "don't publish", "publish it without the workflow", "yes", "unpublish"])
def test_anything_else_is_no_leave(answer: str | None) -> None:
    assert not allows(answer)
