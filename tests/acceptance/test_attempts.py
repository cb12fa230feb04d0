"""A message has as many failed runs as `max_attempts` says, however often SQS delivers it."""

import os
import signal
from typing import Any

import pytest
from pymongo.uri_parser import parse_uri

from tests.probe.project import PATIENCE, MakeProject, ProbeProject
from tests.services import wait_until

pytestmark = pytest.mark.slow

#: Failing messages that wait while workers come and go.
FAILING = 8

#: Receives after which SQS dead-letters a message.
MOST_DELIVERIES = 5

#: Seconds of a lease: the time until SQS delivers what a killed worker held.
LEASE = 6


@pytest.fixture
def control(mongo_uri: str) -> dict[str, Any]:
    """The control plane of workers that record failed runs."""
    return {"database_uri": mongo_uri, "database": f"{parse_uri(mongo_uri)['database']}_control"}


def retries(project: ProbeProject, id_: str) -> list[int]:
    """What `request.retries` was in each run of a message."""
    return [line["retries"] for line in project.events(id_, "start")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_in_ten_rolling_restarts_each_message_fails_as_often_as_it_may(
    make_project: MakeProject, control: dict[str, Any], pool: str
) -> None:
    project = make_project(
        transport={"control": control, "wait_time_seconds": 3, "backoff_base": 8.0}
    )
    worker = project.start("--pool", pool)
    project.wait_for_end(project.send("work"))  # Now it holds short tasks ahead.
    busy = [project.send("work", 3) for _ in range(2)]
    wait_until(lambda: project.events(busy[1], "start"), PATIENCE, "busy processes")
    failing = [project.send("fail", 99) for _ in range(FAILING)]
    for _ in range(10):
        worker.send_signal(signal.SIGTERM)
        busy = [project.send("work", 1.5) for _ in range(2)]
        following = project.start("--pool", pool)
        assert worker.wait(PATIENCE) == 0
        worker = following
    project.wait_for_empty_queue(120)

    assert {id_: retries(project, id_) for id_ in failing} == {id_: [0, 1, 2] for id_ in failing}
    notes = project.notes()
    assert notes.keys() == set(failing)
    assert all("failed runs: 3" in note["reason"] for note in notes.values())
    # Otherwise this shows nothing: some were delivered without a run.
    assert max(note["deliveries"] for note in notes.values()) > 3


@pytest.mark.parametrize("queues", [{"visibility_timeout": 3}], indirect=True)
@pytest.mark.parametrize(("pool", "workers", "threads"), [("threads", 1, 3), ("solo", 3, 1)])
def test_a_task_that_hangs_in_each_attempt_where_no_pool_can_end_it_is_dead_lettered(
    make_project: MakeProject, control: dict[str, Any], pool: str, workers: int, threads: int
) -> None:
    project = make_project(
        transport={"control": control, "visibility_timeout": 3, "max_attempts": 2},
        celery={"task_time_limit": 1},
    )
    for _ in range(workers):
        project.start("--pool", pool, "-c", str(threads))
    hangs = project.send("work", 100)
    wait_until(lambda: project.events(hangs, "start"), PATIENCE, "the start")
    others = [project.send("work") for _ in range(5)]
    wait_until(lambda: len(project.events(event="end")) == 5, PATIENCE, "the end of the others")
    project.wait_for_empty_queue(60)

    assert retries(project, hangs) == [0, 1]
    assert {line["id"] for line in project.events(event="end")} == set(others)
    (note,) = project.notes().values()
    assert (note["message_id"], note["error"]) == (hangs, "TimeLimitExceeded")
    assert "did not end at its hard time limit" in note["reason"]
    assert "(failed runs: 2, deliveries: 2)" in note["reason"]
    assert "lease of a message was lost" not in project.worker_log()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "queues",
    [{"max_receive_count": MOST_DELIVERIES, "visibility_timeout": LEASE}],
    indirect=True,
)
def test_a_message_whose_worker_is_killed_in_the_last_deliveries_is_not_dead_lettered_by_sqs(
    make_project: MakeProject, control: dict[str, Any]
) -> None:
    project = make_project(
        transport={
            "control": control,
            "max_receive_count": MOST_DELIVERIES,
            "max_attempts": 2,
            "visibility_timeout": LEASE,
        },
        celery={"task_soft_time_limit": 4, "task_time_limit": 5},
    )
    id_ = project.send("fail_then_work", 1)
    for _ in range(MOST_DELIVERIES - 3):
        hand_back(project)
    for runs in (2, 3):  # The first run fails, in the third delivery. Then a worker is killed.
        worker = project.start("-c", "1")
        wait_until(lambda: len(retries(project, id_)) >= runs, PATIENCE, "the run")  # noqa: B023
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(PATIENCE)
    project.start("-c", "1")
    project.wait_for_end(id_)

    # No killed worker has counted: it recorded no failure.
    assert retries(project, id_) == [0, 1, 1, 1]
    assert project.queues.dead_letters() == []


def hand_back(project: ProbeProject) -> None:
    """Receive the message as a worker that stops does, and release it."""
    client, url = project.queues.client, project.queues.url
    (message,) = client.receive_message(QueueUrl=url, WaitTimeSeconds=5)["Messages"]
    client.change_message_visibility(
        QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
    )


#: The task that only a worker of the next release has.
LATER = """

@app.task(bind=True)
def later(self):
    \"\"\"Comes with the next release.\"\"\"
    say(self, "start")
    say(self, "end")
"""


@pytest.mark.contract
def test_a_task_that_is_sent_before_the_workers_have_it_runs_once_they_do(
    make_project: MakeProject, control: dict[str, Any]
) -> None:
    project = make_project(transport={"control": control, "unknown_task_grace": 600})
    old = project.start()
    ids = [project.send("later") for _ in range(3)]
    wait_until(lambda: "no task 'probe.later'" in project.worker_log(), PATIENCE, "the release")
    with (project.directory / "probe.py").open("a") as module:
        module.write(LATER)
    project.start()
    assert project.stop(old) == 0
    project.wait_for_empty_queue(60)

    assert {id_: retries(project, id_) for id_ in ids} == {id_: [0] for id_ in ids}
    assert project.queues.dead_letters() == []
    assert project.worker_log().count("no task 'probe.later'") == 1


@pytest.mark.contract
def test_a_task_that_no_worker_has_is_dead_lettered_after_its_grace(
    make_project: MakeProject, control: dict[str, Any]
) -> None:
    project = make_project(transport={"control": control, "unknown_task_grace": 8})
    project.start()
    id_ = project.send("later")
    project.wait_for_empty_queue(60)

    note = project.notes()[id_]
    assert note["reason"] == "unknown task 'probe.later'"
    assert note["deliveries"] == 3  # At once, after 5 s, and after 15 s.
