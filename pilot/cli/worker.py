"""`pilot worker`: claims over HTTP and works, until told to stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pilot.cli.codes import exit_code
from pilot.cli.fences import Fences
from pilot.cli.hands import fences, task_text, worker_name
from pilot.cli.session import Session
from pilot.domain.errors import ConfigError, UsageError
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from pilot.app.worker import News, WorkerRequest
    from pilot.client import Client
    from pilot.config.load import Loaded
    from pilot.domain.execution import Execution
    from pilot.domain.work import Claim


@click.command()
@click.option("--holder", metavar="NAME", help="Its name; default: $PILOT_WORKER, else user@host.")
@click.option("--lane", "lanes", type=click.IntRange(0), multiple=True, metavar="N", help="Only these; repeatable.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only these; repeatable.")
@click.option("--project", "-p", "projects", multiple=True, metavar="NAME", help="Only of these; repeatable.")
@click.option("--max", "most", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N", help="At once.")
@click.option(
    "--mode",
    type=click.Choice(["local", "agent"]),
    default="local",
    show_default=True,
    help="local: this machine's agents do it. agent: each task is printed for who is in this pane.",
)
@click.option("--backend", metavar="B", help="With this agent or profile, whatever the server chose (local).")
@click.option("--once", is_flag=True, help="End after one; the exit code is that of `pilot run`.")
@click.option("--lease", type=click.FloatRange(2, 3600), default=30, show_default=True, metavar="S", help="Seconds.")
@click.option("--json", is_flag=True, help="What happens as JSON, one document a line.")
@click.pass_obj
def worker(
    session: Session,
    *,
    holder: str | None,
    lanes: tuple[int, ...],
    kinds: tuple[str, ...],
    projects: tuple[str, ...],
    most: int,
    mode: str,
    backend: str | None,
    once: bool,
    lease: float,
    json: bool,
) -> int:
    """Claim work over HTTP, and do it.

    In local mode by this machine's own pilot.yaml, for the projects that it has, by their names. SIGTERM lets what
    runs end within dispatcher.drain_timeout, then gives it back; a second one gives it back at once.
    """
    from pilot.app.worker import WorkerRequest
    from pilot.cli.arguments import kind_of
    from pilot.domain.work import Wanted
    from pilot.telemetry.logs import configure

    configure(level="DEBUG" if session.debug else "WARNING")
    if mode == "agent" and (most != 1 or backend is not None):
        raise UsageError("in agent mode there is one task at a time, and whoever is in the pane does it")
    request = WorkerRequest(
        holder=worker_name(session, holder),
        wanted=Wanted(lanes=lanes, kinds=tuple(str(kind_of(kind)) for kind in kinds), projects=projects),
        max=most,
        lease=round(lease * 1000),
        once=once,
        backend=backend,
    )
    voice = _Voice(session, json=json)
    ended = (_in_pane if mode == "agent" else _locally)(session, request, voice)
    return exit_code(ended) if ended is not None else 0


def _locally(session: Session, request: WorkerRequest, voice: _Voice) -> Execution | None:
    from pilot.app.worker import run_worker
    from pilot.app.worker_place import place_of

    loaded = session.loaded()
    server = session.server or _own(loaded)

    async def work(client: Client) -> Execution | None:
        place = place_of(Path(loaded.settings.state_dir), client.place, request.holder)
        return await run_worker(loaded, client, place, request, session.now, voice.tell)

    return session.away(work, server)


def _in_pane(session: Session, request: WorkerRequest, voice: _Voice) -> Execution | None:
    from pilot.app.worker_pane import Pane

    places: Mapping[str, str] = {}
    try:
        loaded = session.loaded()
    except ConfigError:  # a pane needs none, as long as it is told where the server is
        if session.server is None:
            raise
    else:
        places = {own.name: str(own.path) for own in loaded.settings.projects if own.path is not None}
        session.server = session.server or _own(loaded)
    known: Fences = fences(session)

    def show(claim: Claim) -> None:
        known.put(request.holder, claim.execution.id, claim.fence)
        voice.task(claim, request.holder, places.get(claim.execution.project))

    async def work(client: Client) -> Execution | None:
        return await Pane(client, request, show, voice.tell).run()

    return session.away(work)


def _own(loaded: Loaded) -> str:
    """The `pilot serve` of this configuration."""
    own = loaded.settings.server
    if not own.port:
        raise UsageError("server.port is 0, so nobody knows where `pilot serve` listens; give --server URL")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(own.host, own.host)  # noqa: S104  where it listens everywhere
    return f"http://{f'[{host}]' if ':' in host else host}:{own.port}"


class _Voice:
    """Talk on stderr; tasks, or with --json everything as documents, on stdout."""

    def __init__(self, session: Session, *, json: bool) -> None:
        self._session = session
        self._json = json

    def tell(self, news: News) -> None:
        """One thing that happened."""
        if self._json:
            self._session.ui.document_line({"event": news.what, "text": news.text, **news.facts})
        else:
            self._session.ui.note(f"• {one_line(news.text, 500)}")

    def task(self, claim: Claim, holder: str, place: str | None) -> None:
        """What is to be done."""
        from pilot.cli.hands import claim_document

        if self._json:
            self._session.ui.document_line({"event": "task", **claim_document(claim)})
        else:
            self._session.ui.line(task_text(self._session, claim, holder, place))
        self._session.ui.flush()
