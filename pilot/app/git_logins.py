"""With what pilot's git fetches a project that is given by its address: GitHub's token, and at GitHub only."""

from __future__ import annotations

from pilot.app.parts import login_of
from pilot.clients.github_errors import GitHubError, Refused
from pilot.config.schema import GithubSettings
from pilot.domain.errors import UsageError, WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.publish.push import git_root
from pilot.runner.git_login import Login


async def login_for(settings: GithubSettings | None, url: str) -> Login | None:
    """The login for an address; None when it is another server's, or has a login of its own.

    Raises `WorkspaceError` when GitHub gives no token.
    """
    if settings is None:
        return None
    try:
        root = git_root(settings.base_url)
    except UsageError:
        return None  # whoever has to push says so
    if not url.startswith(f"{root}/"):
        return None
    if settings.token is not None:
        return Login(root, settings.token.get_secret_value().strip())
    from pilot.clients.github import GitHub  # an App's token is asked for, and good for an hour

    try:
        async with GitHub(login_of(settings), base_url=settings.base_url) as github:
            return Login(root, await github.token())
    except GitHubError as error:
        failure = FailureClass.AUTH if isinstance(error, Refused) else FailureClass.NETWORK
        raise WorkspaceError(failure, f"GitHub gives no token for {root}: {error}") from error
