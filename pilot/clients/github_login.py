"""Who speaks to GitHub: a token, or a GitHub App in one of its installations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pilot.clients.github_errors import Unauthorized

if TYPE_CHECKING:
    from github.Requester import Requester

API_VERSION = "2022-11-28"
"""Of the REST API: the first that GitHub promised to keep, known to every GitHub Enterprise Server since 3.9."""


@dataclass(frozen=True, slots=True)
class Token:
    """A personal, fine-grained or OAuth token."""

    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class App:
    """A GitHub App: its id or client id, its private key (PEM), and the id of the installation that it acts in."""

    id: str
    private_key: str = field(repr=False)
    installation: int


Login = Token | App


def requesters(login: Login, *, base_url: str, timeout: int) -> tuple[Requester, Requester | None]:
    """PyGithub's requester for the login's account and, for an App, the one that speaks as the App itself.

    Neither waits, spaces or repeats anything. They belong to the thread that made them.
    """
    from github import Auth, Github, GithubIntegration
    from jwt import PyJWTError

    def plain(auth: Auth.Auth) -> Requester:
        return Github(
            auth=auth,
            base_url=base_url,
            timeout=timeout,
            user_agent="pilot",
            retry=None,
            seconds_between_requests=None,
            seconds_between_writes=None,
            api_version=API_VERSION,
        ).requester

    if isinstance(login, Token):
        value = login.value.strip()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            # the HTTP library would refuse it too, and put it into its message
            raise Unauthorized("the token is empty or has characters that no token of GitHub's has")
        return plain(Auth.Token(value)), None
    app = Auth.AppAuth(login.id, login.private_key)
    try:
        app.create_jwt()
    except (ValueError, TypeError, PyJWTError) as error:
        raise Unauthorized("the App's private key is no RSA key in PEM") from error
    integration = GithubIntegration(
        auth=app,
        base_url=base_url,
        timeout=timeout,
        user_agent="pilot",
        retry=None,
        seconds_between_requests=None,
        seconds_between_writes=None,
        api_version=API_VERSION,
    ).requester
    return plain(app.get_installation_auth(login.installation, requester=integration)), integration
