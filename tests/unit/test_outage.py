"""Outage: a hint leads to a probe, and the probe decides."""

import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from app.outage import AWAY, RUN_AGAIN_AFTER, Outage
from devstack.waiting import wait_until
from sqs_broker.rules.outcomes import Failed, Happened, Interrupted
from sqs_broker.rules.suspicion import Suspicion

#: Seconds that nothing here comes near to.
DEADLINE = 5

#: Seconds after an outage in which runs may still fail of it.
AFTERMATH = 60

#: Seconds that this deliveries hides what is handed back in a pause.
HIDDEN = 25

OTHERWISE = Failed("AutoReconnect", "it failed in each attempt")


class Deliveries:
    """What is paused."""

    def __init__(self) -> None:
        self.on_suspicion: Callable[[Suspicion], None] = Suspicion.dismiss
        self.told: list[str] = []
        self.release_after = 0

    def pause(self, reason: str, release_after: float) -> None:
        self.told.append(f"pause: {reason}")
        self.release_after = HIDDEN

    def resume(self, reason: str) -> None:
        self.told.append(f"resume: {reason}")
        self.release_after = 0


class Database:
    """Answers the probes."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.is_broken = False
        self.probes = 0
        self.answers = threading.Event()
        self.answers.set()

    def find_error(self) -> str | None:
        self.answers.wait(DEADLINE)
        self.probes += 1
        if self.is_broken:
            raise RuntimeError
        return self.error


@pytest.fixture
def deliveries() -> Deliveries:
    return Deliveries()


@pytest.fixture
def database() -> Database:
    """It is there, until its `error` is set."""
    return Database()


@pytest.fixture
def watched(deliveries: Deliveries, database: Database) -> Iterator[Outage]:
    """Watches the deliveries, and probes often in an outage."""
    made = Outage(database.find_error, AFTERMATH, pauses=(0.01, 0.01))
    made.watch(deliveries)
    yield made
    made.stop()


Suspect = Callable[..., list[Happened]]


@pytest.fixture
def suspect(watched: Outage, deliveries: Deliveries) -> Suspect:
    """Lets a run fail that has started now, or so many seconds from now; what becomes of it."""

    def make(started_in: float = 0) -> list[Happened]:
        concluded: list[Happened] = []
        started_at = monotonic() + started_in
        deliveries.on_suspicion(
            Suspicion("AutoReconnect", started_at, 1, OTHERWISE, concluded.append)
        )
        return concluded

    return make


def verdict(concluded: list[Happened]) -> Happened:
    wait_until(lambda: concluded, DEADLINE, "the verdict")
    (happened,) = concluded
    return happened


def test_a_failure_while_mongodb_answers_is_a_failure(
    suspect: Suspect, deliveries: Deliveries, database: Database
) -> None:
    assert verdict(suspect()) == OTHERWISE
    assert (deliveries.told, database.probes) == ([], 1)


@pytest.mark.usefixtures("watched")
def test_without_a_hint_nobody_probes(database: Database) -> None:
    with pytest.raises(TimeoutError):
        wait_until(lambda: database.probes, 0.05, "a probe")


def test_a_failed_probe_pauses_the_worker_until_one_succeeds_and_both_are_said_once(
    suspect: Suspect, deliveries: Deliveries, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    database.error = "ServerSelectionTimeoutError"
    assert verdict(suspect()) == Interrupted("AutoReconnect", HIDDEN)
    wait_until(lambda: database.probes > 3, DEADLINE, "more probes")
    assert deliveries.told == [f"pause: {AWAY}"]
    database.error = None
    wait_until(lambda: len(deliveries.told) > 1, DEADLINE, "the end")
    assert deliveries.told == [f"pause: {AWAY}", f"resume: {AWAY}"]
    wait_until(lambda: len(caplog.records) == 2, DEADLINE, "the line")
    said = [vars(record)["event"] for record in caplog.records]
    assert said == ["outage.begins", "outage.ends"]
    probes = database.probes
    with pytest.raises(TimeoutError):
        wait_until(lambda: database.probes > probes, 0.05, "a probe without a hint")


def test_failures_that_come_while_a_probe_is_under_way_share_its_verdict_or_the_next(
    suspect: Suspect, database: Database
) -> None:
    database.error = "AutoReconnect"
    database.answers.clear()
    failures = [suspect() for _ in range(5)]
    database.answers.set()
    assert {verdict(failure) for failure in failures} == {Interrupted("AutoReconnect", HIDDEN)}


def test_in_an_outage_a_failure_needs_no_further_probe(
    suspect: Suspect, deliveries: Deliveries, database: Database
) -> None:
    database.error = "AutoReconnect"
    verdict(suspect())
    wait_until(lambda: deliveries.told, DEADLINE, "the pause")
    database.answers.clear()
    assert verdict(suspect()) == Interrupted("AutoReconnect", HIDDEN)
    database.answers.set()


@pytest.mark.parametrize(
    ("started_in", "counts"), [(-60, False), (AFTERMATH - 1, False), (AFTERMATH + 60, True)]
)
def test_a_run_that_met_an_outage_failed_of_it_though_that_is_over(
    suspect: Suspect, deliveries: Deliveries, database: Database, started_in: float, counts: bool
) -> None:
    database.error = "AutoReconnect"
    verdict(suspect())
    database.error = None
    wait_until(lambda: len(deliveries.told) == 2, DEADLINE, "the end of the outage")
    of_outage = Interrupted("AutoReconnect", RUN_AGAIN_AFTER)
    assert verdict(suspect(started_in)) == (OTHERWISE if counts else of_outage)


def test_a_second_outage_right_after_the_first_is_noticed(
    suspect: Suspect, deliveries: Deliveries, database: Database
) -> None:
    for number in (1, 2):
        database.error = "AutoReconnect"
        assert verdict(suspect()) == Interrupted("AutoReconnect", HIDDEN)
        database.error = None
        wait_until(lambda n=number: len(deliveries.told) == 2 * n, DEADLINE, "the end")


def test_an_outage_goes_on_where_the_worker_gets_a_new_deliveries(
    watched: Outage, suspect: Suspect, database: Database
) -> None:
    database.error = "AutoReconnect"
    verdict(suspect())
    watched.stop()
    another = Deliveries()
    watched.watch(another)
    assert another.told == [f"pause: {AWAY}"]
    database.error = None
    wait_until(lambda: len(another.told) == 2, DEADLINE, "the end")
    assert another.told[-1] == f"resume: {AWAY}"


def test_a_probe_that_breaks_ends_neither_the_thread_nor_the_outage(
    suspect: Suspect, deliveries: Deliveries, database: Database
) -> None:
    database.error = "AutoReconnect"
    verdict(suspect())
    database.is_broken, probes = True, database.probes
    wait_until(lambda: database.probes > probes + 1, DEADLINE, "probes that break")
    assert deliveries.told == [f"pause: {AWAY}"]
    database.error, database.is_broken = None, False
    wait_until(lambda: len(deliveries.told) == 2, DEADLINE, "the end")
