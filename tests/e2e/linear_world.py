"""What there is in the fake Linear, and how its API shows it: behaviour is written by hand, shapes are the schema's."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from graphql import GraphQLError

Row = dict[str, Any]
HOME = "https://linear.app/acme"


def invalid(message: str, words: str) -> GraphQLError:
    """Linear's refusal of an input."""
    more = {"type": "invalid input", "code": "INPUT_ERROR", "statusCode": 400, "userError": True}
    return GraphQLError(message, extensions={**more, "userPresentableMessage": words})


def missing(kind: str) -> GraphQLError:
    """Linear's answer for what is not there."""
    return invalid(f"Entity not found: {kind}", f"Could not find referenced {kind}.")


def forbidden() -> GraphQLError:
    """Linear's answer to a key that may not."""
    return GraphQLError(
        "Forbidden",
        extensions={"type": "forbidden", "code": "FORBIDDEN", "userPresentableMessage": "You may not do this."},
    )


class World:
    """One organization: people, a team with its states, labels, issues, comments, agent sessions."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.conflict = ("conflict on insert of Entity", "An entity with this id already exists.")
        self.latest_first = True
        """How lists come; it is documented for none of them."""
        self.changed: Callable[[str, str, Row, Row, Row | None], None] = lambda *_: None
        """Told of every change: (type, action, row, what was before, actor)."""
        self._ticks = itertools.count()
        self.organization = self._row("Organization", name="Acme", urlKey="acme")
        self.team = self._row("Team", name="Engineering", key="ENG", displayName="Engineering")
        self.states = {
            name: self._row("WorkflowState", name=name, type=kind, position=float(position), color="#fff")
            for name, kind, position in (
                ("Todo", "unstarted", 1), ("In Review", "started", 3), ("In Progress", "started", 2),
                ("Done", "completed", 4),
            )
        }  # fmt: skip
        self.ann = self.person("Ann", "ann@acme.test")
        self.app = self.person("pilot", "pilot@app.test", app=True)

    def person(self, name: str, email: str, *, app: bool = False) -> Row:
        """A member, or an app."""
        return self._row("User", name=name, email=email, app=app, url=f"{HOME}/profiles/{name}")

    def label(self, name: str, *, team: Row | None = None) -> Row:
        """The label of that name; made when there is none."""
        for row in self.of("IssueLabel"):
            if row["name"] == name and row["team"] is team:
                return row
        return self._row("IssueLabel", name=name, team=team, color="#123456")

    def issue(self, title: str, description: str | None = "", *, creator: Row | None = None, **more: Any) -> Row:
        """An issue of the team, in its first state."""
        number = len(self.of("Issue")) + 1
        row = self._row(
            "Issue", title=title, description=description, number=float(number), identifier=f"ENG-{number}",
            url=f"{HOME}/issue/ENG-{number}", labels=[], team=self.team, state=self.states["Todo"], project=None,
            creator=creator or self.ann, externalUserCreator=None, botActor=None, delegate=None, history=[],
            trashed=None, previousIdentifiers=[], **more,
        )  # fmt: skip
        self.changed("Issue", "create", row, {}, row["creator"])
        return row

    def comment(self, issue: Row, body: str, user: Row | None, **more: Any) -> Row:
        """A comment on an issue."""
        row = self._row("Comment", id=more.pop("id", None), issue=issue, body=body, user=user, editedAt=None,
                        **{"parentId": None, "externalUser": None, "botActor": None, **more})  # fmt: skip
        row["url"] = f"{issue['url']}#comment-{row['id'][:8]}"
        self.changed("Comment", "create", row, {}, user)
        return row

    def update(self, issue: Row, actor: Row | None, **changes: Any) -> None:
        """Change an issue, as its history and webhooks tell it; what stays as it is changes nothing."""
        before = {key: issue[key] for key, value in changes.items() if issue[key] != value}
        if not before:
            return
        issue.update(changes, updatedAt=self.now())
        added = [label for label in changes.get("labels", ()) if label not in before.get("labels", ())]
        moment = self.now()
        issue["history"].append(
            {
                "id": str(uuid.uuid4()), "createdAt": moment, "updatedAt": moment, "actor": actor, "botActor": None,
                "addedLabels": added if "labels" in before else None, "fromTitle": before.get("title"),
                "updatedDescription": True if "description" in before else None,
                "descriptionUpdatedBy": [actor] if "description" in before and actor else None,
            }
        )  # fmt: skip
        self.changed("Issue", "update", issue, before, actor)

    def session(self, issue: Row, creator: Row | None) -> Row:
        """An agent session on an issue: somebody delegated it, or mentioned the app."""
        row = self._row("AgentSession", issue=issue, creator=creator, appUser=self.app, status="pending", links=[],
                        activities=[])  # fmt: skip
        self.changed("AgentSession", "created", row, {}, creator)
        return row

    def activity(self, session: Row, content: Row, user: Row | None, **more: Any) -> Row:
        """One activity; the session's state follows, and ephemeral ones before it are gone."""
        row = self._row("AgentActivity", id=more.pop("id", None), agentSession=session, content=content, user=user,
                        **{"ephemeral": False, "signal": None, "signalMetadata": None, **more})  # fmt: skip
        for before in [before for before in session["activities"] if before["ephemeral"]]:
            session["activities"].remove(before)
        session["activities"].append(row)
        session["updatedAt"] = self.now()
        states = {"elicitation": "awaitingInput", "response": "complete", "error": "error"}
        session["status"] = states.get(content["type"], "active")
        if content["type"] == "prompt":
            self.changed("AgentSession", "prompted", session, {"activity": row}, user)
        return row

    def of(self, kind: str) -> list[Row]:
        """All rows of a kind, oldest first."""
        return [row for row in self.rows.values() if row["__typename"] == kind]

    def one(self, kind: str, id: str) -> Row:
        """By id, or an issue by identifier."""
        for row in self.of(kind):
            if id in (row["id"], row.get("identifier")):
                return row
        raise missing(kind)

    def now(self) -> str:
        """The present, later than every moment before."""
        moment = datetime.now(UTC).timestamp() + next(self._ticks) / 1000
        return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _row(self, kind: str, **facts: Any) -> Row:
        id = facts.pop("id", None) or str(uuid.uuid4())
        if id in self.rows:
            raise invalid(*self.conflict)
        row = {"__typename": kind, "id": id, "createdAt": self.now(), **facts}
        row["updatedAt"] = row["createdAt"]
        self.rows[id] = row
        return row


class Api:
    """The root of queries and mutations, for the one whose key it is."""

    def __init__(self, world: World, me: Row) -> None:
        self._world = world
        self._me = me

    def root(self) -> dict[str, Callable[..., Any]]:
        """Resolvers by the names that the schema has."""
        names = {
            "agentActivity": "activity", "agentSession": "session", "agentSessions": "sessions",
            "comment": "comment", "issue": "issue",
            "issueLabels": "labels", "issues": "issues", "team": "team", "viewer": "viewer",
            "agentActivityCreate": "act", "agentSessionUpdate": "update_session", "commentCreate": "write",
            "commentUpdate": "rewrite", "issueUpdate": "update_issue",
        }  # fmt: skip
        return {name: getattr(self, method) for name, method in names.items()}

    def viewer(self, _info: Any) -> Row:
        return {**self._me, "organization": self._world.organization}

    def issue(self, _info: Any, id: str) -> Row:
        return self._issue(self._world.one("Issue", id))

    def comment(self, _info: Any, id: str | None = None, hash: str | None = None) -> Row:
        return self._world.one("Comment", id or "")

    def activity(self, _info: Any, id: str) -> Row:
        return self._world.one("AgentActivity", id)

    def session(self, _info: Any, id: str) -> Row:
        return self._session(self._world.one("AgentSession", id))

    def sessions(self, _info: Any, orderBy: str = "createdAt", **at: Any) -> Row:  # noqa: N803  # its name
        found = sorted(
            self._world.of("AgentSession"), key=lambda session: str(session[orderBy]), reverse=self._world.latest_first
        )
        return page([self._session(session) for session in found], **at)

    def team(self, _info: Any, id: str) -> Row:
        world = self._world
        if id not in (world.team["id"], world.team["key"]):
            raise missing("Team")

        def states(_info: Any, filter: Any = None, **at: Any) -> Row:
            return page([state for state in world.states.values() if fits(state, filter)], **at)

        return {**world.team, "states": states}

    def labels(self, _info: Any, filter: Any = None, **at: Any) -> Row:
        return page([label for label in self._world.of("IssueLabel") if fits(label, filter)], **at)

    def issues(self, _info: Any, filter: Any = None, orderBy: str = "createdAt", **at: Any) -> Row:  # noqa: N803  # its name
        found = [issue for issue in self._world.of("Issue") if fits(issue, filter)]
        found.sort(key=lambda issue: issue[orderBy], reverse=self._world.latest_first)
        return page([self._issue(issue) for issue in found], **at)

    def update_issue(self, _info: Any, id: str, input: Row) -> Row:
        issue = self._world.one("Issue", id)
        changes: Row = {}
        if "stateId" in input:
            changes["state"] = self._world.one("WorkflowState", input["stateId"])
        if "delegateId" in input:
            changes["delegate"] = input["delegateId"] and self._world.one("User", input["delegateId"])
        added = [self._world.one("IssueLabel", label) for label in input.get("addedLabelIds") or ()]
        removed = [self._world.one("IssueLabel", label) for label in input.get("removedLabelIds") or ()]
        kept = [label for label in issue["labels"] if label not in removed]
        changes["labels"] = kept + [label for label in added if label not in kept]
        self._world.update(issue, self._me, **changes)
        return done(issue=self._issue(issue))

    def write(self, _info: Any, input: Row) -> Row:
        check_id(input)
        if not (input.get("body") or "").strip():
            raise invalid("Argument Validation Error", "body should not be empty")
        issue = self._world.one("Issue", input.get("issueId") or "")
        parent = input.get("parentId")
        if parent is not None:
            self._world.one("Comment", parent)
        return done(comment=self._world.comment(issue, input["body"], self._me, id=input.get("id"), parentId=parent))

    def rewrite(self, _info: Any, id: str, input: Row) -> Row:
        comment = self._world.one("Comment", id)
        if comment["user"] is not self._me:
            raise forbidden()
        comment.update(body=input["body"], editedAt=self._world.now())
        return done(comment=comment)

    def act(self, _info: Any, input: Row) -> Row:
        check_id(input)
        session = self._world.one("AgentSession", input["agentSessionId"])
        if session["appUser"] is not self._me:
            raise forbidden()
        content = dict(input["content"])
        wanted = {"action": {"action", "parameter"}}.get(content.get("type", ""), {"body"})
        allowed = {"type", *wanted, *({"result"} if content.get("type") == "action" else ())}
        if content.get("type") not in CONTENTS or not wanted <= content.keys() or content.keys() - allowed:
            raise invalid("Argument Validation Error", f"content is not one of the documented ones: {content}")
        if input.get("ephemeral") and content["type"] not in ("thought", "action"):
            raise invalid("Argument Validation Error", "only thoughts and actions may be ephemeral")
        if input.get("signal") == "select" and not (input.get("signalMetadata") or {}).get("options"):
            raise invalid("Argument Validation Error", "select needs options")
        more = {key: input[key] for key in ("id", "ephemeral", "signal", "signalMetadata") if key in input}
        return done(agentActivity=self._world.activity(session, content, self._me, **more))

    def update_session(self, _info: Any, id: str, input: Row) -> Row:
        session = self._world.one("AgentSession", id)
        if session["appUser"] is not self._me:
            raise forbidden()
        if "externalUrls" in input:
            session["links"] = [dict(link) for link in input["externalUrls"]]
        return done(agentSession=self._session(session))

    def _session(self, session: Row) -> Row:
        def activities(_info: Any, filter: Any = None, **at: Any) -> Row:
            kind = ((filter or {}).get("type") or {}).get("eq")
            mine = [each for each in session["activities"] if kind in (None, each["content"]["type"])]
            return page([{**each, "content": _content(each["content"])} for each in mine[::-1]], **at)

        return {**session, "activities": activities}

    def _issue(self, issue: Row) -> Row:
        def labels(_info: Any, **at: Any) -> Row:
            return page(issue["labels"], **at)

        def comments(_info: Any, **at: Any) -> Row:
            mine = [comment for comment in self._world.of("Comment") if comment["issue"] is issue]
            return page(mine[::-1] if self._world.latest_first else mine, **at)

        def history(_info: Any, **at: Any) -> Row:
            return page(issue["history"][::-1], **at)

        return {**issue, "labels": labels, "comments": comments, "history": history}


def _content(content: Row) -> Row:
    return {"__typename": f"AgentActivity{content['type'].capitalize()}Content", **content}


CONTENTS = frozenset({"thought", "action", "elicitation", "response", "error"})


def done(**what: Any) -> Row:
    """A mutation's answer."""
    return {"success": True, "lastSyncId": 1.0, **what}


def check_id(input: Row) -> None:
    """Ids of the caller's are of version 4."""
    id = input.get("id")
    if id is not None and uuid.UUID(id).version != 4:
        raise invalid("Argument Validation Error", "id must be a UUID of version 4")


def page(nodes: list[Row], first: int | None = None, after: str | None = None, **_: Any) -> Row:
    """A part of a list, of fifty unless said otherwise."""
    size = 50 if first is None else first
    if not 0 < size <= 250:
        raise invalid("Argument Validation Error", "first must not be greater than 250")
    start = int(after) if after else 0
    end = start + size
    info = {"hasNextPage": end < len(nodes), "endCursor": str(min(end, len(nodes))), "hasPreviousPage": start > 0}
    return {"nodes": nodes[start:end], "pageInfo": info}


def fits(row: Row, filter: Mapping[str, Any] | None) -> bool:
    """Whether a row is what a filter wants; of filters only those in use are known."""
    for key, wanted in (filter or {}).items():
        if key == "labels":
            (how, label), *more = wanted.items()
            if how != "some" or more:
                raise NotImplementedError(f"the fake knows no labels: {wanted}")
            if not any(fits(each, label) for each in row["labels"]):
                return False
        elif not all(_compared(row[key], how, value) for how, value in wanted.items()):
            return False
    return True


def _compared(value: str, how: str, wanted: str) -> bool:
    match how:
        case "eq":
            return value == wanted
        case "eqIgnoreCase":
            return value.lower() == wanted.lower()
        case "gte":
            return datetime.fromisoformat(value) >= datetime.fromisoformat(wanted)
    raise NotImplementedError(f"the fake knows no {how}")
