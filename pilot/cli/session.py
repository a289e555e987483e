"""What every command gets: where things are, the store, the settings, and a voice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pilot.cli.ui import Ui
from pilot.domain.errors import NotFound, PilotError

if TYPE_CHECKING:
    from pilot.client import Client
    from pilot.config.load import Loaded
    from pilot.config.locate import Located
    from pilot.domain.execution import Execution
    from pilot.store import Store
    from pilot.store.history import History

T = TypeVar("T")


@dataclass(slots=True)
class Session:
    """One run of the CLI. `config` is what `--config` named, `server` the pilot that is meant; None: this machine's."""

    ui: Ui
    environ: Mapping[str, str]
    config: Path | None = None
    debug: bool = False
    server: str | None = None
    token_file: Path | None = None
    _ahead: int = 0
    """Milliseconds that the store's clock is ahead of this machine's."""

    def now(self) -> int:
        """UTC ms."""
        from pilot.store import wall_clock

        return wall_clock() + self._ahead

    def located(self) -> Located:
        """Which configuration, state directory and store are meant. Raises `ConfigError`."""
        from pilot.config.locate import locate

        return locate(self.config, self.environ)

    def loaded(self) -> Loaded:
        """The whole configuration; what is odd but no error is said on stderr. Raises `ConfigError`."""
        from pilot.config.load import load

        loaded = load(self.config, self.environ)
        for warning in loaded.warnings:
            self.ui.warn(warning)
        return loaded

    @contextmanager
    def history(self) -> Iterator[History]:
        """The store, to read from at once."""
        from pilot.store import is_postgres, of_postgres, sqlite_path

        url = self.located().store_url
        if is_postgres(url):
            with of_postgres("postgres_glance").glance(url) as (history, self._ahead):
                yield history
            return
        from pilot.store.glance import glance

        with glance(sqlite_path(url), self.now) as history:
            yield history

    def act(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Do something to the store, which has to be there."""
        import asyncio

        from pilot.store import open_store

        async def go() -> T:
            async with open_store(self.located().store_url, create=False) as store:
                return await work(store)

        return asyncio.run(go())

    def away(self, work: Callable[[Client], Awaitable[T]], server: str | None = None) -> T:
        """Do something on the server that was named (or this one), over HTTP."""
        import asyncio

        from pilot.cli.remote import client_of

        async def go() -> T:
            async with client_of(self, server or self.server or "") as client:
                return await work(client)

        return asyncio.run(go())

    def person(self) -> str:
        """Who acts, for the record: the user of this terminal."""
        import getpass

        try:
            return getpass.getuser()
        except (OSError, KeyError):
            return "the terminal"


def spellings(named: str) -> Iterator[str]:
    """What a project may be known by in the store, from what somebody typed: a name, else a path in any form."""
    yield named
    path = Path(named).expanduser()
    if path.exists():
        from pilot.runner.identity import repository_key

        with suppress(PilotError, OSError):
            yield repository_key(path)[0]
    yield str(path.resolve())


def known(execution: Execution | None, id: int) -> Execution:
    """The execution; raises `NotFound` when there is none."""
    if execution is None:
        raise NotFound(f"no execution {id}; `pilot list --all` shows what there is")
    return execution
