"""What is printed, how wide, in which colour; and words from the command line as values."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.cli import arguments
from pilot.cli.ui import ReaderGone, Ui, ago, fit, lasted, width
from pilot.domain.errors import UsageError

NOW = 1_800_000_000_000
EVIL = "\x1b]0;title\x07a\x1b[31mb\x9b2Jc\u202ed\re"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ui(*, terminal: bool = True, **environ: str) -> tuple[Ui, io.StringIO, io.StringIO]:
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    return Ui(out, err, environ), out, err


def test_everything_printed_is_harmless() -> None:
    voice, out, err = ui(NO_COLOR="1", COLUMNS="60")

    voice.line(EVIL)
    voice.text(EVIL)
    voice.fields([("name", EVIL)])
    voice.table(["A", "B"], [[EVIL, EVIL]])
    voice.marked("!", "red", EVIL)
    voice.document({"x": EVIL})
    voice.note(EVIL)
    voice.warn(EVIL)
    voice.failure("Kind", f"{EVIL}\n{EVIL}", 1, EVIL)
    voice.failure_line(EVIL)

    for text in (out.getvalue(), err.getvalue()):
        assert text
        assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(text)


def test_talk_that_nobody_hears_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    voice = Ui(Gone(), Gone(), {})

    voice.note("progress")
    voice.failure("Kind", "oh", 1)
    with pytest.raises(ReaderGone):
        voice.line("data")


def test_raw_bytes_are_text_on_a_terminal() -> None:
    voice, out, _ = ui()
    voice.raw(b"\x1b[2Ja\xff\n")

    assert out.getvalue() == "a\ufffd\n"


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_only_where_it_is_wanted(environ: dict[str, str], coloured: bool) -> None:
    out, err = Terminal(), Terminal()
    voice = Ui(out, err, environ)
    voice.table(["STATUS"], [["failed"]])
    voice.failure("Kind", "oh", 1)

    assert ("\x1b[31m" in out.getvalue()) is coloured
    assert ("\x1b[31m" in err.getvalue()) is coloured


def test_no_colour_in_a_pipe() -> None:
    voice, out, _ = ui(terminal=False)
    voice.table(["STATUS", "TITLE"], [["failed", "a\tb\nc"]])
    voice.line("x", "bold")

    assert out.getvalue() == "failed\ta b c\nx\n"


def test_a_table_fits_its_terminal() -> None:
    voice, out, _ = ui(NO_COLOR="1", COLUMNS="50")
    voice.table(["ID", "TITLE"], [["1", "日本語の題名です " * 10], ["12345", "short"]])

    lines = out.getvalue().splitlines()
    assert lines[0] == "ID     TITLE"
    assert lines[2] == "12345  short"
    assert max(map(width, lines)) <= 50
    assert lines[1].endswith("…")


def test_a_table_gives_way_in_one_column() -> None:
    voice, out, _ = ui(NO_COLOR="1", COLUMNS="30")
    voice.table(["WHY", "ID"], [["x" * 100, "7"]], gives=0)

    assert out.getvalue().splitlines()[1] == "x" * 25 + "…  7"


@given(st.text(max_size=40), st.integers(1, 30))
def test_a_fitted_text_has_the_width_asked_for(text: str, wide: int) -> None:
    if all(width(character) or character.isascii() for character in text):
        assert width(fit(text, wide)) == wide


@pytest.mark.parametrize(
    ("then", "text"),
    [
        (None, "-"),
        (NOW, "0s"),
        (NOW - 59_999, "59s"),
        (NOW - 60_000, "1m"),
        (NOW - 7_200_000, "2h"),
        (NOW - 3 * 86_400_000, "3d"),
        (NOW + 300_000, "in 5m"),
    ],
)
def test_ago(then: int | None, text: str) -> None:
    assert ago(then, NOW) == text


@pytest.mark.parametrize(("ms", "text"), [(0, "0.0s"), (4_249, "4.2s"), (200_000, "3m 20s"), (3_720_000, "1h 02m")])
def test_lasted(ms: int, text: str) -> None:
    assert lasted(ms) == text


@pytest.mark.parametrize(
    ("text", "ms"), [("90", 90_000), ("30s", 30_000), ("10m", 600_000), ("1h30m", 5_400_000), ("500ms", 500)]
)
def test_durations(text: str, ms: int) -> None:
    assert arguments.milliseconds(text, "--timeout") == ms


@pytest.mark.parametrize("text", ["", "0", "0s", "x", "-5", "1e3", "400d", "9" * 400, "²", "1 m"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(UsageError, match="--timeout"):
        arguments.milliseconds(text, "--timeout")


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-12-31T18:00:00Z", datetime(2026, 12, 31, 18, tzinfo=UTC)),
        ("2026-12-31T18:00:00+02:00", datetime(2026, 12, 31, 16, tzinfo=UTC)),
        ("2026-12-31", datetime(2026, 12, 31).astimezone()),
    ],
)
def test_moments(text: str, at: datetime) -> None:
    assert arguments.moment(text, NOW) == int(at.timestamp() * 1000)


def test_a_moment_from_now() -> None:
    assert arguments.moment("2h", NOW) == arguments.moment("+2h", NOW) == NOW + 7_200_000


@pytest.mark.parametrize("text", ["", "tomorrow", "25:00", "0001-01-01T00:00:00+23:59", "2026-13-01"])
def test_bad_moments(text: str) -> None:
    with pytest.raises(UsageError, match="--at"):
        arguments.moment(text, NOW)


def test_a_prompt_comes_from_one_place(tmp_path: Path) -> None:
    file = tmp_path / "task.md"
    file.write_text("do it\n")

    assert arguments.prompt_from("do it", None) == "do it"
    assert arguments.prompt_from(None, file) == "do it\n"


@pytest.mark.parametrize(
    ("prompt", "content", "words"),
    [
        (None, None, "what is there to do"),
        ("x", b"y", "not both"),
        (" \n", None, "nothing in it"),
        (None, b"\xff\xfe", "not UTF-8"),
        ("\udcff", None, "not UTF-8"),
        (None, b"x" * ((1 << 20) + 1), "more than 1 MiB"),
    ],
)
def test_bad_prompts(tmp_path: Path, prompt: str | None, content: bytes | None, words: str) -> None:
    file = None
    if content is not None:
        file = tmp_path / "task.md"
        file.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        arguments.prompt_from(prompt, file)


def test_a_prompts_file_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        arguments.prompt_from(None, tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "nul", "[" * 100_000])
def test_bad_json(text: str) -> None:
    with pytest.raises(UsageError, match="--payload: not JSON"):
        arguments.json_value(text, "--payload")


def test_an_unknown_kind() -> None:
    with pytest.raises(UsageError, match="there are build, test, deploy"):
        arguments.kind_of("feature")
