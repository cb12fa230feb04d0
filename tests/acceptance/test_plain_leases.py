"""Jobs of ten plain messages whose leases are lost while they run, or whose outcomes SQS does not
take: each message is stored once, and what another worker may hold is not deleted."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pymongo import MongoClient

from tests.acceptance.lane import TEN, Lane, lanes
from tests.acceptance.worker import Place
from tests.faults.proxy import EXPIRED, RESET, SERVER_ERROR, Fault, refused

pytestmark = pytest.mark.slow

#: Seconds of a lease, and the time limits of a task.
VISIBILITY, HARD, SOFT = 6, 5, 4

#: Milliseconds of a job: a lease is extended while it runs.
LONG = 2_500

EXTEND, DELETE = "ChangeMessageVisibilityBatch", "DeleteMessageBatch"


#: SQS deletes what it is asked to, and half of its answer arrives.
HALF_AN_ANSWER = replace(refused(of=TEN), name="half an answer", sent=40)


@pytest.fixture(scope="module")
def lane(
    where: Place, mongo_client: MongoClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lane]:
    variables = {
        "SQS_VISIBILITY_TIMEOUT": str(VISIBILITY),
        "TASK_TIME_LIMIT": str(HARD),
        "TASK_SOFT_TIME_LIMIT": str(SOFT),
    }
    with lanes(where, mongo_client, tmp_path_factory.mktemp("lane") / "one", **variables) as made:
        yield made


def test_a_job_whose_receipt_handles_sqs_refuses_deletes_nothing_and_each_message_runs_again(
    lane: Lane,
) -> None:
    with lane.slow_inserts(LONG):
        lane.faults.fail(EXTEND, refused(*range(TEN), of=TEN), last=1)
        ids = lane.send_together("refused")
        lane.wait_for_a_job("refused", TEN)
        lane.wait_for_lines("lease.lost", ids)
        deleted = lane.faults.calls[DELETE]
        lane.wait_for_events("task-succeeded", ids)
        assert lane.faults.calls[DELETE] == deleted
        assert lane.lines("message.done", ids) == {}
    lane.assert_each_is_done_once(ids)
    lost, done = lane.lines("lease.lost", ids), lane.lines("message.done", ids)
    assert {line["deliveries"] for lines in lost.values() for line in lines} == {1}
    assert {line["deliveries"] for lines in done.values() for line in lines} == {2}
    assert [len(lost[id_]) for id_ in ids] == [1] * TEN
    assert set(lane.deliveries(ids).values()) == {2}
    twice = ["task-received", "task-started", "task-succeeded"] * 2
    lane.wait_for(lambda: all(lane.of(id_) == twice for id_ in ids), "all events")


def test_one_of_ten_that_loses_its_lease_runs_again_and_the_others_are_done(lane: Lane) -> None:
    with lane.slow_inserts(LONG):
        lane.faults.fail(EXTEND, refused(4, of=TEN), last=1)
        ids = lane.send_together("one")
        lane.wait_for_a_job("one", TEN)
        lane.wait_for(lambda: lane.lines("lease.lost", ids), "a lost lease")
        (lost,) = lane.lines("lease.lost", ids)
    others = {*ids} - {lost}
    lane.wait_for_lines("message.done", others)
    assert lane.lines("message.done", [lost]) == {}
    lane.assert_each_is_done_once(ids)
    assert lane.deliveries(ids) == dict.fromkeys(others, 1) | {lost: 2}
    assert {*lane.lines("lease.lost", ids)} == {lost}
    assert {*lane.lines("message.retry", ids)} == set()


def test_a_job_that_hangs_past_its_leases_is_ended_and_each_message_runs_again_without_it(
    lane: Lane,
) -> None:
    (pid,) = lane.service.worker.pool_pids()
    lane.faults.fail(EXTEND, SERVER_ERROR)
    # A lease counts from the call, and these come late. So it ends before the hard time limit.
    lane.faults.fail("ReceiveMessage", Fault("late", lasts=2))
    with lane.slow_inserts(LONG):
        ids = lane.send("hanging")
        running = lane.wait_for_a_job("hanging")
        os.kill(pid, signal.SIGSTOP)
        lane.faults.heal("ReceiveMessage")
        deleted = lane.faults.calls[DELETE]
        lane.wait_for_lines("lease.lost", running)
        lane.wait_for(lambda: pid not in lane.service.worker.pool_pids(), "the end of its process")
        assert lane.faults.calls[DELETE] == deleted
        lane.faults.heal(EXTEND)
    lane.assert_each_is_done_once(ids)
    lost = lane.lines("lease.lost", ids)
    assert {line["deliveries"] for id_ in running for line in lost[id_]} == {1}
    assert min(lane.deliveries(running).values()) == 2


def test_an_outcome_that_sqs_does_not_take_at_first_is_reported_again_and_nothing_runs_twice(
    lane: Lane,
) -> None:
    lane.faults.fail(DELETE, SERVER_ERROR, EXPIRED, RESET, HALF_AN_ANSWER, last=4)
    ids = lane.send_together("late")
    lane.wait_for(lambda: lane.faults.failed[DELETE] == 4, "four calls that failed")
    lane.assert_each_is_done_once(ids)
    assert lane.deliveries(ids) == dict.fromkeys(ids, 1)
    assert lane.lines("settle.failed", ids) == lane.lines("lease.lost", ids) == {}


def test_outcomes_that_sqs_does_not_take_until_the_leases_end_come_from_the_next_deliveries(
    lane: Lane,
) -> None:
    lane.faults.fail(DELETE, SERVER_ERROR)
    ids = lane.send_together("never")
    lane.wait_for_lines("settle.failed", ids)
    lane.faults.heal(DELETE)
    lane.settle()
    assert lane.registered("never") == ids
    assert lane.service.dead_letters("never-") == []

    def ends() -> dict[str, list[tuple[int, int]]]:
        done = lane.lines("message.done", ids)
        return {i: [(each["deliveries"], each["attempt"]) for each in done[i]] for i in ids}

    # The outcome of each delivery was the same, and the second one counts as no attempt either.
    lane.wait_for(lambda: ends() == {i: [(1, 1), (2, 1)] for i in ids}, "the lines of both ends")
