"""Any failure of a receive: said once, waited out, and gone without a trace once it stops."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest

from devstack import sqs
from devstack.sqs import SqsServer
from sqs_broker.options import Options
from sqs_broker.sqs.settler import THREADS
from tests.faults import proxy
from tests.faults.proxy import (
    EVERY,
    EXPIRED,
    LOST,
    SERVER_ERROR,
    SILENT,
    TRUNCATED,
    Fault,
    FaultProxy,
)
from tests.probe.project import ProbeProject
from tests.services import Queues, wait_until

RECEIVE = "ReceiveMessage"

#: Failures in a row in `make test`, and in `make verify`.
FEW = 3
MANY = 20
#: The same of answers that never come. Each takes 6 s.
SLOW = 8

#: Seconds. Longer than the outages of `make test`: nothing is to be redelivered but what an answer
#: lost.
VISIBILITY = 12

#: Seconds to which the pauses grow, so that many failures in a row take no hour.
LONGEST_PAUSE = 1

#: Seconds for many answers that never come: each costs the long poll, its margin and a pause.
PATIENCE = 60
LONG_PATIENCE = MANY * 20

pytestmark = pytest.mark.slow

#: Connections that the clients may keep beyond their first: no more than calls at a time. What
#: leaked with each fault would be beyond it after a few of them, since one worker sees them all.
KEPT = (THREADS - 1) + (Options.max_receivers - 1)


@dataclass
class Patient:
    """A worker that is to live through everything."""

    project: ProbeProject
    faults: FaultProxy
    worker: "Popen[bytes]"

    def footprint(self) -> tuple[int, int]:
        """Threads and descriptors of the main process."""
        process = Path("/proc") / str(self.worker.pid)
        return len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))

    def send(self, count: int = 3, seconds: float = 0.0) -> list[str]:
        """Messages; their ids."""
        return [self.project.send("work", seconds) for _ in range(count)]

    def wait_for_failures(self, count: int, patience: float = PATIENCE) -> None:
        """Until so many receives were failed since it was planned."""
        wait_until(lambda: self.faults.failed[RECEIVE] >= count, patience, f"{count} failures")


@dataclass
class Seen:
    """What one outage left behind."""

    exit_status: int | None
    ends: dict[str, int]
    """How often each message was done."""
    dead_letters: int
    said: list[str]
    """The kinds of failure in the log, in order."""
    recoveries: int
    threads: int
    """More, or fewer, than before the first outage of this worker."""
    descriptors: int


@pytest.fixture(scope="module")
def first_footprint() -> dict[int, tuple[int, int]]:
    """Of each worker, before anything failed."""
    return {}


@pytest.fixture(scope="module")
def patient(
    sqs_server: SqsServer,
    tmp_path_factory: pytest.TempPathFactory,
    first_footprint: dict[int, tuple[int, int]],
) -> Iterator[Patient]:
    """One worker for all faults of the module: each finds it as the one before has left it."""
    client = sqs_server.client()
    pair = sqs.create_queues(
        client, "test-receive-faults", visibility_timeout=VISIBILITY, max_receive_count=10
    )
    queues = Queues(client, sqs_server.endpoint_url, pair.url, pair.dead_letter_url)
    with proxy.running(queues.endpoint_url) as (faults, url):
        project = ProbeProject(
            tmp_path_factory.mktemp("receive-faults") / "project",
            queues,
            transport={
                "endpoint_url": url,
                "visibility_timeout": VISIBILITY,
                "receive_pause_max": LONGEST_PAUSE,
            },
        )
        try:
            patient = Patient(project, faults, project.start())
            # Long enough for the heartbeat to open its connection.
            for id_ in patient.send(count=1, seconds=VISIBILITY / 2):
                project.wait_for_end(id_)
            assert faults.calls["ChangeMessageVisibilityBatch"]
            first_footprint[patient.worker.pid] = patient.footprint()
            yield patient
        finally:
            project.close()
    client.delete_queue(QueueUrl=queues.url)
    client.delete_queue(QueueUrl=queues.dead_letter_url)
    client.close()


@pytest.mark.parametrize("fault", [SERVER_ERROR, EXPIRED, TRUNCATED], ids=lambda fault: fault.name)
def test_a_fault_that_repeats_and_stops_leaves_no_trace(
    patient: Patient, first_footprint: dict[int, tuple[int, int]], fault: Fault
) -> None:
    seen = outlive(patient, first_footprint, fault, times=FEW)

    assert_no_trace(seen)
    # Another fault of its kind may have been said within this minute.
    assert len(seen.said) <= 1


def test_a_server_that_is_away_and_comes_back_leaves_no_trace(
    patient: Patient, first_footprint: dict[int, tuple[int, int]]
) -> None:
    logged = len(patient.project.worker_log())
    ids = patient.send(seconds=1)
    wait_until(lambda: patient.project.events(ids[0], "start"), PATIENCE, "a message in flight")

    patient.faults.go_down()
    ids += patient.send()
    # Nobody can count the calls that are refused: long enough for several of them.
    end = time.monotonic() + 4
    wait_until(lambda: time.monotonic() > end, PATIENCE, "the end of the outage")
    patient.faults.come_up()

    seen = examine(patient, first_footprint, ids, logged)
    assert_no_trace(seen)
    assert len(set(seen.said)) == len(seen.said)


@pytest.mark.timeout(LONG_PATIENCE)
def test_a_server_that_refuses_twenty_times_leaves_no_trace(
    patient: Patient, first_footprint: dict[int, tuple[int, int]]
) -> None:
    logged = len(patient.project.worker_log())
    patient.project.wait_for_empty_queue()

    patient.faults.go_down()
    ids = patient.send()
    # Nobody can count the calls that are refused: one follows the other within the longest pause.
    end = time.monotonic() + MANY * LONGEST_PAUSE + 2
    wait_until(lambda: time.monotonic() > end, LONG_PATIENCE, "the end of the outage")
    patient.faults.come_up()

    seen = examine(patient, first_footprint, ids, logged)
    assert_no_trace(seen)
    # The poll that was cut off, and those that were refused: each kind once.
    assert len(set(seen.said)) == len(seen.said)


def test_messages_of_an_answer_that_is_lost_come_again(
    patient: Patient, first_footprint: dict[int, tuple[int, int]]
) -> None:
    logged = len(patient.project.worker_log())
    patient.faults.fail(RECEIVE, LOST, last=1)
    # The poll that will be lost is open, and takes what is sent now.
    patient.wait_for_failures(1)
    ids = patient.send(count=1)

    seen = examine(patient, first_footprint, ids, logged)

    assert_no_trace(seen)
    (start,) = patient.project.events(ids[0], "start")
    assert start["redelivered"]


@pytest.mark.timeout(LONG_PATIENCE + 120)
@pytest.mark.parametrize("fault", EVERY, ids=lambda fault: fault.name)
def test_a_fault_that_repeats_many_times_leaves_no_trace(
    patient: Patient, first_footprint: dict[int, tuple[int, int]], fault: Fault
) -> None:
    started = time.monotonic()
    times = SLOW if fault is SILENT else MANY

    seen = outlive(patient, first_footprint, fault, times=times, patience=LONG_PATIENCE)

    assert_no_trace(seen)
    assert len(seen.said) <= 1 + (time.monotonic() - started) / 60


@pytest.mark.timeout(LONG_PATIENCE + 120)
def test_faults_of_all_kinds_in_turn_leave_no_trace(
    patient: Patient, first_footprint: dict[int, tuple[int, int]]
) -> None:
    seen = outlive(patient, first_footprint, *EVERY, times=MANY, patience=LONG_PATIENCE)

    assert_no_trace(seen)


def outlive(
    patient: Patient,
    first_footprint: dict[int, tuple[int, int]],
    *faults: Fault,
    times: int,
    patience: float = PATIENCE,
) -> Seen:
    """Let so many receives in a row fail while messages are in flight, then no more."""
    logged = len(patient.project.worker_log())
    ids = patient.send(seconds=1)
    wait_until(lambda: patient.project.events(ids[0], "start"), PATIENCE, "a message in flight")

    patient.faults.fail(RECEIVE, *faults, last=times)
    ids += patient.send()
    patient.wait_for_failures(times, patience)

    return examine(patient, first_footprint, ids, logged)


def examine(
    patient: Patient,
    first_footprint: dict[int, tuple[int, int]],
    ids: list[str],
    logged: int,
) -> Seen:
    """Wait for the messages, and look at what there is besides.

    `logged` characters of the log are from before.
    """
    for id_ in ids:
        patient.project.wait_for_end(id_, PATIENCE)
    before = first_footprint[patient.worker.pid]
    now = settled(patient, before)
    with suppress(TimeoutError):
        wait_until(lambda: is_told(patient.project.worker_log()[logged:]), 30, "the recovery")
    log = patient.project.worker_log()[logged:]
    return Seen(
        exit_status=patient.worker.poll(),
        dead_letters=len(patient.project.queues.dead_letters()),
        ends={id_: len(patient.project.events(id_, "end")) for id_ in ids},
        said=re.findall(r" fails \(([^)]*)\)", log),
        recoveries=log.count(" works again."),
        threads=now[0] - before[0],
        descriptors=now[1] - before[1],
    )


def is_told(log: str) -> bool:
    """Whether a recovery follows the last failure that was said, if one was."""
    return log.rfind(" works again.") >= log.rfind(" fails (")


def settled(patient: Patient, before: tuple[int, int]) -> tuple[int, int]:
    """The footprint, once it is no more than before or has had its time."""

    def is_no_more() -> bool:
        threads, descriptors = patient.footprint()
        return threads <= before[0] and descriptors <= before[1] + KEPT

    with suppress(TimeoutError):
        wait_until(is_no_more, 30, "the footprint of before")
    return patient.footprint()


def assert_no_trace(seen: Seen) -> None:
    assert seen.exit_status is None
    assert set(seen.ends.values()) == {1}
    assert seen.dead_letters == 0
    # What was said to fail is said to work again; another fault of a kind may be within its minute.
    assert bool(seen.recoveries) == bool(seen.said)
    assert seen.recoveries <= len(seen.said)
    # Fewer if calls ran at that time that have ended: their threads end a little later.
    assert -3 <= seen.threads <= 0
    # Fewer if connections were cut, which are made anew when they are needed. Some
    # more where calls ran at the same time: their connections are kept for the next time.
    assert -3 <= seen.descriptors <= KEPT
