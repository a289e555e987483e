"""SPEC's twelve invariants, and what README promises of plans, workers and nodes besides: where each is tried to be
broken, and the parts of them that no other file tries."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.errors import StoreError
from pilot.domain.execution import Execution
from pilot.domain.outcome import FailureClass
from pilot.domain.policy import Park
from pilot.domain.ports import Finish
from pilot.store import Store, open_store
from tests.store.bed import HOUR, START, Bed, Clock, again, asked, broken, done

INVARIANTS: dict[int, tuple[str, dict[str, list[str]]]] = {
    1: (
        "at most max_running run in a project, by the database itself",
        {
            "store/test_claim": ["test_the_database_itself_refuses_a_second_in_a_slot", "test_one_slot_runs_one"],
            "e2e/test_serve_share": ["test_two_daemons_share_twelve_tasks_and_none_is_done_twice"],
        },
    ),
    2: (
        "first in, first out; what waits holds up nobody",
        {
            "store/test_claim": [
                "test_first_in_first_out_by_priority_and_id",
                "test_a_row_that_waits_never_holds_up_the_rows_behind_it",
            ],
            "core/test_dispatcher": ["test_what_was_queued_before_the_start_runs_in_order_and_nothing_is_reaped"],
        },
    ),
    3: (
        "one open execution per task, one per key for ever",
        {
            "store/test_enqueue": [
                "test_a_hundred_that_ask_for_one_task_at_once_get_one",
                "test_a_repeated_key_returns_the_first_even_when_it_has_ended",
            ]
        },
    ),
    4: (
        "what was acknowledged is durable",
        {
            "store/test_migrate": ["test_the_writing_connection_waits_for_the_disk"],
            "e2e/test_serve_crash": ["test_kills_at_random_moments_with_six_tasks_in_two_repositories"],
        },
    ),
    5: (
        "every change of state is a compare-and-set, with its event in the same transaction",
        {
            "store/test_finish": ["test_a_lost_lease_writes_nothing_at_all"],
            "store/test_journal": ["test_a_lost_claim_says_nothing_even_beside_the_right_one_in_one_commit"],
            "store/test_model": ["test_long_walks"],
        },
    ),
    6: (
        "final states never change",
        {
            "store/test_people": ["test_nothing_ends_twice"],
            "store/test_finish": ["test_cancel_and_finish_at_once_end_in_one_state"],
            "unit/test_execution": ["test_nothing_leaves_a_final_state"],
        },
    ),
    7: (
        "recovery goes by lease and boot id, never by age; orphans end first",
        {
            "store/test_nodes": ["test_a_lease_ends_by_its_time_whatever_the_age"],
            "core/test_maintenance": ["test_nothing_is_admitted_before_what_was_left_is_cleared"],
            "e2e/test_claude_serve": ["test_kill_9_in_a_tool_call_ends_the_orphans_and_goes_on_in_the_session"],
        },
    ),
    8: (
        "shutdown, lost node, cancel and limits cost nothing",
        {
            "store/test_finish": ["test_a_shutdown_costs_nothing_and_forgets_nothing"],
            "store/test_enqueue": ["test_waiting_is_never_a_failure"],
            "unit/test_policy": ["test_shutdowns_and_questions_cost_nothing"],
        },
    ),
    9: (
        "a failed read is no empty result, success needs evidence",
        {
            "core/test_maintenance": ["test_a_failed_read_at_the_start_is_not_taken_for_nothing_there"],
            "core/test_dispatcher": ["test_a_failed_look_is_looked_at_again"],
            "adapters/test_claude_code": ["test_every_failure_has_its_class_and_its_evidence"],
            "e2e/test_invariants": ["test_no_read_of_a_damaged_store_is_empty"],
        },
    ),
    10: (
        "no lost wake-up: signals are hints",
        {"core/test_dispatcher": ["test_lost_signals_cost_one_poll_interval"]},
    ),
    11: (
        "effects outside happen once",
        {"e2e/test_invariants": ["test_one_effect_is_owed_once"]},
    ),
    12: (
        "times are UTC ms of one clock",
        {"e2e/test_invariants": ["test_every_stored_time_is_the_store_s_clock", "test_there_is_one_clock"]},
    ),
}
PROMISES: dict[str, dict[str, list[str]]] = {
    "A worker that died, slept or was cut off changes nothing any more": {
        "store/test_work_queue": [
            "test_who_lost_its_claim_changes_nothing",
            "test_ended_leases_go_back_uncounted_and_fail_after_max_attempts_in_a_row",
            "test_the_last_word_again_gives_the_same_answer",
        ],
        "adapters/test_api_work": ["test_a_stale_fence_changes_nothing"],
        "store/test_pool_crowd": ["test_twenty_claimers_in_several_processes_and_one_that_is_killed"],
        "e2e/test_worker": [
            "test_what_a_killed_worker_held_goes_to_another",
            "test_a_worker_that_slept_past_its_lease_changes_nothing",
        ],
    },
    "A plan goes in whole, and once": {
        "store/test_plans": [
            "test_a_bad_plan_fails_alone_and_leaves_nothing",
            "test_the_same_plan_again_changes_nothing_also_when_it_has_ended",
        ],
        "store/test_instant": ["test_what_is_known_is_pointed_to"],
        "core/test_step_base": [
            "test_a_step_after_several_starts_from_all_of_them",
            "test_a_green_check_of_a_merge_has_it_as_its_branch",
        ],
    },
    "Commands of plans stay inside": {
        "core/test_payloads": [
            "test_nothing_is_allowed_unless_it_is_said",
            "test_its_words_are_its_own_and_no_shell_s",
            "test_in_the_sandbox_an_allowed_command_sees_what_agents_see",
        ],
        "core/test_confined": ["test_a_folder_that_is_swapped_while_it_is_walked_leads_nowhere_else"],
    },
    "A callback reaches nobody inside your network": {
        "adapters/test_addresses": [
            "test_one_address_inside_is_enough",
            "test_a_name_is_asked_for_once_and_called_at_that_answer",
        ],
        "adapters/test_callbacks": [
            "test_addresses_inside_are_not_called_and_people_learn_it",
            "test_kill_9_between_the_post_and_its_note_tells_it_again_by_the_same_name",
        ],
    },
    "A lost node costs no task, and two nodes never work on one": {
        "faults/test_nodes": [
            "test_what_a_killed_node_of_two_had_is_taken_over_and_done_once",
            "test_of_four_nodes_one_stands_still_one_is_cut_off_and_one_is_killed",
            "test_a_node_that_loses_its_network_ends_its_agents_before_another_takes_over",
        ],
        "faults/test_server": [
            "test_a_server_that_is_restarted_hard_and_commits_whose_answers_are_lost",
            "test_a_full_disk_of_the_database_loses_nothing",
        ],
        "faults/test_planted": ["test_each_planted_bug_is_found"],
        "core/test_nodes": ["test_what_a_lost_machine_ran_is_taken_back_when_its_lease_ends"],
        "e2e/test_nodes_serve": ["test_a_killed_daemon_and_a_killed_server_lose_nothing"],
    },
    "What was begun goes on where it lies": {
        "store/test_places": [
            "test_what_was_begun_goes_on_where_it_lies",
            "test_it_goes_to_another_place_when_the_lease_of_its_own_has_ended",
        ],
        "core/test_nodes": ["test_an_answer_sends_it_back_to_where_it_was_begun"],
    },
    "Who slept through an upgrade writes nothing": {
        "store/test_epoch": ["test_a_process_of_before_an_upgrade_writes_nothing_more"],
        "core/test_nodes": ["test_a_node_whose_store_a_newer_pilot_took_over_ends_and_says_so"],
    },
    "A copied store is the same store": {
        "store/test_copying": [
            "test_from_a_file_to_a_server_and_back_is_the_same_store",
            "test_nobody_writes_to_the_source_meanwhile_and_nobody_uses_the_copy",
            "test_killed_at_any_point_it_goes_on",
            "test_what_is_not_as_in_the_source_is_found",
        ],
    },
}
"""By README's own words."""
EFFECT = "INSERT INTO outbox (lane, kind, key, fence, payload, available_at, delivered_at, created_at)"
FAR = START + 10 * HOUR
TESTS = Path(__file__).parents[1]
PRODUCT = TESTS.parent / "pilot"


@pytest.mark.parametrize("number", range(1, 13))
def test_each_has_tests_that_try_to_break_it(number: int) -> None:
    words, files = INVARIANTS[number]
    _are_there(f"{number}, {words}", files)


@pytest.mark.parametrize("words", PROMISES)
def test_so_has_each_promise_besides(words: str) -> None:
    assert f"\n| {words} | " in (PRODUCT.parent / "README.md").read_text()
    _are_there(words, PROMISES[words])


def _are_there(words: str, files: dict[str, list[str]]) -> None:
    for file, names in files.items():
        there = re.findall(r"def (test_\w+)", (TESTS / f"{file}.py").read_text())
        assert set(names) <= set(there), f"{words}: {sorted(set(names) - set(there))} of {file} are gone"


async def _lived(bed: Bed) -> None:
    """Every kind of row and of end there is, an hour after the other."""
    api = await bed.project()
    await bed.node()
    for _ in range(4):
        await bed.put(api)
    await bed.put(api, after=(4,))
    ends: list[Callable[[Execution], Finish]] = [
        asked,
        done,
        broken,
        lambda execution: again(execution, bed.clock.now),
        lambda execution: again(execution, bed.clock.now, park=Park("agent", FailureClass.QUOTA, "later", FAR)),
    ]
    for end in ends:
        bed.clock.tick(HOUR)
        execution = await bed.take(api, lease=HOUR)
        await bed.journal.note(execution, phase="agent")
        await bed.journal.write(execution, [(OutputKind.TEXT, b"words")])
        await bed.queue.finish(end(execution))
    await bed.queue.answer(1, "blue", "ann")
    await bed.queue.pause(api.id, "ann", "lunch")
    await bed.sql(f"{EFFECT} VALUES ('task:1:T', 'tell', 'k', 1, '{{}}', :now, :now, :now)", now=bed.clock.now)


READS: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "execution": lambda s: s.history.execution(1),
    "executions": lambda s: s.history.executions(),
    "attempts": lambda s: s.history.attempts(1),
    "questions": lambda s: s.history.questions(1),
    "output": lambda s: s.history.output(1),
    "events": lambda s: s.history.events(),
    "why": lambda s: s.history.why(1, START),
    "counts": lambda s: s.history.counts(),
    "projects": lambda s: s.history.projects(),
    "find_project": lambda s: s.history.find_project("api"),
    "paused_by": lambda s: s.history.paused_by(1),
    "dependents": lambda s: s.history.dependents(1),
    "status": lambda s: s.history.status(START),
    "get": lambda s: s.queue.get(1),
    "ready": lambda s: s.queue.ready(),
    "next_due": lambda s: s.queue.next_due(),
    "nodes": lambda s: s.queue.nodes(),
    "held_by": lambda s: s.queue.held_by(["n1"]),
    "cancels": lambda s: s.queue.cancels("n1"),
    "claim": lambda s: s.queue.claim("n1", lease=1000, projects=(1,)),
    "heartbeat": lambda s: s.queue.heartbeat("n1", 1000),
    "recover": lambda s: s.queue.recover(["n1"], "gone"),
    "expire_parks": lambda s: s.queue.expire_parks(),
}


async def test_no_read_of_a_damaged_store_is_empty(tmp_path: Path) -> None:
    """Tables that are gone stand for whatever keeps a database from being read."""
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=(clock := Clock())) as store:
        await _lived(Bed(store, clock))
        with sqlite3.connect(tmp_path / "pilot.db") as other:
            tables = [name for (name,) in other.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            for table in set(tables) - {"sqlite_sequence", "store"}:
                other.execute(f"DROP TABLE {table}")
        other.close()
        empty = []
        for name, read in READS.items():
            try:
                empty.append(f"{name}: {await read(store)!r}")
            except StoreError:
                continue
        assert empty == []


async def test_one_effect_is_owed_once(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=(clock := Clock())) as store:
        await _lived(bed := Bed(store, clock))
        with pytest.raises(StoreError, match="UNIQUE"):
            await bed.sql(f"{EFFECT} VALUES ('task:1:T', 'tell', 'k', 2, '{{}}', 1, NULL, 1)")


async def test_every_stored_time_is_the_store_s_clock(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=(clock := Clock())) as store:
        await _lived(bed := Bed(store, clock))
        seen = set()
        for table, rows in (await bed.dump()).items():
            columns = await bed.rows(f"SELECT name, type FROM pragma_table_info('{table}')")
            for place, (column, kind) in enumerate(columns):
                if not re.search(r"(^|_)(at|until|since)$", column):
                    continue
                assert kind == "INTEGER", f"{table}.{column}"
                free = column == "claimed_until"  # 0: nobody has it in hand
                times = [row[place] for row in rows if row[place] is not None and not (free and row[place] == 0)]
                assert all(type(time) is int for time in times), f"{table}.{column}"
                assert all(START <= time <= FAR for time in times), f"{table}.{column}: {times}"
                seen |= {f"{table}.{column}"} if times else set()
        assert {"executions.finished_at", "attempts.started_at", "events.at", "output.at", "parks.until"} <= seen
        assert len(seen) >= 17, sorted(seen)


def test_there_is_one_clock() -> None:
    wall = re.compile(
        r"\btime\.(time|time_ns|gmtime|localtime|strftime)\(|\.(utc)?now\(\w*\)|\.today\(|CURRENT_T|'now'|unixepoch"
    )
    found = [
        f"{path.relative_to(PRODUCT)}: {line.strip()}"
        for path in [*PRODUCT.rglob("*.py"), *PRODUCT.rglob("*.sql")]
        for line in path.read_text().splitlines()
        if wall.search(line.replace("session.now()", ""))
    ]
    assert found == ["store/__init__.py: return time.time_ns() // 1_000_000"]
