"""Forecast: what the pool is likely to start within a second, by how long its jobs took."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqs_broker.rules.forecast import HORIZON, SHORTEST, Forecast, Job

MANY = settings(derandomize=True, database=None, max_examples=300)

_ids = count(1)


class Pool:
    """Runs jobs on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.forecast = Forecast(lambda: self.now)

    def start(self, messages: int = 1, **facts: object) -> Job:
        job = Job(next(_ids), **facts)  # type: ignore[arg-type] # mypy cannot tell them apart
        for _ in range(messages):
            self.forecast.started(job)
        return job

    def end(self, job: Job, messages: int = 1) -> None:
        for _ in range(messages):
            self.forecast.ended(job)

    def run(self, seconds: float, messages: int = 1, **facts: object) -> None:
        """Run one job, and nothing beside it."""
        job = self.start(messages, **facts)
        self.now += seconds
        self.end(job, messages)


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_before_anything_has_ended_nobody_knows(pool: Pool) -> None:
    assert pool.forecast.soon(4) is None
    pool.start()
    assert pool.forecast.soon(4) is None


def test_a_process_that_is_free_takes_a_message_at_once(pool: Pool) -> None:
    assert pool.forecast.at_once(4) == 4
    jobs = [pool.start() for _ in range(5)]
    assert [pool.forecast.at_once(processes) for processes in (4, 5, 7)] == [0, 0, 2]
    pool.end(jobs[0])
    assert pool.forecast.at_once(5) == 1


@pytest.mark.parametrize(
    ("seconds", "processes", "messages"),
    [(0.09, 1, 11), (0.09, 4, 44), (0.24, 2, 8), (0.4, 1, 2), (0.75, 3, 4), (0.99, 2, 2)],
)
def test_of_short_tasks_as_many_are_started_within_a_second_as_fit_into_it(
    pool: Pool, seconds: float, processes: int, messages: int
) -> None:
    for _ in range(10):
        pool.run(seconds)
    assert pool.forecast.soon(processes) == messages


@pytest.mark.parametrize("seconds", [1.1, 2, 30, 1_800])
def test_of_tasks_longer_than_a_second_none_is(pool: Pool, seconds: float) -> None:
    pool.run(seconds)
    assert pool.forecast.soon(8) == 0


def test_a_process_that_is_busy_for_more_than_a_second_is_not_expected_to_end(pool: Pool) -> None:
    pool.run(0.099)
    pool.start()
    assert pool.forecast.soon(2) == 20
    pool.now += 1.1
    assert pool.forecast.soon(2) == 10
    pool.start()
    assert pool.forecast.soon(2) == 10
    pool.now += 1.1
    assert pool.forecast.soon(2) == 0


def test_a_few_long_tasks_among_many_short_ones_leave_the_short_ones_their_room(pool: Pool) -> None:
    for _ in range(10):
        for _ in range(20):
            pool.run(0.01)
        pool.run(1_800)
    assert (pool.forecast.soon(1) or 0) >= 1
    for _ in range(5):
        pool.run(0.01)
    assert (pool.forecast.soon(1) or 0) >= 4


def test_after_tasks_of_another_length_it_changes_its_mind_within_a_few(pool: Pool) -> None:
    for seconds, low, high in [(0.01, 70, 100), (60, 0, 0), (0.01, 70, 100)]:
        for _ in range(20):
            pool.run(seconds)
        assert low <= (pool.forecast.soon(1) or 0) <= high
    for _ in range(5):
        pool.run(60)
    assert pool.forecast.soon(1) == 0


# Jobs of many messages


def test_a_job_counts_once_however_many_messages_share_it(pool: Pool) -> None:
    for _ in range(10):
        pool.run(0.5, messages=20, takes=10)
    # Two jobs a process, of ten messages each.
    assert pool.forecast.soon(2) == 40
    pool.start(20, takes=10)
    assert pool.forecast.running == 20
    # The other process is free, and takes ten at once.
    assert pool.forecast.at_once(2) == 10


def test_how_many_share_a_job_does_not_change_how_many_could(pool: Pool) -> None:
    # Else fewer would be held, and fewer would share the next one.
    for messages in (20, 2, 1, 1, 1):
        pool.run(3, messages=messages, takes=10)
    assert (pool.forecast.at_once(2), pool.forecast.soon(2)) == (20, 0)


def test_a_job_has_ended_with_the_first_of_its_messages(pool: Pool) -> None:
    job = pool.start(3, takes=10)
    pool.now += 0.099
    pool.end(job)
    # An event loop has something else to do before it hears of the others.
    pool.now += 100
    pool.end(job, 2)
    assert pool.forecast.soon(1) == 101
    assert (pool.forecast.running, pool.forecast.at_once(1)) == (0, 10)


def test_a_message_that_is_deleted_before_it_runs_says_nothing_of_its_task(pool: Pool) -> None:
    pool.run(0.0, is_measured=False)
    assert pool.forecast.soon(4) is None
    pool.run(30)
    for _ in range(10):
        pool.run(0.0, is_measured=False)
    assert pool.forecast.soon(4) == 0


# Whatever runs

durations = st.floats(0, 7_200)
jobs = st.tuples(durations, st.integers(1, 20), st.sampled_from([1, 10]))


def ran(pool: Pool, each: tuple[float, int, int]) -> None:
    seconds, messages, takes = each
    pool.run(seconds, messages=messages, takes=takes)


@MANY
@given(before=st.lists(jobs), processes=st.integers(0, 200))
def test_whatever_ran_no_more_is_foreseen_than_fits_into_a_second(
    before: list[tuple[float, int, int]], processes: int
) -> None:
    pool = Pool()
    for each in before:
        ran(pool, each)
    soon = pool.forecast.soon(processes)
    assert (soon is None) == (not before)
    assert 0 <= (soon or 0) <= processes * 10 * HORIZON / SHORTEST
    assert processes <= pool.forecast.at_once(processes) <= 10 * processes
    assert pool.forecast.running == 0


@MANY
@given(before=st.lists(durations.filter(lambda seconds: seconds > HORIZON), min_size=1))
def test_of_long_tasks_alone_none_is_ever_foreseen(before: list[float]) -> None:
    pool = Pool()
    for seconds in before:
        pool.run(seconds)
        assert pool.forecast.soon(100) == 0


@MANY
@given(before=st.lists(jobs), seconds=st.floats(0, HORIZON), processes=st.integers(1, 100))
def test_short_tasks_never_starve_whatever_ran_before(
    before: list[tuple[float, int, int]], seconds: float, processes: int
) -> None:
    pool = Pool()
    for each in before:
        ran(pool, each)
    for _ in range(30):
        pool.run(seconds)
    # But for what is left of the others in the average.
    fits = processes * HORIZON / max(seconds, SHORTEST)
    assert (pool.forecast.soon(processes) or 0) >= int(fits * 0.9)


@MANY
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["start", "end", "pass"]), st.integers(0, 10**6), durations),
        max_size=60,
    ),
    processes=st.integers(1, 8),
)
def test_a_process_is_free_busy_or_lasting_and_none_is_counted_twice(
    steps: list[tuple[str, int, float]], processes: int
) -> None:
    pool = Pool()
    pool.run(0.5)
    running: list[tuple[Job, float]] = []
    for what, number, seconds in steps:
        if what == "start" and len(running) < processes:
            running.append((pool.start(), pool.now))
        elif what == "end" and running:
            job, _ = running.pop(number % len(running))
            pool.end(job)
        elif what == "pass":
            pool.now += seconds
        assert pool.forecast.running == len(running)
        assert pool.forecast.at_once(processes) == processes - len(running)
        if all(pool.now - started_at >= HORIZON for _, started_at in running):
            free = processes - len(running)
            assert (pool.forecast.soon(processes) or 0) <= free * HORIZON / SHORTEST
            assert (pool.forecast.soon(processes) == 0) or free
