"""The pool of processes gets each job and each result as it was sent, whatever its size."""

import os
import select
from collections.abc import Callable, Iterator
from inspect import isgenerator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from kombu.asynchronous import Hub, set_event_loop
from kombu.asynchronous.timer import Timer

from sqs_broker.worker.prefork import Processes
from tests.services import wait_until

DEADLINE = 60

#: Characters of a job. The system writes up to PIPE_BUF bytes as a whole, and keeps 64 KiB in a
#: pipe that nobody reads.
SIZES = [
    0, 1, 1_000, *range(select.PIPE_BUF - 150, select.PIPE_BUF + 10), 10_000, 65_536, 3_000_000
]  # fmt: skip


def told(text: str) -> tuple[int, str]:
    """What a process has got."""
    return os.getpid(), text


def make(path: str) -> None:
    """Show that this job runs."""
    Path(path).touch()


class Pool:
    """Processes and their event loop."""

    def __init__(self, processes: int) -> None:
        self.hub = Hub(timer=Timer())
        set_event_loop(self.hub)
        self.processes = Processes(processes=processes, threads=False, synack=False)
        self.processes.register_with_event_loop(self.hub)
        self._turns = self.hub.create_loop()

    def put(self, text: str, done: Callable[[Any], Any]) -> None:
        self.processes.apply_async(told, args=(text,), callback=done)

    def turn_until(self, condition: Callable[[], Any]) -> None:
        deadline = monotonic() + DEADLINE
        while not condition():
            assert monotonic() < deadline, "not in time"
            next(self._turns)

    def wait_for_both(self) -> None:
        """Wait until each process has run something."""
        seen: set[int] = set()

        def again(result: tuple[int, str]) -> None:
            seen.add(result[0])
            if len(seen) < 2:
                self.put("", again)

        for _ in range(2):
            self.put("", again)
        self.turn_until(lambda: len(seen) == 2)

    def close(self) -> None:
        self.processes.terminate()
        self.hub.close()
        set_event_loop(None)


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = Pool(getattr(request, "param", 2))
    yield pool
    pool.close()


one_process = pytest.mark.parametrize("pool", [1], indirect=True)


def test_jobs_of_any_size_arrive_whole_and_each_process_has_some(pool: Pool) -> None:
    pool.wait_for_both()
    got: list[tuple[int, str]] = []
    for number, size in enumerate(SIZES):
        pool.put(chr(ord("a") + number % 26) * size, got.append)
    pool.turn_until(lambda: len(got) == len(SIZES))
    assert sorted(text for _, text in got) == sorted(
        chr(ord("a") + number % 26) * size for number, size in enumerate(SIZES)
    )
    assert len({pid for pid, _ in got}) == 2


def test_a_job_that_is_put_while_the_others_run_gets_the_first_process_that_is_free(
    pool: Pool,
) -> None:
    got: list[tuple[int, str]] = []

    def again(result: tuple[int, str]) -> None:
        got.append(result)
        if len(got) <= 50:
            pool.put(f"job {len(got)}", again)

    pool.put("first", again)
    pool.turn_until(lambda: len(got) == 51)
    assert {text for _, text in got} == {"first", *(f"job {number}" for number in range(1, 51))}


def test_a_job_is_written_at_once_if_a_process_is_free(pool: Pool, tmp_path: Path) -> None:
    pool.wait_for_both()
    pool.processes.apply_async(make, args=(str(tmp_path / "runs"),))
    # Without a turn of the loop.
    wait_until((tmp_path / "runs").exists, DEADLINE, "a job that runs")


@one_process
def test_jobs_run_in_the_order_in_which_they_were_put(pool: Pool) -> None:
    got: list[str] = []

    def done(result: tuple[int, str]) -> None:
        got.append(result[1])
        if result[1] == "b":
            pool.put("e", done)

    for text in "abcd":
        pool.put(text, done)
    pool.turn_until(lambda: len(got) == 5)
    assert got == [*"abcde"]


@one_process
def test_a_result_that_was_read_in_part_before_a_stop_is_whole(pool: Pool) -> None:
    got: list[tuple[int, str]] = []
    text = "x" * 3_000_000
    pool.put(text, got.append)
    pool.turn_until(lambda: any(isgenerator(call) for call, _ in pool.hub.readers.values()))
    pool.processes.close()
    pool.processes.join()
    assert [text for _, text in got] == [text]
