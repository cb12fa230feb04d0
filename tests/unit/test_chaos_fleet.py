"""The workers of a chaos run: each is asked to stop once, and started again as what it is to be."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.chaos.fleet import Fleet, Release
from tests.services import wait_until

PATIENCE = 20

#: A worker of two processes. Each says that it got a SIGTERM, and stays.
STAYS = """
import os, signal, time
os.fork()
signal.signal(signal.SIGTERM, lambda *_: print(f"asked {os.getpid()}", flush=True))
signal.signal(signal.SIGCONT, lambda *_: print("is told the rest", flush=True))
print(" ready.", flush=True)
while True:
    time.sleep(0.1)
"""

#: One that ends.
ENDS = 'import time; print(" ready.", flush=True); time.sleep(60)'

MakeFleet = Callable[[str], Fleet]


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[MakeFleet]:
    """Starts a fleet of one worker, which is this program."""
    fleets: list[Fleet] = []

    def make(program: str) -> Fleet:
        def command(slot: int, release: Release) -> tuple[list[str], Mapping[str, str]]:
            return [sys.executable, "-c", program, release], {"PATH": os.environ["PATH"]}

        fleets.append(Fleet(("prefork",), command, tmp_path, "test", (Release.NOW,)))
        fleets[-1].start()
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.stop(0.1)


def lines(fleet: Fleet, word: str) -> list[str]:
    """The lines of the logs that contain this."""
    text = "".join(log.read_text() for log in fleet.logs())
    return [line for line in text.splitlines() if word in line]


def test_each_process_of_a_worker_is_asked_to_stop_once(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(STAYS)
    (slot,) = fleet.slots
    wait_until(lambda: len(lines(fleet, "ready")) == 2, PATIENCE, "two processes")

    assert fleet.ask_each(slot)
    wait_until(lambda: len(lines(fleet, "asked")) == 2, PATIENCE, "two processes that were asked")

    assert not fleet.ask_each(slot)
    assert not fleet.tell(slot, signal.SIGTERM)
    fleet.replace(slot)
    fleet.tell(slot, signal.SIGCONT)  # Python handles it after a SIGTERM that came before.
    wait_until(lambda: lines(fleet, "the rest"), PATIENCE, "all signals")
    fleet.tell(slot, signal.SIGKILL, group=True)
    wait_until(lambda: slot.starts == 2, PATIENCE, "another start")
    assert len(set(lines(fleet, "asked"))) == len(lines(fleet, "asked")) == 2


def test_a_worker_that_is_replaced_is_started_again_as_the_release_that_replaces_it(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(ENDS)
    (slot,) = fleet.slots
    wait_until(slot.is_ready, PATIENCE, "a worker that is ready")
    assert not fleet.has_new_task()

    starts = fleet.replace(slot, Release.NEXT)

    wait_until(lambda: slot.starts > starts, PATIENCE, "another start")
    assert fleet.has_new_task()
    assert slot.process is not None
    assert slot.process.args[-1] == "next"  # type: ignore[index]  # A list, as it was given.
    assert fleet.ends == {"asked or killed": 1}


def test_a_worker_that_is_killed_before_it_is_replaced_is_started_as_the_new_release(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(ENDS)
    (slot,) = fleet.slots
    wait_until(slot.is_ready, PATIENCE, "a worker that is ready")
    fleet.tell(slot, signal.SIGKILL)
    wait_until(lambda: not slot.is_running, PATIENCE, "the end of the worker")

    fleet.replace(slot, Release.NEXT)

    wait_until(fleet.has_new_task, PATIENCE, "the new release")


#: One that has received a message of a task that it does not have.
LACKS_A_TASK = """
import json, time
print(" ready.", flush=True)
print(json.dumps({"event": "task.unknown"}), flush=True)
time.sleep(60)
"""


def test_a_worker_that_lacks_a_task_is_known_by_its_log(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(LACKS_A_TASK)
    wait_until(fleet.has_met_unknown_task, PATIENCE, "the line of the log")


def test_a_worker_that_lacks_no_task_is_not_taken_for_one(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(ENDS)
    wait_until(fleet.slots[0].is_ready, PATIENCE, "a worker that is ready")
    assert not fleet.has_met_unknown_task()
