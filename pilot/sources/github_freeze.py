"""The input as it was when somebody asked: what others changed afterwards is not used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pilot.clients.github import GitHub
from pilot.clients.github_edits import Edit
from pilot.clients.github_news import Asking
from pilot.clients.github_values import Account, Comment, Issue
from pilot.domain.text import as_page, one_line
from pilot.sources.github_people import People

COMMENTS = 200_000
"""Characters of comments that are taken; of more, the oldest stay out."""
WRITERS = 25
"""Writers of comments that GitHub is asked about; of more, those who wrote last count."""
_NOT_USED = "(The text of the issue was changed after somebody had asked for this, by {who}; it is not used.)"


@dataclass(frozen=True, slots=True)
class Frozen:
    """What an agent is given. `held`: why a person has to look first. `edited`: later changes that are in it."""

    title: str
    prompt: str
    held: str | None
    edited: tuple[dict[str, Any], ...]


async def freeze(github: GitHub, people: People, repo: str, issue: Issue, asking: Asking) -> Frozen:
    """Read what belongs to the issue besides its text, and keep of it what is from before `asking`, or allowed."""
    at = asking.labeled.at
    title, text = issue.title, issue.body
    # times are to the second: a change in the same one may be a later one
    rewritten = [edit for edit in _changes(issue, await github.news.rewritten(repo, issue.number)) if edit.at >= at]
    strange, allowed = await _divided(people, repo, [*rewritten, *asking.renamed])
    titles = [edit for edit in strange if edit.part == "title"]
    if titles:
        title = titles[0].before or title
    if any(edit.part == "text" for edit in strange):
        text = _NOT_USED.format(who=_names(edit.actor for edit in strange if edit.part == "text"))
    comments = await _comments(github, people, repo, issue, at) if issue.comments else ""
    held = None
    if strange:
        held = (
            f"{_names(edit.actor for edit in strange)} changed the issue after the label was set, and may not ask; the "
            "change is not used. Look at the issue: set the label again to take it as it is now, or answer with what "
            "is to be done"
        )
    return Frozen(
        one_line(title) or f"Issue {issue.number}",
        "\n\n".join(part for part in (as_page(text).strip(), comments) if part),
        held,
        tuple({"by": _names([edit.actor]), "at": edit.at, "part": edit.part} for edit in allowed),
    )


def _changes(issue: Issue, edits: Sequence[Edit]) -> Sequence[Edit]:
    """Without the original, which GitHub shows as a first edit."""
    return edits[1:] if edits and edits[0].at == issue.created_at else edits


async def _divided(people: People, repo: str, edits: Sequence[Edit]) -> tuple[list[Edit], list[Edit]]:
    strange: list[Edit] = []
    allowed: list[Edit] = []
    for edit in edits:
        (strange if await people.why_not(repo, edit.actor) else allowed).append(edit)
    return strange, allowed


async def _comments(github: GitHub, people: People, repo: str, issue: Issue, at: int) -> str:
    """Those of people who may ask, from before and not changed since."""
    asked: dict[int, bool] = {}
    kept: list[str] = []
    room, left_out = COMMENTS, 0
    for comment in reversed(await github.comments(repo, issue.number)):
        author = comment.author
        if author is None or max(comment.created_at, comment.edited_at) > at:
            continue
        if await people.wrote_it_itself(author, comment.body):
            continue
        if author.id not in asked:
            asked[author.id] = len(asked) < WRITERS and not await people.why_not(repo, author)
        if not asked[author.id]:
            continue
        text = _quoted(author, comment)
        room -= len(text)
        if room < 0:
            left_out += 1
        else:
            kept.append(text)
    if not kept:
        return ""
    note = [f"({left_out} older comments are left out: they are too long.)"] if left_out else []
    return "\n\n".join(["Comments:", *note, *reversed(kept)])


def _quoted(author: Account, comment: Comment) -> str:
    when = datetime.fromtimestamp(comment.created_at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = "\n".join(f"> {line}" for line in as_page(comment.body).strip().splitlines())
    return f"{one_line(author.login, 60)} wrote at {when}:\n{lines}"


def _names(actors: Any) -> str:
    found = dict.fromkeys("somebody" if actor is None else one_line(actor.login, 60) for actor in actors)
    return " and ".join(found)
