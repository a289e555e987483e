"""Pointer payloads: what each is read as, and what is refused with which words."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pilot.domain.errors import UsageError
from pilot.domain.payload import MAX_PAYLOAD, Payload, Work, allowed, is_pointer, parse_payload

H = "da39a3ee5e6b4b0d3255bfef95601890afd80709"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@cmd:make ctx", {"work": Work.COMMAND, "argv": ("make", "ctx")}),
        ("@cmd: make   -j4 test", {"work": Work.COMMAND, "argv": ("make", "-j4", "test")}),
        ("@cmd:grep 'a|b; c' \"x > y\"", {"work": Work.COMMAND, "argv": ("grep", "a|b; c", "x > y")}),
        ("@cmd:awk '{print $1 `x`}'", {"work": Work.COMMAND, "argv": ("awk", "{print $1 `x`}")}),
        (r"@cmd:find . -name x \;", {"work": Work.COMMAND, "argv": ("find", ".", "-name", "x", ";")}),
        (r'@cmd:echo "\" ; \\"', {"work": Work.COMMAND, "argv": ("echo", '" ; \\')}),
        ("@cmd:grep ^a$ f", {"work": Work.COMMAND, "argv": ("grep", "^a$", "f")}),
        ("@cmd:make FOO=1 # x", {"work": Work.COMMAND, "argv": ("make", "FOO=1", "#", "x")}),
        ("@cmd:scripts/check.sh ''", {"work": Work.COMMAND, "argv": ("scripts/check.sh", "")}),
        ("@file:specs/feature.diff#apply", {"work": Work.APPLY, "path": "specs/feature.diff"}),
        ("@file:a b/c.sh#test", {"work": Work.TEST, "path": "a b/c.sh"}),
        ("@file:tasks/one.md", {"work": Work.PROMPT, "path": "tasks/one.md"}),
        (f"@file:x.diff#sha1={H}#apply", {"work": Work.APPLY, "path": "x.diff", "sha1": H}),
        (
            f"@file:x#dual#sha1={H.upper()}#test",
            {"work": Work.TEST, "path": "x", "sha1": H, "dual": True},
        ),
        ("@file: ..x/y..z #apply", {"work": Work.APPLY, "path": "..x/y..z"}),
        ("@doc:LLM_TASK write the docs", {"work": Work.PROMPT, "words": "write the docs"}),
        ("@doc: LLM_TASK: write\nthe docs", {"work": Work.PROMPT, "words": "write\nthe docs"}),
        ("@doc:design notes", {"work": Work.NOTHING}),
        ("@doc:LLM_TASKS of this week", {"work": Work.NOTHING}),
        ("@url:https://example.test/a?b#c", {"work": Work.NOTHING}),
        ("@git:deadbeef", {"work": Work.NOTHING}),
        ("@gh:acme/api#12", {"work": Work.NOTHING}),
    ],
)
def test_what_a_payload_is_read_as(text: str, expected: dict[str, object]) -> None:
    assert parse_payload(f" {text}\n") == Payload(text=text, **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with one of"),
        ("make test", "begins with one of"),
        ("@cmd make", "begins with one of"),
        ("@cdm:make", "did you mean @cmd:?"),
        ("@CMD:make", "did you mean @cmd:?"),
        ("@cmd:", "nothing behind it"),
        ("@url: ", "nothing behind it"),
        ("@cmd:''", "names no program"),
        ("@cmd:make test; rm -rf /", "`;`"),
        ("@cmd:make;rm", "`;`"),
        ("@cmd:make | tee x", "`|`"),
        ("@cmd:make && x", "`&`"),
        ("@cmd:make > /etc/passwd", "`>`"),
        ("@cmd:make 2>&1", "`>`"),
        ("@cmd:make < x", "`<`"),
        ("@cmd:(make)", "`(`"),
        ("@cmd:echo `id`", "a backtick"),
        ('@cmd:echo "`id`"', "a backtick"),
        ("@cmd:echo $(id)", "`$`"),
        ('@cmd:echo "$(id)"', "`$`"),
        ("@cmd:ls $HOME", "`$`"),
        (r'@cmd:ls "\$HOME"', "`$`"),
        ("@cmd:ls ${HOME}", "`$`"),
        ("@cmd:CC=gcc make", "sets nothing"),
        ("@cmd:echo 'open", "no closing quotation"),
        ('@cmd:echo "open', "no closing quotation"),
        ("@cmd:echo x\\", "no escaped character"),
        ("@cmd:../x", "inside the repository"),
        ("@cmd:a/../../x", "inside the repository"),
        ("@cmd:~/x", "inside the repository"),
        ("@cmd:-c x", "names a program"),
        ("@cmd:make\x00test", "U+0000"),
        ("@cmd:make\ntest", "U+000A"),
        ("@cmd:make\x1b[2J", "U+001B"),
        ("@cmd:make te\u202est", "U+202E"),
        ("@cmd:make te\u200bst", "U+200B"),
        ("@cmd:make \ud800", "U+D800"),
        ("@cmd:make\u00a0test", "U+00A0"),
        ("@cmd:echo " + "x" * MAX_PAYLOAD, "64 KiB"),
        ("@doc:LLM_TASK " + "é" * (MAX_PAYLOAD // 2), "64 KiB"),
        ("@file:#apply", "inside the repository"),
        ("@file:/etc/passwd", "inside the repository"),
        ("@file:../x", "inside the repository"),
        ("@file:a/../../x#apply", "inside the repository"),
        ("@file:a/..", "inside the repository"),
        ("@file:..", "inside the repository"),
        ("@file:a//b", "inside the repository"),
        ("@file:a/", "inside the repository"),
        ("@file:~/x", "inside the repository"),
        ("@file:..\\x", "inside the repository"),
        ("@file:C:\\x", "inside the repository"),
        ("@file:ok\x00x", "U+0000"),
        ("@file:a\nb", "U+000A"),
        ("@file:.git/config", "in .git"),
        ("@file:sub/.GIT/hooks/x#test", "in .git"),
        ("@file:" + "x" * 1001, "1000 bytes"),
        ("@file:x#aply", "did you mean #apply?"),
        ("@file:x#frobnicate", "there are #apply, #test, #sha1=HASH and #dual"),
        ("@file:x#", "does not know #"),
        ("@file:x#apply=1", "does not know #apply=1; did you mean #apply?"),
        ("@file:x#sha1", "did you mean #sha1=?"),
        ("@file:x#sha1=abc", "40 hex digits"),
        ("@file:x#apply#apply", "#apply twice"),
        (f"@file:x#sha1={H}#sha1={H}", "twice"),
        ("@file:x#apply#test", "not both"),
        ("@doc:LLM_TASK", "no words"),
        ("@doc:LLM_TASK  ", "no words"),
        ("@doc:llm_task do it", "did you mean @doc:LLM_TASK?"),
        ("@doc:LLM-TASK do it", "did you mean @doc:LLM_TASK?"),
        ("@doc:x\x07", "U+0007"),
    ],
)
def test_a_bad_payload_says_what_is_wrong_with_it(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_payload(text)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_hash_names_a_result_together_with_what_is_done() -> None:
    """A test that somebody applied as a patch has not run."""
    as_test = parse_payload(f"@file:x#test#sha1={H}").dedupe
    assert as_test is not None
    assert H in as_test
    assert as_test != parse_payload(f"@file:x#apply#sha1={H}").dedupe
    assert as_test == parse_payload(f"@file:moved/x#sha1={H.upper()}#test").dedupe
    assert parse_payload("@file:x#test").dedupe is None


@pytest.mark.parametrize("value", ["@cmd:x", " @gh:1", "@doc:LLM_TASK x"])
def test_a_pointer_is_told_from_what_a_source_keeps(value: str) -> None:
    assert is_pointer(value)
    for other in (None, {"@cmd:": 1}, [value], 3, "make", f"say {value}", value.upper()):
        assert not is_pointer(other)


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("make test", "make test"),
        ("make *", "make test"),
        ("make *", "make -j4 test"),
        ("make *", "make"),
        ("make test-*", "make test-unit"),
        ("make -j* test", "make -j4 test"),
        ("pytest tests/*", "pytest tests/unit/test_x.py"),
        ("* --version", "git --version"),
        ("scripts/* x", "scripts/a.sh x"),
        ("npm run 'a b'", "npm run 'a b'"),
        ("x *a*b*", "x 1a2b3"),
        ("*", "anything at all"),
    ],
)
def test_what_a_pattern_allows(pattern: str, command: str) -> None:
    assert allowed(parse_payload(f"@cmd:{command}").argv, ("nothing", pattern))


@pytest.mark.parametrize(
    ("patterns", "argv"),
    [
        ((), ("make",)),
        (("",), ("make",)),
        (("make 'open",), ("make", "open")),
        (("*",), ()),
        (("make",), ("make", "test")),  # never by the first word only
        (("make test",), ("make", "test", "install")),
        (("make test",), ("make",)),
        (("make test *",), ("make", "install")),
        (("git status",), ("git", "-c", "alias.status=!sh", "status")),
        (("git log *",), ("git", "-c", "core.pager=sh", "log")),
        (("find . -name *",), ("find", ".", "-exec", "sh", ";")),
        (("make *",), ("/tmp/make", "test")),  # another program
        (("make *",), ("./make", "test")),
        (("/usr/bin/make *",), ("make", "test")),
        (("make *",), ("env", "make", "test")),
        (("make *",), ("sh", "-c", "make test")),
        (("make *",), ("Make", "test")),
        (("make *",), ("make test",)),  # one word is not two
        (("make *",), ("makefoo",)),
        (("*make test",), ("/tmp/make", "test")),  # `*` of the program crosses no folder
        (("scripts/*",), ("scripts/../../x",)),
        (("scripts/*",), ("scripts/a/b",)),
        (("pytest tests/*",), ("pytest", "tests/../../evil.py")),
        (("pytest tests/*",), ("pytest", "tests/a", "-p", "evil")),
        (("a * c",), ("a", "b", "b", "c")),
        (("a b*b",), ("a", "b")),
        (("make [t]est",), ("make", "test")),  # only `*` means more than itself
        (("make t?st",), ("make", "test")),
        (("x *a*b*",), ("x", "1b2a3")),
    ],
)
def test_what_no_pattern_allows(patterns: tuple[str, ...], argv: tuple[str, ...]) -> None:
    assert not allowed(argv, patterns)


def test_a_long_word_takes_no_long_time() -> None:
    """Matching by backtracking would take years."""
    assert not allowed(("x", "a" * 60_000), ("x " + "*a" * 60 + "*b",))


@given(st.text(max_size=60) | st.text("@cmdfileo:#sha1=applytest'\"\\$`;|& \n\x00x", max_size=40).map("@cmd:".__add__))
@example("@cmd:\\")
@example("@file:#sha1=")
def test_any_text_is_a_payload_or_refused_in_words(text: str) -> None:
    try:
        payload = parse_payload(text)
    except UsageError as refused:
        error = str(refused)
    else:
        assert is_pointer(text)
        assert parse_payload(payload.text) == payload
        assert (payload.work is Work.COMMAND) == bool(payload.argv)
        return
    assert error.isprintable()


@given(st.lists(st.text("ab*/.", min_size=1, max_size=4), min_size=1, max_size=4))
def test_a_command_is_allowed_by_itself(words: list[str]) -> None:
    plain = tuple(word.replace("*", "x") for word in words)
    assert allowed(plain, (" ".join(plain),))
    assert not allowed((*plain, "more"), (" ".join(plain),))
    assert not allowed(("env", *plain), (" ".join(plain),))
