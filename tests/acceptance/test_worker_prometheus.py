"""Prometheus reads a real worker: its main process counts what its pool does."""

import json
import urllib.error
import urllib.request
from base64 import b64encode
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack import ports
from tests.acceptance.worker import StartWorker, Worker
from tests.probe.project import MakeProject
from tests.services import Queues, wait_until

# A worker whose pool processes end after each two tasks.
pytestmark = pytest.mark.slow

#: Seconds until every message has its outcome.
SECONDS = 60

LOGIN = "prom:s3cret-1f9c"

#: Stands where a user typed something.
MARKER = "Kim-1f9c"


def registration(number: int, nickname: str = MARKER) -> str:
    data = {"stockId": "s1", "userId": f"{MARKER}-{number}", "userInfo": {"nickname": nickname}}
    return json.dumps({"id": f"{MARKER}-{number}", "action": "registerUser", "data": data})


def send(queues: Queues, *bodies: str) -> None:
    for body in bodies:
        queues.client.send_message(QueueUrl=queues.url, MessageBody=body)


def page(port: int, login: str | None = LOGIN) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    if login is not None:
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=SECONDS) as answer:
        text: str = answer.read().decode()
        return text


def total(port: int, name: str, login: str | None = LOGIN, **labels: str) -> float:
    """The sum of all series with these labels."""
    families = text_string_to_metric_families(page(port, login))
    samples = [sample for family in families for sample in family.samples]
    return sum(
        sample.value
        for sample in samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_all_that_a_pool_of_processes_does_is_on_the_page_of_its_worker(
    start_worker: StartWorker, environment: dict[str, str], queues: Queues
) -> None:
    port = ports.preferred_or_any(None)
    given: dict[str, Any] = {
        "WORKER_METRICS_PORT": str(port),
        "WORKER_METRICS_ADDRESS": "0.0.0.0",
        "WORKER_METRICS_LOGIN": LOGIN,
    }
    worker = start_worker(environment | given, "--max-tasks-per-child=2")
    worker.wait_for(lambda: ports.is_listening(port), SECONDS, "the page")
    first = set(worker.pool_pids())
    send(queues, *map(registration, range(12)))
    settled = "sqs_broker_settlements_total"
    _wait(worker, port, settled, 12, sqs_broker_outcome="done")
    # The first again, then with another payload, and what is no message at all.
    send(queues, registration(0))
    _wait(worker, port, settled, 13, sqs_broker_outcome="done")
    send(queues, registration(1, "other"), MARKER)
    _wait(worker, port, settled, 2, sqs_broker_outcome="dead-letter")

    done, dead = "sqs_broker_messages_done_total", "sqs_broker_messages_dead_lettered_total"
    assert total(port, done, sqs_broker_result="registered") == 12
    assert total(port, done, sqs_broker_result="already registered") == 1
    assert total(port, dead, error_type="Conflict", sqs_broker_reason="refused") == 1
    assert total(port, dead, error_type="Undecodable") == 1
    assert total(port, "sqs_broker_messages_started_total", sqs_broker_task="registerUser") == 14
    assert total(port, "messaging_client_consumed_messages_total") == 15
    assert total(port, "sqs_broker_message_duration_seconds_count") == 13
    assert total(port, "sqs_broker_messages_in_flight") == 0
    assert total(port, "sqs_broker_pool_size") == 2
    assert set(worker.pool_pids()) != first

    assert MARKER not in page(port)
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        page(port, login=None)
    refused.value.close()
    assert LOGIN not in worker.log_text()
    assert worker.stop() == 0


def _wait(worker: Worker, port: int, name: str, count: int, **labels: str) -> None:
    worker.wait_for(lambda: total(port, name, **labels) == count, SECONDS, f"{count} of {name}")


def test_what_tasks_send_in_processes_of_the_pool_is_on_the_page(
    make_project: MakeProject, queues: Queues
) -> None:
    port = ports.preferred_or_any(None)
    project = make_project(transport={"metrics": {"port": port}})
    # Each process ends after two tasks, and the next one goes on with its sum.
    worker = project.start("--max-tasks-per-child=2")
    for times in (1, 2, 3, 4):
        project.send("send", times)
    wait_until(lambda: len(project.events(event="sent")) == 4, SECONDS, "all that was sent")
    project.wait_for_empty_queue(SECONDS)
    sent = "messaging_client_sent_messages_total"
    assert len({line["pid"] for line in project.events(event="end")}) > 2
    assert total(port, sent, login=None, messaging_destination_name=queues.name) == 10
    assert total(port, sent, login=None) == 10
    assert project.stop(worker) == 0
