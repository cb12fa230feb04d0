"""Messages of ordinary tasks, each in a job of its own and without a request of Celery: whatever
happens to one of them, it is seen, and ends, as a message that has a request.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from sqs_broker import batching, install
from sqs_broker.control import planes
from tests.acceptance.worker import Place
from tests.probe.project import ProbeProject
from tests.services import wait_until

pytestmark = pytest.mark.slow

NAME = "own@test"

#: Seconds for what follows from something.
PATIENCE = 60

#: Seconds that a task takes so that something can happen to it meanwhile.
LONG = 40


@dataclass
class Lane:
    """A worker with two processes, and a client that controls it."""

    project: ProbeProject
    worker: "subprocess.Popen[bytes]"
    client: Celery
    sent: list[dict[str, Any]]
    """The events that it has sent."""

    def of(self, id_: str) -> list[str]:
        """The types of the events of a message."""
        return [event["type"] for event in list(self.sent) if event.get("uuid") == id_]

    def wait_for(self, type_: str, *ids: str) -> None:
        wait_until(lambda: all(type_ in self.of(id_) for id_ in ids), PATIENCE, type_)

    def running(self, task: str, *args: Any) -> tuple[str, int]:
        """Send a task; its id and its process, once it runs."""
        id_ = self.project.send(task, *args)
        self.wait_for("task-started", id_)
        return id_, self.project.events(id_, "start")[0]["pid"]

    def busy(self, name: str) -> tuple[list[str], str]:
        """Send three tasks that run until `let_go` is called with this name; the ids of the two
        that run, and of the one that waits."""
        # After short tasks, the worker holds messages ahead.
        self.wait_for("task-succeeded", *[self.project.send("work") for _ in range(20)])
        with batching():  # In one call: it would not receive the third later.
            ids = {self.project.send("hold", name) for _ in range(3)}

        def running() -> set[str]:
            return {id_ for id_ in ids if "task-started" in self.of(id_)}

        self.wait_for("task-received", *ids)
        wait_until(lambda: len(running()) == 2, PATIENCE, "two that run")
        (waits,) = ids - (run := running())
        return [*run], waits

    def let_go(self, name: str) -> None:
        (self.project.directory / name).touch()

    def inspect(self) -> Any:
        return self.client.control.inspect(destination=[NAME], timeout=PATIENCE)

    def pool_pids(self) -> list[int]:
        return list(self.inspect().stats()[NAME]["pool"]["processes"])

    def limit(self, task: str, soft: float, hard: float) -> None:
        """Change the time limits of a task."""
        limits = {"task_name": f"probe.{task}", "soft": soft, "hard": hard}
        self.client.control.broadcast(
            "time_limit", arguments=limits, reply=True, destination=[NAME], timeout=PATIENCE
        )


@pytest.fixture(scope="module")
def lane(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    database = f"{where.database.name}_control"
    control = {"database_uri": where.environment["MONGO_URI"], "database": database}
    project = ProbeProject(
        tmp_path_factory.mktemp("own") / "project",
        where.queues,
        transport={"control": control},
        celery={"worker_enable_remote_control": True, "worker_send_task_events": True},
    )
    worker, client = project.start("-n", NAME), _client_of(where, control)
    sent: list[dict[str, Any]] = []
    with client.connection_for_read() as connection:
        receiver = client.events.Receiver(connection, handlers={"*": sent.append})
        thread = threading.Thread(target=receiver.capture, daemon=True)
        thread.start()
        wait_until(lambda: sent, PATIENCE, "a sign of life")
        made = Lane(project, worker, client, sent)
        yield made
        receiver.should_stop = True
        thread.join(PATIENCE)
    client.close()
    project.close()
    for options in tuple(planes._planes):
        planes._planes.pop(options).close()


def _client_of(where: Place, control: dict[str, Any]) -> Celery:
    client = Celery("client", set_as_current=False)
    install(client)
    queues = where.queues
    client.conf.update(
        broker_transport_options={
            "region": queues.region,
            "predefined_queues": {queues.name: {"url": queues.url}},
            "control": control,
        },
        accept_content=["json"],
        task_queues=[Queue(queues.name, Exchange(""), routing_key=queues.name)],
    )
    client.connection_for_read().release()
    return client


def test_each_message_has_its_events_in_order_and_runs_once(lane: Lane) -> None:
    ids = [lane.project.send("work") for _ in range(30)]
    lane.wait_for("task-succeeded", *ids)
    lane.project.wait_for_empty_queue()
    for id_ in ids:
        assert lane.of(id_) == ["task-received", "task-started", "task-succeeded"]
        assert [line["event"] for line in lane.project.events(id_)] == ["start", "end"]
    log = lane.project.worker_log()
    assert all(log.count(f"Task probe.work[{id_}] received") == 1 for id_ in ids)


def test_inspect_shows_what_runs_and_what_waits(lane: Lane) -> None:
    running, waits = lane.busy("inspected")
    active, told = lane.inspect().active()[NAME], lane.inspect().query_task(*running, waits)[NAME]
    assert {task["id"]: task["worker_pid"] for task in active} == {
        id_: lane.project.events(id_, "start")[0]["pid"] for id_ in running
    }
    lane.let_go("inspected")
    assert all(task["time_start"] for task in active)
    assert {id_: state for id_, (state, _) in told.items()} == {
        waits: "reserved", **dict.fromkeys(running, "active")
    }  # fmt: skip
    lane.wait_for("task-succeeded", *running, waits)
    lane.project.wait_for_empty_queue()
    assert lane.inspect().active()[NAME] == lane.inspect().reserved()[NAME] == []


def test_one_that_is_revoked_while_it_waits_does_not_run(lane: Lane) -> None:
    running, waits = lane.busy("revoked")
    revoked = lane.client.control.revoke(waits, reply=True, destination=[NAME], timeout=PATIENCE)
    assert [*revoked[0]] == [NAME]
    lane.let_go("revoked")
    lane.wait_for("task-revoked", waits)
    lane.wait_for("task-succeeded", *running)
    lane.project.wait_for_empty_queue()
    assert lane.project.events(waits) == []


def test_one_that_is_terminated_while_it_runs_ends_and_the_other_goes_on(lane: Lane) -> None:
    unwanted, _ = lane.running("tidy", LONG)
    other, _ = lane.running("hold", "terminated")
    lane.client.control.revoke(unwanted, terminate=True)
    lane.wait_for("task-revoked", unwanted)
    lane.let_go("terminated")
    lane.wait_for("task-succeeded", other)
    lane.project.wait_for_empty_queue()
    said = [line["event"] for line in lane.project.events(unwanted)]
    assert said == ["start", "tidying", "tidied"]


def test_one_whose_process_is_killed_runs_again_and_the_other_goes_on(lane: Lane) -> None:
    id_, pid = lane.running("hold", "killed")
    other, _ = lane.running("hold", "killed")
    os.kill(pid, signal.SIGKILL)
    lane.wait_for("task-retried", id_)
    lane.let_go("killed")
    lane.wait_for("task-succeeded", id_, other)
    lane.project.wait_for_empty_queue()
    assert [line["event"] for line in lane.project.events(id_)] == ["start", "start", "end"]
    assert lane.of(other).count("task-started") == 1


@pytest.mark.parametrize("is_hard", [False, True], ids=["soft", "hard"])
def test_one_that_reaches_a_time_limit_runs_again(lane: Lane, is_hard: bool) -> None:
    lane.limit("tidy", 1.0, 2.0)
    try:
        id_, pid = lane.running("tidy", 1.5)
        if is_hard:
            os.kill(pid, signal.SIGSTOP)  # So the soft limit does not end it.
        lane.wait_for("task-retried", id_)
    finally:
        lane.limit("tidy", 25.0, 30.0)
    lane.wait_for("task-succeeded", id_)
    lane.project.wait_for_empty_queue()
    assert [line["retries"] for line in lane.project.events(id_, "start")] == [0, 1]
    # After the hard limit its process is another one.
    wait_until(lambda: (pid in lane.pool_pids()) is not is_hard, PATIENCE, "the processes")
    assert lane.project.notes() == {}


def test_a_stop_lets_those_that_run_finish_and_releases_the_other(lane: Lane) -> None:
    running, waits = lane.busy("stopped")
    lane.worker.send_signal(signal.SIGTERM)
    said = "running tasks have"
    wait_until(lambda: said in lane.project.worker_log(), PATIENCE, "the begin of the stop")
    lane.let_go("stopped")
    assert lane.worker.wait(PATIENCE) == 0
    # What they said last, too, although the worker has ended since.
    lane.wait_for("task-succeeded", *running)
    assert lane.project.events(waits) == []
    lane.project.start("-n", NAME)
    lane.wait_for("task-succeeded", waits)
    lane.project.wait_for_empty_queue()
