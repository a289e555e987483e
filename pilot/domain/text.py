"""Text from outside, made safe for where it goes: a column, a branch name, a terminal, a prompt."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping

REPLACEMENT = "\ufffd"

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # OSC: titles, links, clipboard
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\|$)"  # DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]?"  # any other escape
    r"|\x9b[0-?]*[ -/]*[@-~]?",  # CSI as one C1 byte
)
_HIDDEN = "\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f\U000e0100-\U000e01ef"
_CONTROLS = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_HIDDEN}]")
_HIDDEN_ONLY = re.compile(f"[{_HIDDEN}]")
_UNSEEN = re.compile(f"[\x1b\x9b{_HIDDEN}]")
_HTML_COMMENTS = re.compile(r"<!--(?:-?>|.*?(?:-->|$))", re.DOTALL)  # `<!-->` is a whole one
_CODE_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_IMAGE_WORDS = re.compile(r"!\[(?:[^\[\]\\]|\\.|\[[^\[\]]{0,500}\]){1,2000}\]")
_TITLE = r"""(?:"(?:[^"\\]|\\.){0,2000}"|'(?:[^'\\]|\\.){0,2000}'|\((?:[^()\\]|\\.){0,2000}\))"""
_LINK_TITLES = re.compile(rf"(\]\()([^\s()<>]{{0,2000}}|<[^<>\n]{{0,2000}}>)\s+{_TITLE}\s*\)")
_LINK_TARGETS = re.compile(rf"^([ \t]{{0,3}}\[[^\[\]\n]{{1,500}}\]:[ \t]*\S{{1,2000}})\s+{_TITLE}[ \t]*$", re.MULTILINE)
_HTML_TAGS = re.compile(r"<[A-Za-z][^<>]{0,8000}>")
_HTML_WORDS = re.compile(
    r"""\s(?:alt|title|aria-[a-z]{1,20}|data-[a-z-]{1,40})\s*=\s*(?:"[^"]*"|'[^']*'|[^\s>"']+)""", re.IGNORECASE
)
_DECLARATION = r"<(?:\?|!(?:[A-Za-z]|\[CDATA\[))"
_DECLARATIONS = re.compile(rf"(?<![\\`])(`+)(?!`)[^\n]*?(?<!`)\1(?!`)|{_DECLARATION}[^>]*(?:>|\Z)")
_BEGINNING = re.compile(rf"<(?={_DECLARATION[1:]})")
_OPEN_DECLARATION = re.compile(rf"^([ \t>*+.)0-9-]*){_DECLARATION}.*", re.DOTALL | re.MULTILINE)
_SURROGATES = re.compile("[\ud800-\udfff]")
_SLUG = re.compile(r"[^a-z0-9]+")
_REF = re.compile(r"[^A-Za-z0-9._/-]+")


def clean(text: str) -> str:
    """Text that both engines store: no NUL (PostgreSQL refuses it), no lone surrogates (SQLite does)."""
    if "\x00" in text:
        text = text.replace("\x00", REPLACEMENT)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = _SURROGATES.sub(REPLACEMENT, text)
    return text


def for_terminal(text: str) -> str:
    """Text without anything that a terminal obeys or a reader can't see; tabs and newlines stay. Idempotent."""
    text = clean(text).replace("\r\n", "\n")
    return _CONTROLS.sub(REPLACEMENT, _ESCAPES.sub("", text))


def without_unseen(text: str) -> str:
    """Text without escapes and hidden characters: what stands on both sides of one is one word to its reader."""
    return _HIDDEN_ONLY.sub("", _ESCAPES.sub("", text)) if _UNSEEN.search(text) else text


def one_line(text: str, limit: int = 200) -> str:
    """The text as one terminal line of at most `limit` characters."""
    line = " ".join(for_terminal(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def for_prompt(text: str) -> str:
    """Text as its reader saw it: hidden characters and HTML comments of an issue never reach an agent."""
    return _HTML_COMMENTS.sub(_commented, _HIDDEN_ONLY.sub("", clean(text)))


def _commented(found: re.Match[str]) -> str:
    """What is left of a comment: what stands around it must not become another, which would hide what follows."""
    return " " if found.string[max(found.start() - 3, 0) : found.start()].endswith(("<", "<!", "<!-")) else ""


def as_page(text: str) -> str:
    """Markdown as its reader saw it: as `for_prompt`, and without images' words and the titles of links.

    What stands in a block of code is seen, and stays.
    """
    parts: list[tuple[bool, list[str]]] = [(False, [])]
    fence = ""
    for line in for_prompt(text).split("\n"):
        found = _CODE_FENCE.match(line)
        if found and not fence and "`" not in found[2]:
            fence = found[1]
            parts.append((True, []))
            parts[-1][1].append(line)
        elif found and fence and found[1].startswith(fence) and not found[2].strip():
            fence = ""
            parts[-1][1].append(line)
            parts.append((False, []))
        else:
            parts[-1][1].append(line)
    return "\n".join("\n".join(lines) if code else _unseen("\n".join(lines)) for code, lines in parts if lines)


def _unseen(text: str) -> str:
    text = _DECLARATIONS.sub(_declared, text)
    text = _IMAGE_WORDS.sub("![]", text)
    text = _LINK_TITLES.sub(r"\1\2)", text)
    text = _LINK_TARGETS.sub(r"\1", text)
    return _HTML_TAGS.sub(lambda tag: _HTML_WORDS.sub("", tag[0]), text)


def _declared(found: re.Match[str]) -> str:
    """What is seen of a declaration or code: browsers take the first for a comment, up to its first `>`."""
    if found[1] or found[0].endswith(">"):
        return found[0] if found[1] else " "
    begun = found.string.rfind("\n", 0, found.start()) + 1
    seen = _OPEN_DECLARATION.sub(r"\1", found.string[begun:])[found.start() - begun :]
    return _BEGINNING.sub("< ", seen)  # no end of a later text ends it


def slug(text: str, limit: int = 60) -> str:
    """Lower-case `[a-z0-9-]`, never empty."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _SLUG.sub("-", ascii_text.lower()).strip("-")[:limit].strip("-") or "task"


def ref_name(text: str, limit: int = 100) -> str:
    """A valid last part of a git ref for any task id (`git check-ref-format`); case is kept, `GH-46` stays."""
    name, before = _REF.sub("-", text), None
    while name != before:  # what one rule leaves may be against another: `a.lock.lock`, a cut behind a dot
        before = name
        parts = [re.sub(r"\.{2,}", ".", part).strip(".-") for part in name.split("/")]
        name = "/".join(part.removesuffix(".lock") for part in parts if part)[:limit]
    return name or "task"


def tail(text: str, limit: int = 4000) -> str:
    """The end of a long text, where tools put the reason, cut at a line."""
    if len(text) <= limit:
        return text
    cut = text[-limit:]
    newline = cut.find("\n")
    return "…\n" + cut[newline + 1 :] if 0 <= newline < limit // 2 else "…" + cut


def fingerprint(facts: Mapping[str, str]) -> str:
    """A short name for a set of facts that may be secret: equal ones have the same, and nothing can be read off it."""
    # slow on purpose: a key that somebody guesses must not be checked by the million
    words = "\0".join(f"{name}={facts[name]}" for name in sorted(facts))
    return hashlib.pbkdf2_hmac("sha256", words.encode(errors="replace"), b"pilot account", 20_000).hex()[:8]
