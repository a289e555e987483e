"""The engines, and what is no other's than one's own: every other test of this folder runs on each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

ENGINES = ("sqlite", "postgres")
"""A new engine is a word here and a case in `conftest`."""

Places = Callable[[], AbstractContextManager[str]]
"""Gives the URL of a store that is as new, for as long as it is needed."""

SQLITE_ALONE: Mapping[str, str] = {
    "test_crash::test_a_full_database_says_so_to_everybody_and_goes_on_with_room": "a limit of pages is a PRAGMA",
    "test_crash::test_who_finds_the_store_locked_waits": "the lock of a file",
    "test_crash::test_who_waited_long_enough_is_told_and_nothing_was_written": "the lock of a file",
    "test_group_commit::test_a_connection_that_breaks_and_can_not_even_be_closed_holds_up_nobody": "an I/O error",
    "test_group_commit::test_a_row_that_nobody_can_read_stops_its_own_project_only": "PostgreSQL refuses such bytes",
    "test_history::test_no_read_walks_the_finished_rows": "plans as text; PostgreSQL's are in test_postgres_plans",
    "test_migrate::test_the_writing_connection_waits_for_the_disk": "a PRAGMA; PostgreSQL's is in test_postgres_engine",
    "test_signals::test_a_dead_listener_is_forgotten": "pipes in a folder",
    "test_signals::test_a_listener_that_is_closed_leaves_nothing_behind": "pipes in a folder",
}
"""Tests that have a store, and one of SQLite's alone: the reason. Those of files and plans as text ask for no `url`."""


def engines_of(module: str, function: str) -> tuple[str, ...]:
    """Those that a test runs on."""
    return ENGINES[:1] if f"{module.rpartition('.')[2]}::{function}" in SQLITE_ALONE else ENGINES


@contextmanager
def in_memory() -> Iterator[str]:
    """A SQLite file that is on no disk, where that can be had."""
    shared_memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=shared_memory if shared_memory.is_dir() else None)
    try:
        yield f"sqlite:///{folder}/pilot.db"
    finally:
        shutil.rmtree(folder)
