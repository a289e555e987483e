"""Secrets are taken out of text, however they are written and wherever a piece ends."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.domain.redact import Redactor

SECRET = "hunter2/hunter+2&more"
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEAabcdefgh/+12\n" * 6 + "-----END RSA PRIVATE KEY-----"
SHAPES = {
    "classic": "ghp_" + "a1B2" * 9,
    "fine_grained": "github_pat_11ABCDEFG0" + "x" * 30,
    "app": "ghs_" + "Z9" * 18,
    "linear": "lin_api_" + "k3" * 20,
    "linear_oauth": "lin_oauth_" + "0f" * 20,
    "telegram": "123456789:AA" + "Ab_-1" * 6 + "xyz",
    "openai": "sk-proj-" + "abc123" * 6,
    "slack": "xoxb-123456789012-abcdefghij",
    "aws": "AKIA" + "ABCD1234EFGH5678",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    "key": KEY,
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_looks_like_a_secret_is_taken_out(name: str) -> None:
    secret = SHAPES[name]
    said = f"before {secret} after, ({secret}) and {secret}"

    for clean in (Redactor()(said), Redactor()(said.encode()).decode()):
        assert secret not in clean
        assert clean.count("[redacted]") == 3
        assert clean.startswith("before [redacted]")
    assert set(Redactor().found(said.encode())) == {secret.encode()}


@pytest.mark.parametrize(
    "words",
    [
        "task-list-of-things-to-do-20240101 and risk-assessment-2024-final-version",
        "the through right eyJ rough AKIA ghp_ bot: 12:30:45 xox",
        "-----BEGIN CERTIFICATE-----\nMIIEpAIBAAKCAQEAabcdefghabcdefghabcdefgh\n-----END CERTIFICATE-----",
        'if "-----BEGIN RSA PRIVATE KEY-----" in text: refuse(text)',
        "sk-learn-is-a-python-library-for-many-things",
        "commit 0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_other_words_stay(words: str) -> None:
    assert Redactor([SECRET])(words) == words


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_configured_value_is_found_in_every_writing(before: bytes, after: bytes) -> None:
    redact = Redactor([SECRET])
    whole = base64.b64encode(before + SECRET.encode() + after)
    for written in (
        SECRET.encode(),
        quote(SECRET, safe="").encode(),
        json.dumps({"a": SECRET}).encode(),
        whole,
        base64.urlsafe_b64encode(before + SECRET.encode() + after),
    ):
        assert b"[redacted]" in redact(b"x " + written)
        assert b"[redacted]" in redact(("x " + written.decode()).encode())


def test_a_basic_header_with_a_token_is_found() -> None:
    header = base64.b64encode(f"x-access-token:{SECRET}".encode()).decode()

    assert "[redacted]" in Redactor([SECRET])(f"Authorization: Basic {header}")


def test_a_key_of_several_lines_is_found_line_by_line() -> None:
    key = "-----BEGIN X-----\n" + "Zm9vYmFyYmF6Zm9vYmFyYmF6\n" + "-----END X-----"

    assert Redactor([key])("| Zm9vYmFyYmF6Zm9vYmFyYmF6 |") == "| [redacted] |"


def test_short_values_and_nothing_take_no_words_out() -> None:
    words = "the word is on the page, and 1234567 too"

    assert Redactor(["", "the", "on", "1234567"])(words) == words


@given(st.text(max_size=200))
def test_it_is_idempotent(text: str) -> None:
    redact = Redactor([SECRET, "[redacted]", "edacted] and"])
    once = redact(text + SECRET)

    assert Redactor([SECRET])(Redactor([SECRET])(text + SECRET)) == Redactor([SECRET])(text + SECRET)
    assert SECRET not in once


@pytest.mark.parametrize("name", [*SHAPES, "configured"])
def test_a_secret_that_is_cut_anywhere_is_held_until_it_is_whole(name: str) -> None:
    secret = SHAPES.get(name, SECRET).encode()
    redact = Redactor([SECRET])
    said = b"it is " + secret + b" here\n"

    for cut in range(len(said)):
        kept, shown = b"", b""
        for piece in (said[:cut], said[cut:]):
            whole = kept + piece
            at = redact.unfinished(whole)
            shown, kept = shown + redact(whole[:at]), whole[at:]
        assert (shown + kept).endswith(b"it is [redacted] here\n"), cut


def test_little_is_held() -> None:
    redact = Redactor([SECRET])

    assert redact.unfinished(b"a line\n") == 7
    assert redact.unfinished(b"no new line yet, 50%") == 20
    assert redact.unfinished(b"") == 0
    assert redact.unfinished(b"ghp_" + b"a" * 50_000) >= 50_000 - (16 << 10)


@pytest.mark.parametrize("gap", ["\x1b[1m", "\x1b[01;31m\x1b[K", "\u200b", "\x1b]8;;\x07", "\ufeff"], ids=range(5))
def test_a_secret_that_is_coloured_or_split_unseen_is_found(gap: str) -> None:
    redact = Redactor([SECRET])
    said = f"it is {SECRET[:5]}{gap}{SECRET[5:]} and gh{gap}p_{gap}{'a1B2' * 9}{gap} here\n"

    assert redact(said) == "it is [redacted] and [redacted] here\n"
    assert redact(redact(said)) == redact(said)
    if "\x1b" in gap:
        assert redact.suspects(said.encode())
        assert redact(said.encode()) == redact(said).encode()


def test_colours_stay_where_they_hide_nothing() -> None:
    words = f"\x1b[1mred\x1b[0m and \u200b{SECRET} \x1b[2m."

    for clean in (Redactor([SECRET])(words), Redactor([SECRET])(words.encode()).decode()):
        assert clean == words.replace(SECRET, "[redacted]")


def test_more_secrets_can_be_given() -> None:
    redact = Redactor([SECRET])

    assert redact.plus(["another-one"])(f"another-one {SECRET}") == "[redacted] [redacted]"
    assert redact.plus([SECRET]) is redact


@pytest.mark.parametrize(
    "hostile",
    ["ghp_" * 60_000, "eyJ" * 80_000, "eyJaaaaaaaa." * 20_000, "-----BEGIN RSA PRIVATE KEY-----" * 8_000,
     "-----BEGIN " + "A " * 100_000, "1:A" * 80_000, "sk-" * 80_000, "sk-" + "a" * 240_000, "bot1" * 60_000,
     "-----BEGIN PRIVATE KEY-----" + "Comment:" * 30_000, "\x1b" * 240_000, "\x1b]" * 120_000],
    ids=range(12),
)  # fmt: skip
def test_nothing_makes_it_slow(hostile: str) -> None:
    started = time.process_time()
    Redactor()(hostile)
    Redactor().unfinished(hostile.encode())

    assert time.process_time() - started < 2
