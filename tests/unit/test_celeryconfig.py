"""celeryconfig.py: what must be so for nothing to be lost, and what a deployment may change."""

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.control import conf as inspected

FILE = Path(__file__).parents[2] / "celeryconfig.py"

QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/sdc-sqs"
MAIL = "https://sqs.us-east-1.amazonaws.com/123456789012/mail"


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a producer needs."""
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SQS_QUEUE_URL", QUEUE)
    monkeypatch.setenv("AWS_SQS_DLQ_URL", f"{QUEUE}-dlq")


pytestmark = pytest.mark.usefixtures("_environment")


def config() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


MUST_BE_SO = [
    ("task_acks_late", True),
    ("task_reject_on_worker_lost", True),
    ("task_retry_on_worker_lost", False),
    ("task_acks_on_failure", False),
    ("task_acks_on_timeout", False),
    ("accept_content", ["json"]),
    ("task_serializer", "json"),
    ("event_serializer", "json"),
    ("enable_utc", True),
    ("timezone", "UTC"),
    ("task_ignore_result", True),
    ("result_expires", None),
    ("worker_send_task_events", True),
    ("task_send_sent_event", False),
    ("worker_enable_remote_control", True),
    ("task_create_missing_queues", False),
    ("task_soft_time_limit", 25),
    ("task_time_limit", 30),
]


@pytest.mark.parametrize(("name", "value"), MUST_BE_SO)
def test_what_must_be_so_is_so(name: str, value: object) -> None:
    assert config()[name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("region", "us-east-1"),
        ("endpoint_url", None),
        ("predefined_queues", {"sdc-sqs": {"url": QUEUE, "dead_letter_url": f"{QUEUE}-dlq"}}),
        ("decode_json", "app.messages:decode_json"),
        ("visibility_timeout", 60),
        ("max_attempts", 3),
        ("max_receive_count", 10),
        ("built_in_tasks", ()),
        ("most_callbacks", 0),
    ],
)
def test_the_broker_is_told_what_it_needs(name: str, value: object) -> None:
    assert config()["broker_transport_options"][name] == value


@pytest.mark.parametrize(
    ("variable", "option", "value"),
    [
        ("AWS_ENDPOINT_URL", "endpoint_url", "http://127.0.0.1:9324"),
        ("SQS_VISIBILITY_TIMEOUT", "visibility_timeout", 77),
        ("TASK_TIME_LIMIT", "visibility_timeout", 70),
        ("SQS_MAX_ATTEMPTS", "max_attempts", 7),
        ("SQS_MAX_RECEIVE_COUNT", "max_receive_count", 11),
        ("SQS_WAIT_TIME", "wait_time_seconds", 4),
        ("SQS_MAX_MESSAGE_BYTES", "max_message_bytes", 262_144),
        ("SQS_CLIENT", "client", "boto3"),
        ("SQS_BACKOFF_BASE", "backoff_base", 9.0),
        ("SQS_BACKOFF_MAX", "backoff_max", 99),
        ("SQS_UNKNOWN_TASK_GRACE", "unknown_task_grace", 66),
        ("SQS_ETA_MAX", "eta_max", 8_640),
        ("SQS_MOST_IN_FLIGHT", "most_in_flight", 7_000),
        ("WORKER_SHUTDOWN_TIMEOUT", "shutdown_timeout", 33),
        ("WORKER_UNHEALTHY_EXIT", "unhealthy_exit", 44),
        ("WORKER_HEALTH_FILE", "health_file", "/run/worker.json"),
    ],
)
def test_a_deployment_may_change_a_number(
    monkeypatch: pytest.MonkeyPatch, variable: str, option: str, value: Any
) -> None:
    monkeypatch.setenv(variable, "40" if variable == "TASK_TIME_LIMIT" else str(value))
    assert config()["broker_transport_options"][option] == value


def test_the_queue_of_the_url_is_the_default_one() -> None:
    settings = config()
    assert settings["task_default_queue"] == "sdc-sqs"
    assert [queue.name for queue in settings["task_queues"]] == ["sdc-sqs"]


def test_tasks_are_routed_by_the_globs_of_their_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQS_QUEUES", f'{{"mail": {{"url": "{MAIL}", "tasks": ["mail*", "sms"]}}}}')
    settings = config()
    assert settings["task_routes"] == [{"mail*": {"queue": "mail"}, "sms": {"queue": "mail"}}]
    assert settings["task_default_queue"] == "sdc-sqs"
    assert [queue.name for queue in settings["task_queues"]] == ["sdc-sqs", "mail"]


@pytest.mark.parametrize("name", [name for name, _ in MUST_BE_SO])
def test_each_of_them_says_why(name: str) -> None:
    (block,) = re.findall(rf"((?:^\S.*\n)*)^{name} = ", FILE.read_text(), re.MULTILINE)
    assert re.search("^# ", block, re.MULTILINE)


def test_it_is_read_once_however_often_a_setting_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A send looks at several: read at each, the file was all that a send cost.
    from app.celery import app

    read, run_path = [], runpy.run_path
    monkeypatch.setattr(runpy, "run_path", lambda path: read.append(path) or run_path(path))
    assert [app.conf.task_time_limit for _ in range(3)] == [30] * 3
    assert len(read) == 1


def test_what_flower_shows_of_the_settings_names_the_control_plane_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from app.celery import app

    monkeypatch.setenv("MONGO_URI", "mongodb://shop:hunter2-1f9c@127.0.0.1:1/game")
    # The tab Config is the answer to `inspect conf`.
    shown = json.dumps(inspected(SimpleNamespace(app=app)))
    assert '"control": "app.mongo:control"' in shown
    assert "is not set" not in shown
    assert "hunter2" not in shown


def test_without_a_variable_there_are_no_metrics_and_nothing_is_loaded_for_them() -> None:
    metrics = config()["broker_transport_options"]["metrics"]
    assert (metrics["port"], metrics["opentelemetry"], metrics["class_of"]) == (None, False, None)


def test_a_port_and_a_login_reach_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_METRICS_PORT", "9464")
    monkeypatch.setenv("WORKER_METRICS_LOGIN", "prom:s3cret")
    metrics = config()["broker_transport_options"]["metrics"]
    assert (metrics["port"], metrics["class_of"]) == (9464, "app.metrics:class_of")
    assert metrics["login"].get_secret_value() == "prom:s3cret"
