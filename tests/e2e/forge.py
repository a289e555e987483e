"""A pilot with a GitHub of its own: API and git on loopback, webhooks sent as GitHub sends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.daemon import Daemon, Home
from tests.e2e.git_host import GitHost
from tests.e2e.github_fake import GitHubFake
from tests.e2e.github_state import Item, Repo

SECRET = "it is raining webhooks"


class Forge:
    """One repository `acme/api`, one project `api`; `robot` is whom pilot acts as, `mona` a maintainer."""

    def __init__(self, home: Home, fake: GitHubFake, **project: Any) -> None:
        self.home = home
        self.fake = fake
        self.repo: Repo = fake.repo("acme/api", mona="admin", robot="write", stranger="read")
        self.token = fake.token("robot")
        self.checkout = home.repo("api", github="acme/api", **project)
        self.host = GitHost(fake, home.root / "host")
        self.bare = self.host.take(self.repo, self.checkout)
        home.environment |= {"GITHUB_TOKEN": self.token, "WEBHOOK_SECRET": SECRET}
        self.sources: dict[str, Any] = {
            "github": {
                "token": "${GITHUB_TOKEN}",
                "base_url": fake.url,
                "poll_interval": "1s",
                "webhook_secret": "${WEBHOOK_SECRET}",
            }
        }
        home.configure(sources=self.sources)

    @contextmanager
    def serve(self, *, webhooks: bool = True) -> Iterator[Daemon]:
        """A daemon that gets the fake's webhooks."""
        with self.home.serve() as daemon:
            if webhooks:
                self.fake.hooks.target(f"{daemon.url}/webhooks/github", SECRET)
            yield daemon

    def ask(self, title: str = "Fix the login", *orders: str, actor: str = "mona", label: str = "pilot") -> int:
        """An issue with orders for the scripted agent, and the label; its number."""
        body = "\n".join(f"do: {order}" for order in orders)
        return self.fake.issue(self.repo, title, body, actor=actor, labels=[label])

    def labels(self, number: int) -> list[str]:
        return list(self.repo.items[number].labels)

    def ours(self, number: int) -> list[str]:
        """Our own comments there."""
        return [one.body for one in self.repo.comments.values() if one.number == number and one.author.login == "robot"]

    def pulls(self) -> list[Item]:
        return [item for item in self.repo.items.values() if item.pull]

    def pull(self) -> Item:
        """The one pull request, once it is there."""
        (found,) = self.home.until(self.pulls, "a pull request")
        assert isinstance(found, Item)
        return found

    def row(self, *columns: str) -> tuple[Any, ...]:
        """Of the newest execution."""
        rows = self.home.rows(f"SELECT {', '.join(columns)} FROM executions ORDER BY id DESC LIMIT 1")
        return rows[0] if rows else (None,) * len(columns)

    def reach(self, seconds: float = 60.0, **wanted: Any) -> None:
        """Wait until the newest execution has these columns."""
        self.home.until(
            lambda: self.row(*wanted) == tuple(wanted.values()), f"{wanted}, not {self.row(*wanted)}", seconds
        )


@contextmanager
def forge(root: Path, **project: Any) -> Iterator[Forge]:
    """A forge and the home of its pilot, below `root`."""
    home = Home(root / "pilot")
    try:
        with GitHubFake() as fake:
            yield Forge(home, fake, **project)
    finally:
        home.clear_away()
