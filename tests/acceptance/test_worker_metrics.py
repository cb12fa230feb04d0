"""The metric lines that a worker really writes fire the alarms of infra/alarms.yaml."""

import json
from typing import Any

import pytest
from pymongo import MongoClient

from devstack.mongo import MongoServer
from tests.acceptance.worker import FOR_TESTS, StartWorker, Worker
from tests.cloudformation.evaluator import ALARM, OK, Metrics, evaluate
from tests.cloudformation.template import fold, read
from tests.faults import tcp
from tests.services import Queues

# Workers, and an outage.
pytestmark = pytest.mark.slow

#: Some time, at the beginning of a period of any length.
NOON = 1_795_780_800

#: Seconds until every message has its outcome.
SECONDS = 60


def alarm(name: str, queue: str) -> dict[str, Any]:
    """An alarm of the template, on this queue."""
    given = fold(read("alarms.yaml"), {"QueueStack": "s"})[name]["Properties"]
    text = json.dumps(given).replace('{"Fn::ImportValue": "s-QueueName"}', json.dumps(queue))
    return dict(json.loads(text))


def states(worker: Worker, queue: str, *names: str) -> dict[str, str]:
    """The states of alarms at the end of a period in which the worker wrote all its lines."""
    metrics = Metrics()
    for line in worker.log_lines():
        if "_aws" in line:
            # Otherwise the end of a period could divide them.
            metrics.put_line({**line, "_aws": {**line["_aws"], "Timestamp": NOON * 1000}})
    return {
        name: evaluate(alarm(name, queue), metrics, NOON + seconds)
        for name, seconds in zip(names, (300, 60, 60), strict=False)
    }


def registration(user: str) -> str:
    data = {"stockId": "s1", "userId": user, "userInfo": {"nickname": "Kim-1f9c"}}
    return json.dumps({"id": f"id-{user}", "action": "registerUser", "data": data})


def send(queues: Queues, users: list[str]) -> None:
    for user in users:
        queues.client.send_message(QueueUrl=queues.url, MessageBody=registration(user))


@pytest.fixture
def worker(start_worker: StartWorker, environment: dict[str, str]) -> Worker:
    given = {"WORKER_METRICS_SECONDS": "1", "SQS_BACKOFF_BASE": "0.1"}
    return start_worker(environment | FOR_TESTS | given)


def test_a_worker_that_fails_one_message_of_five_raises_the_error_rate(
    worker: Worker, queues: Queues, mongo_client: MongoClient[Any], mongo_uri: str
) -> None:
    names = ("ErrorRate", "LateFailures", "Outage")
    send(queues, [f"good-{number}" for number in range(25)])
    worker.wait_for(queues.is_empty, SECONDS, "an empty queue")
    worker.wait_for(lambda: _sum(worker, "Ended") == 25, SECONDS, "the lines of 25 messages")
    assert set(states(worker, queues.name, *names).values()) == {OK}
    # At least a receive and a delete for ten of them.
    assert _sum(worker, "Calls") >= 6
    database = mongo_client[mongo_uri.rsplit("/", 1)[1].split("?")[0]]
    # MongoDB refuses these users, and no others.
    refused = {"user_id": {"$not": {"$regex": "^bad-"}}}
    database.command("collMod", "users", validator=refused, validationAction="error")
    bad = [f"{'bad' if number % 5 == 0 else 'fine'}-{number}" for number in range(25)]
    send(queues, bad)
    worker.wait_for(queues.is_empty, SECONDS, "an empty queue")
    # Five messages fail three times, and twenty succeed.
    worker.wait_for(lambda: _sum(worker, "Ended") == 60, SECONDS, "the lines of all runs")
    assert _sum(worker, "Failed") == 15
    assert _sum(worker, "DeadLettered") == 5
    found = states(worker, queues.name, *names)
    assert found == {"ErrorRate": ALARM, "LateFailures": ALARM, "Outage": OK}
    assert worker.stop() == 0
    lines = [json.dumps(line) for line in worker.log_lines() if "_aws" in line]
    assert not [line for line in lines if "Kim-1f9c" in line or "bad-0" in line]


def test_an_outage_of_mongodb_fires_its_alarm_and_no_other_and_its_end_clears_it(
    start_worker: StartWorker,
    environment: dict[str, str],
    queues: Queues,
    mongo_server: MongoServer,
    mongo_uri: str,
) -> None:
    database = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    with tcp.running(mongo_server.port) as proxy:
        through_proxy = f"mongodb://127.0.0.1:{proxy.port}/{database}?directConnection=true"
        given = {"WORKER_METRICS_SECONDS": "1", "MONGO_URI": through_proxy}
        worker = start_worker(environment | FOR_TESTS | given)
        send(queues, ["u1"])
        worker.wait_for(lambda: _sum(worker, "Ended") == 1, SECONDS, "the line of the first user")
        proxy.refuse()
        send(queues, ["u2"])
        worker.wait_for(lambda: _sum(worker, "ServiceAway") >= 2, SECONDS, "lines of the outage")
        away = _minutes(worker)
        proxy.heal()
        worker.wait_for(queues.is_empty, SECONDS, "an empty queue")
        assert worker.stop() == 0
    for minutes in (away, _minutes(worker)):
        metrics = Metrics()
        for minute, line in enumerate(minutes):
            metrics.put_line({**line, "_aws": {**line["_aws"], "Timestamp": minute * 60_000}})
        end = len(minutes) * 60
        assert evaluate(alarm("Outage", queues.name), metrics, end) == ALARM
        # Its last try may be just over.
        assert evaluate(alarm("Outage", queues.name), metrics, end + 28 * 60, ALARM) == OK
        assert evaluate(alarm("ErrorRate", queues.name), metrics, end) == OK
        assert evaluate(alarm("LateFailures", queues.name), metrics, end) == OK
    assert minutes[-1]["ServiceAway"] == 0


def test_the_last_line_is_written_when_the_worker_stops(
    start_worker: StartWorker, environment: dict[str, str], queues: Queues
) -> None:
    worker = start_worker(environment | FOR_TESTS | {"WORKER_METRICS_SECONDS": "300"})
    send(queues, ["u1"])
    worker.wait_for(queues.is_empty, SECONDS, "an empty queue")
    assert _sum(worker, "Ended") == 0
    assert worker.stop() == 0
    assert _sum(worker, "Ended") == 1


def test_without_the_setting_there_is_no_metric_line(
    start_worker: StartWorker, environment: dict[str, str], queues: Queues
) -> None:
    worker = start_worker(environment | FOR_TESTS)
    send(queues, ["u1"])
    worker.wait_for(queues.is_empty, SECONDS, "an empty queue")
    assert worker.stop() == 0
    assert "_aws" not in worker.log_text()


def _minutes(worker: Worker) -> list[dict[str, Any]]:
    """The lines, each of which is one of a minute on AWS."""
    return [line for line in worker.log_lines() if "_aws" in line]


def _sum(worker: Worker, name: str) -> int:
    return sum(line[name] for line in worker.log_lines() if "_aws" in line)
