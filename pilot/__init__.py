"""Turns tickets into finished changes with coding agents, unattended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot.dispatch.dispatcher import Dispatcher as Dispatcher
    from pilot.store import open_queue as open_queue

__all__ = ["Dispatcher", "__version__", "open_queue"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Lazily, so that `pilot --help` and `pilot list` don't load the dispatcher.
    if name == "Dispatcher":
        from pilot.dispatch.dispatcher import Dispatcher

        return Dispatcher
    if name == "open_queue":
        from pilot.store import open_queue

        return open_queue
    raise AttributeError(name)
