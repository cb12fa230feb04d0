"""`sqs doctor` and the start of a worker: every fault is made, and found with its fix."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pymongo import MongoClient
from pymongo.uri_parser import parse_uri

from app.celery import app as celery_app
from app.settings import get_settings
from app.startup import check_queues, prepare_database
from devstack import ports, sqs
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import Options, QueueAddress
from sqs_broker.sqs.boto import QUICK, new_session
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.checks import Level
from sqs_broker.tools.commands.doctor import command
from sqs_broker.tools.doctor import check_clock, check_identity, check_regions
from tests.faults import proxy as faults
from tests.faults.proxy import FaultProxy
from tests.integration.conftest import transport_options
from tests.services import MakeQueues, Queues

Doctor = Callable[..., Result]

DENIED = faults.refusal("403 access denied", 403, "AccessDenied")


@pytest.fixture
def doctor(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Runs `celery -A app sqs doctor` in this process on the queues, by another URL if given."""

    def run(queues: Queues, *arguments: str, endpoint: str | None = None, **env: str) -> Result:
        settings = {
            "AWS_REGION": queues.region,
            "AWS_ENDPOINT_URL": endpoint or queues.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_SQS_QUEUE_URL": queues.url,
            "AWS_SQS_DLQ_URL": queues.dead_letter_url,
            "MONGO_URI": mongo_uri,
            "SQS_MAX_MESSAGE_BYTES": str(sqs.LARGEST_MESSAGE),
        }
        for name, value in (settings | env).items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        options = transport_options(queues) | {
            "endpoint_url": settings["AWS_ENDPOINT_URL"],
            "max_message_bytes": sqs.LARGEST_MESSAGE,
        }
        conf = SimpleNamespace(
            broker_transport="sqs_broker:Transport",
            broker_transport_options=options,
            task_time_limit=30,
            task_soft_time_limit=int(env.get("TASK_SOFT_TIME_LIMIT", 25)),
        )
        loader = SimpleNamespace(import_default_modules=lambda: None)
        checks = celery_app.sqs_checks
        app = SimpleNamespace(conf=conf, tasks={}, loader=loader, sqs_checks=checks)
        obj = SimpleNamespace(app=app)
        return CliRunner().invoke(command, arguments, obj=obj)

    return run


@pytest.fixture
def proxy(queues: Queues) -> Iterator[FaultProxy]:
    """Stands before the SQS server and says no."""
    with faults.running(queues.endpoint_url) as (running, _):
        yield running


def found(ran: Result, level: str) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    return [(line["subject"], line["check"]) for line in lines if line["level"] == level]


def test_all_is_well_and_no_message_is_touched(either: Queues, doctor: Doctor) -> None:
    either.client.send_message(QueueUrl=either.url, MessageBody="{}")

    ran = doctor(either)

    assert ran.exit_code == 0, ran.output
    assert "0 faults, 0 unknown" in ran.stderr
    assert all(line.startswith("ok ") for line in ran.stdout.splitlines())
    [message] = either.client.receive_message(
        QueueUrl=either.url, MessageSystemAttributeNames=["ApproximateReceiveCount"]
    )["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert either.dead_letters() == []


@pytest.mark.parametrize(
    "attributes",
    [
        {"VisibilityTimeout": "30"},
        {"RedrivePolicy": ""},
        {"MaximumMessageSize": "1024"},
        {"MessageRetentionPeriod": str(14 * 86_400)},
    ],
    ids=str,
)
def test_a_queue_that_is_not_as_the_settings_say_is_a_fault(
    either: Queues, doctor: Doctor, attributes: Any
) -> None:
    either.client.set_queue_attributes(QueueUrl=either.url, Attributes=attributes)
    if "MessageRetentionPeriod" in attributes:
        either.client.set_queue_attributes(
            QueueUrl=either.dead_letter_url, Attributes={"MessageRetentionPeriod": "86400"}
        )

    ran = doctor(either)

    assert ran.exit_code == 1
    assert ran.stdout.count("FAULT") == 1
    assert ran.stdout.count("→") == 1


@pytest.mark.parametrize(
    ("action", "checks"),
    [
        ("ReceiveMessage", [("queue", "sqs:ReceiveMessage")]),
        ("DeleteMessage", [("queue", "sqs:DeleteMessage")]),
        ("ChangeMessageVisibility", [("queue", "sqs:ChangeMessageVisibility")]),
        ("SendMessageBatch", [("queue", "sqs:SendMessage"), ("dlq", "sqs:SendMessage")]),
        ("GetQueueAttributes", [("queue", "sqs:GetQueueAttributes")]),
    ],
)
def test_a_permission_that_is_missing_is_named(
    queues: Queues,
    proxy: FaultProxy,
    doctor: Doctor,
    action: str,
    checks: list[tuple[str, str]],
) -> None:
    proxy.fail(action, DENIED)

    ran = doctor(queues, "--json", endpoint=proxy.url)

    names = {"queue": queues.name, "dlq": f"{queues.name}-dlq"}
    assert ran.exit_code == 1
    assert found(ran, "fault") == [(names[which], check) for which, check in checks]
    if action == "GetQueueAttributes":
        # What else is allowed is seen all the same.
        assert (queues.name, "sqs:ReceiveMessage") in found(ran, "ok")


@pytest.mark.parametrize("fault", [faults.RESET, faults.SERVER_ERROR, faults.TRUNCATED])
def test_an_sqs_that_does_not_answer_is_a_fault_and_no_traceback(
    queues: Queues, proxy: FaultProxy, doctor: Doctor, fault: faults.Fault
) -> None:
    proxy.fail("GetQueueAttributes", fault)

    ran = doctor(queues, "--json", endpoint=proxy.url)

    assert ran.exit_code == 1
    assert isinstance(ran.exception, SystemExit)
    assert (queues.name, "reached") in found(ran, "fault")


def test_a_queue_that_is_not_there_is_a_fault(queues: Queues, doctor: Doctor) -> None:
    ran = doctor(Queues(queues.client, queues.endpoint_url, queues.url + "x", "http://x/1/x"))

    assert ran.exit_code == 1
    assert "there is no such queue" in ran.stdout


def test_settings_that_contradict_each_other_are_a_fault(queues: Queues, doctor: Doctor) -> None:
    ran = doctor(queues, "--json", TASK_SOFT_TIME_LIMIT="30")

    assert found(ran, "fault") == [("settings", "numbers")]


def lead_to(queues: Queues, source: str, target: str) -> None:
    """Let SQS itself move the dead letters of one queue to another."""
    answer = queues.client.get_queue_attributes(QueueUrl=target, AttributeNames=["QueueArn"])
    policy = {
        "deadLetterTargetArn": answer["Attributes"]["QueueArn"],
        "maxReceiveCount": "10",
    }
    queues.client.set_queue_attributes(
        QueueUrl=source, Attributes={"RedrivePolicy": json.dumps(policy)}
    )


def test_dead_letters_that_sqs_sends_back_are_a_fault(either: Queues, doctor: Doctor) -> None:
    lead_to(either, either.dead_letter_url, either.url)

    ran = doctor(either, "--json")

    assert ran.exit_code == 1
    assert (either.name, "dead letters") in found(ran, "fault")
    assert f"those of {either.name}-dlq to {either.name} (its redrive policy)" in ran.stdout


def test_a_dead_letter_url_that_is_the_queue_s_own_is_one_fault(
    queues: Queues, doctor: Doctor
) -> None:
    own = Queues(queues.client, queues.endpoint_url, queues.url, queues.url + "/")

    ran = doctor(own, "--json")

    assert ran.exit_code == 1
    assert [f for f in found(ran, "fault") if f[1] == "dead letters"] == [
        ("settings", "dead letters")
    ]
    assert "dead_letter_url: dead letters go round in a loop" in ran.stdout


# MongoDB


def test_a_mongodb_that_is_away_is_a_fault_without_its_password(
    queues: Queues, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.commands.database.TIMEOUT", 200)
    nobody = ports.preferred_or_any(None)

    ran = doctor(queues, MONGO_URI=f"mongodb://kim:hunter2@{ports.HOST}:{nobody}/registrations")

    assert ran.exit_code == 1
    assert "mongodb: reached: it does not answer" in ran.stdout
    assert "hunter2" not in ran.output


def test_an_index_that_is_not_the_codes_is_a_fault(
    queues: Queues, doctor: Doctor, mongo_uri: str, mongo_client: MongoClient[dict[str, Any]]
) -> None:
    prepare = doctor(queues, "--json")
    prepare_database(get_settings())
    users = mongo_client[parse_uri(mongo_uri)["database"]]["users"]
    assert found(prepare, "fault") == []
    assert found(doctor(queues, "--json"), "fault") == []

    users.drop_index("stock_id_user_id")
    assert found(doctor(queues, "--json"), "fault") == []  # The first worker makes it.
    users.insert_one({"stock_id": "s1", "user_id": "u1"})
    assert found(doctor(queues, "--json"), "fault") == [("mongodb", "index users.stock_id_user_id")]
    users.create_index([("stock_id", 1), ("user_id", 1)], name="stock_id_user_id")
    assert found(doctor(queues, "--json"), "fault") == [("mongodb", "index users.stock_id_user_id")]


# Who and where


def test_the_region_of_a_url_on_aws_is_that_of_the_settings() -> None:
    def found(region: str, url: str) -> list[str]:
        queue = QueueAddress(url, url + "-dlq")
        return [f.text for f in check_regions(Options(region, {"jobs": queue}))]

    there = "https://sqs.eu-central-1.amazonaws.com/123456789012/jobs"
    assert found("eu-central-1", there) == []
    assert [text.split()[-1] for text in found("us-east-1", there)] == ["us-east-1"] * 2
    assert found("us-east-1", "http://localhost:9324/000000000000/jobs") == []
    own = QueueAddress(there, f"{there}-dlq", region="eu-central-1")
    assert list(check_regions(Options("us-east-1", {"jobs": own}))) == []


def test_the_credentials_are_named(moto_url: str, queues: Queues) -> None:
    session = new_session(options(queues))

    known = check_identity(session.client("sts", endpoint_url=moto_url))
    nobody = f"http://{ports.HOST}:{ports.preferred_or_any(None)}"
    unknown = check_identity(session.client("sts", endpoint_url=nobody, config=QUICK))

    assert known.text.startswith("arn:aws:")
    assert unknown.level is Level.UNKNOWN


# The clock


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(0, Level.OK), (1, Level.OK), (-1, Level.OK), (5, Level.FAULT), (-600, Level.FAULT)],
)
def test_a_clock_that_is_off_is_a_fault(queues: Queues, ahead: float, level: Level) -> None:
    queue = Queue(queues.url, driver_for(options(queues)))
    finding = check_clock(queue, lambda: datetime.now(UTC).timestamp() + ahead)

    assert finding.level is level
    if level is Level.FAULT:
        assert ("ahead" if ahead > 0 else "behind") in finding.text


# The start of a worker


def options(queues: Queues, **changes: Any) -> Options:
    return Options.read(transport_options(queues) | changes)


def test_a_worker_asks_once_for_each_queue(queues: Queues, proxy: FaultProxy) -> None:
    check_queues(options(queues, endpoint_url=proxy.url))

    assert proxy.calls == {"GetQueueAttributes": 1}


def test_a_worker_refuses_a_queue_without_a_redrive_policy(either: Queues) -> None:
    either.client.set_queue_attributes(QueueUrl=either.url, Attributes={"RedrivePolicy": ""})

    with pytest.raises(ConfigurationError, match="redrive policy") as raised:
        check_queues(options(either))
    assert either.dead_letter_url in raised.value.message
    assert "\n" not in raised.value.message


def test_a_worker_refuses_a_queue_that_is_not_there(either: Queues) -> None:
    gone = Queues(either.client, either.endpoint_url, either.url + "x", either.dead_letter_url)

    with pytest.raises(ConfigurationError, match="this queue does not exist"):
        check_queues(options(gone))


def test_a_worker_refuses_dead_letters_that_sqs_sends_back(
    queues: Queues, make_queues: MakeQueues, proxy: FaultProxy
) -> None:
    mail = make_queues()
    lead_to(queues, queues.url, mail.url)
    both = {
        queues.name: {"url": queues.url, "dead_letter_url": queues.dead_letter_url},
        "mail": {"url": mail.url, "dead_letter_url": queues.url},
    }

    with pytest.raises(ConfigurationError, match="dead letters go round in a loop") as raised:
        check_queues(options(queues, endpoint_url=proxy.url, predefined_queues=both))

    assert f"those of {queues.name} to {mail.name} (its redrive policy)" in raised.value.message
    assert "\n" not in raised.value.message
    assert proxy.calls == {"GetQueueAttributes": 2}


@pytest.mark.parametrize("fault", [DENIED, faults.SERVER_ERROR, faults.RESET], ids=lambda f: f.name)
def test_a_worker_that_cannot_check_a_queue_logs_it_and_starts(
    queues: Queues,
    proxy: FaultProxy,
    caplog: pytest.LogCaptureFixture,
    fault: faults.Fault,
) -> None:
    proxy.fail("GetQueueAttributes", fault)

    check_queues(options(queues, endpoint_url=proxy.url))

    [record] = caplog.records
    assert vars(record)["event"] == "start.unchecked"
    assert vars(record)["queue"] == queues.name


def test_if_sqs_does_not_answer_a_worker_asks_for_one_queue_only(
    queues: Queues, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fail("GetQueueAttributes", faults.RESET)
    two = {name: {"url": queues.url} for name in ("one", "two")}

    check_queues(options(queues, endpoint_url=proxy.url, predefined_queues=two))

    assert proxy.calls == {"GetQueueAttributes": 1}
    assert len(caplog.records) == 1


def test_another_fault_of_a_queue_is_logged_and_the_worker_starts(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    check_queues(options(queues, visibility_timeout=90))

    [record] = caplog.records
    assert vars(record)["event"] == "start.fault"
    assert "60 s, and visibility_timeout is 90 s" in record.getMessage()
