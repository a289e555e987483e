"""Who changed an issue's words, and when. Of the text only GraphQL tells; a title's changes are among the events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pilot.clients.github_values import Account, Json, account, at

EDITS = """
query ($owner: String!, $name: String!, $number: Int!, $after: String) {
  repository(owner: $owner, name: $name) {
    issue(number: $number) {
      userContentEdits(first: 100, after: $after) {
        nodes { editedAt editor { __typename login ... on User { databaseId } ... on Bot { databaseId } } }
        pageInfo { hasNextPage endCursor }
      }
    }
  }
}
"""
"""A page of who changed an issue's text, in GraphQL."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of an issue's `part`. `actor` is None where GitHub doesn't say, or the account is gone.

    `before`: a title's words until then; of a text GitHub doesn't tell.
    """

    part: Literal["title", "text"]
    actor: Account | None
    at: int
    before: str | None = None


def text_edits(data: Json) -> tuple[list[Edit], str | None]:
    """From the answer to `EDITS`: a page, and where the next one starts."""
    edits = data["repository"]["issue"]["userContentEdits"]
    if edits is None:
        return [], None
    page = edits["pageInfo"]
    found = [Edit("text", _editor(each["editor"]), at(each["editedAt"])) for each in edits["nodes"]]
    return found, str(page["endCursor"]) if page["hasNextPage"] else None


def renamed(data: Json) -> Edit:
    """From an event of that name."""
    return Edit("title", account(data["actor"]), at(data["created_at"]), str(data["rename"]["from"]))


def _editor(data: Json | None) -> Account | None:
    if data is None or data.get("databaseId") is None:
        return None
    bot = data["__typename"] == "Bot"
    # GraphQL gives a bot's login without what REST puts behind it
    return Account(int(data["databaseId"]), f"{data['login']}[bot]" if bot else str(data["login"]), bot)
