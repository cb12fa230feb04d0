"""A registration goes in by any door and one user comes out."""

import json
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from devstack.process import Process
from tests.acceptance.worker import SETTLE_SECONDS, Service, run_program
from tests.services import Queues, wait_until

KIM = {"nickname": "kim", "gender": "F", "introduction": "hi"}
LEE = {"nickname": "lee", "gender": "M", "introduction": "ho"}

DELAY = """
import json, sys
from app.tasks import register_user
args, kwargs = map(json.loads, sys.argv[1:])
print(json.dumps(register_user.delay(*args, **kwargs).id))
"""

DELAY_WRONGLY = """
import json, sys
from app.tasks import register_user
told = []
for kwargs in json.loads(sys.argv[1]):
    try:
        register_user.delay(**kwargs)
    except TypeError as exc:
        told.append(str(exc))
print(json.dumps(told))
"""

SEND_TASK = """
import json, sys
from app.celery import app
print(json.dumps(app.send_task("registerUser", kwargs=json.loads(sys.argv[1])).id))
assert "mongoengine" not in sys.modules
"""

SEND_TASK_OF_ANOTHER_APP = """
import json, os, sys
from celery import Celery
from sqs_broker import install
kwargs, queue = map(json.loads, sys.argv[1:])
app = Celery("another program")
install(app)
app.conf.task_default_queue = app.conf.task_default_routing_key = queue
app.conf.task_default_exchange = ""
app.conf.broker_transport_options = {
    "region": os.environ["AWS_REGION"],
    "endpoint_url": os.environ.get("AWS_ENDPOINT_URL"),
    "predefined_queues": {queue: {"url": os.environ["AWS_SQS_QUEUE_URL"]}},
}
print(json.dumps(app.send_task("registerUser", kwargs=kwargs).id))
"""

APPLY = """
import json, sys
from app.tasks import register_user
result = register_user.apply(kwargs=json.loads(sys.argv[1]))
print(json.dumps([result.id, result.get()]))
"""

EAGER = """
import json, sys
from app.celery import app
from app.tasks import register_user
app.conf.task_always_eager = True
result = register_user.delay(**json.loads(sys.argv[1]))
print(json.dumps([result.id, result.get()]))
"""

INSTALLED = """
import json, sys
import app, celeryconfig, sqs_broker
from app.tasks import register_user
id_ = register_user.delay(**json.loads(sys.argv[1])).id
print(json.dumps([id_, app.__file__, sqs_broker.__file__, celeryconfig.__file__]))
"""

#: What a `celeryconfig` of somebody else may say: with any of it, nothing would reach our queue.
MISLEADING = """
broker_url = "memory://"
broker_transport = "memory"
task_always_eager = True
task_default_queue = "elsewhere"
"""

READ_TIMES = """
import json, sys
from app.models import User, connect
connect()
user = User.objects.get(stock_id=json.loads(sys.argv[1]))
record = user.registration
times = [user.last_activity_time, record.enqueued_at, record.registered_at]
print(json.dumps([str(time.utcoffset()) for time in times]))
"""

#: Celery and kombu as they come. Nothing of ours is imported.
STOCK_APP = """
import json, os
from pathlib import Path
from celery import Celery
app = Celery("stock", broker=os.environ["STOCK_BROKER"])
app.conf.broker_transport_options = json.loads(os.environ["STOCK_OPTIONS"])
app.conf.task_default_queue = os.environ["STOCK_QUEUE"]
app.conf.update(json.loads(os.environ.get("STOCK_SETTINGS", "{}")))

@app.task(name="registerUser")
def register_user(**kwargs):
    with Path("registered").open("a") as file:
        file.write(json.dumps(kwargs) + "\\n")
"""

STOCK_DELAY = """
import json, sys
from stock import register_user
print(json.dumps(register_user.delay(**json.loads(sys.argv[1])).id))
"""


@pytest.fixture
def stock_id() -> str:
    """A session of the game of this test's own."""
    return f"s-{uuid.uuid4().hex}"


@pytest.mark.parametrize("style", ["keyword", "positional"])
@pytest.mark.contract
def test_delay_registers_a_user_with_all_fields(
    service: Service, stock_id: str, tmp_path: Path, style: str
) -> None:
    given = registration(stock_id) | {"index": 3, "money": 500, "loan_count": 2}
    args, kwargs = ([], given) if style == "keyword" else (list(given.values()), {})
    since = now()

    id_ = run_program(DELAY, service.environment, tmp_path, args, kwargs)

    assert_registered(service, given, source="celery", message_id=id_, since=since)


@pytest.mark.contract
def test_what_a_registration_leaves_out_has_its_default(service: Service, stock_id: str) -> None:
    service.send(plain_json(stock_id, data={"userInfo": {"nickname": "kim"}}))

    user = service.user(stock_id)

    assert (user["index"], user["money"], user["loan_count"]) == (0, 1_000_000, 0)
    assert user["user_info"]["nickname"] == "kim"


@pytest.mark.contract
def test_the_times_of_a_user_are_aware_and_utc(
    service: Service, stock_id: str, tmp_path: Path
) -> None:
    service.send(plain_json(stock_id))
    service.user(stock_id)

    offsets = run_program(READ_TIMES, service.environment, tmp_path, stock_id)

    assert offsets == ["0:00:00"] * 3


@pytest.mark.contract
def test_the_index_on_stock_and_user_is_unique(service: Service) -> None:
    indexes = service.database["users"].index_information().values()

    assert [("stock_id", 1), ("user_id", 1)] in [
        index["key"] for index in indexes if index.get("unique")
    ]


@pytest.mark.contract
def test_send_task_needs_no_task_imported(service: Service, stock_id: str, tmp_path: Path) -> None:
    given, since = registration(stock_id), now()

    id_ = run_program(SEND_TASK, service.environment, tmp_path, given)

    assert_registered(service, given, source="celery", message_id=id_, since=since)


@pytest.mark.contract
def test_another_celery_app_can_send_the_task(
    service: Service, stock_id: str, tmp_path: Path
) -> None:
    given, since = registration(stock_id), now()
    needed = {name: v for name, v in service.environment.items() if not name.startswith("MONGO")}

    id_ = run_program(SEND_TASK_OF_ANOTHER_APP, needed, tmp_path, given, service.queues.name)

    assert_registered(service, given, source="celery", message_id=id_, since=since)


@pytest.mark.parametrize("program", [APPLY, EAGER], ids=["apply", "eager"])
@pytest.mark.contract
def test_a_task_called_without_a_queue_registers_at_once(
    service: Service, stock_id: str, tmp_path: Path, program: str
) -> None:
    given, since = registration(stock_id), now()
    # A queue that nobody could reach.
    environment = service.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}

    id_, result = run_program(program, environment, tmp_path, given)

    assert result == {"result": "registered", "stock_id": stock_id, "user_id": "u1"}
    assert_registered(service, given, source="celery", message_id=id_, since=since)


def test_delay_needs_no_mongodb(
    environment: dict[str, str], queues: Queues, stock_id: str, tmp_path: Path
) -> None:
    del environment["MONGO_URI"], environment["AWS_SQS_DLQ_URL"]

    run_program(DELAY, environment, tmp_path, [], registration(stock_id))

    assert queues.counts() == (1, 0, 0)


def test_wrong_arguments_raise_at_the_caller_with_the_field_and_send_nothing(
    environment: dict[str, str], queues: Queues, tmp_path: Path
) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "user_id": {"user_id": 5},
        "stock_id": {"stock_id": {"$gt": ""}},
        "user_info.nickname": {"user_info": {"nickname": "k" * 10_000}},
        "money": {"money": -1},
    }
    calls = [registration("s1") | each for each in wrong.values()]

    told = run_program(DELAY_WRONGLY, environment, tmp_path, calls)

    assert [text.split(": ")[:2] for text in told] == [["registerUser", each] for each in wrong]
    assert "kkk" not in str(told)
    assert queues.is_empty()


@pytest.mark.slow
def test_an_installed_package_uses_its_own_settings_and_not_those_of_the_program(
    service: Service, stock_id: str, tmp_path: Path, site: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "celeryconfig.py").write_text(MISLEADING)
    given, since = registration(stock_id), now()

    environment = service.environment | {"PYTHONPATH": str(site)}
    id_, *packages, config = run_program(INSTALLED, environment, elsewhere, given)

    assert [Path(package).is_relative_to(site) for package in packages] == [True, True]
    assert Path(config).parent == elsewhere
    assert_registered(service, given, source="celery", message_id=id_, since=since)


@pytest.mark.parametrize("kind", ["action", "type"])
@pytest.mark.parametrize("spelling", ["camelCase", "snake_case"])
@pytest.mark.contract
def test_plain_json_registers_a_user(
    service: Service, stock_id: str, kind: str, spelling: str
) -> None:
    given, since = registration(stock_id) | {"loan_count": 2}, now()
    data = given if spelling == "snake_case" else in_camel_case(given)
    message = {"id": f"m-{stock_id}", kind: "registerUser", "timestamp": "", "data": data}

    service.send(json.dumps(message))

    assert_registered(service, given, source="json", message_id=f"m-{stock_id}", since=since)


@pytest.mark.contract
def test_plain_json_without_an_id_has_that_of_sqs(service: Service, stock_id: str) -> None:
    given, since = registration(stock_id), now()

    id_ = service.send(json.dumps({"action": "registerUser", "data": given}))

    assert_registered(service, given, source="json", message_id=id_, since=since)


@pytest.mark.contract
def test_plain_json_in_a_notification_of_sns_registers_a_user(
    service: Service, stock_id: str
) -> None:
    given, since = registration(stock_id), now()
    message = {"id": f"m-{stock_id}", "action": "registerUser", "data": in_camel_case(given)}

    service.send(json.dumps(in_sns_notification(message)))

    assert_registered(service, given, source="sns", message_id=f"m-{stock_id}", since=since)


@pytest.mark.contract
def test_the_same_registration_again_by_any_door_changes_nothing(
    service: Service, stock_id: str, tmp_path: Path
) -> None:
    given = registration(stock_id)
    service.send(plain_json(stock_id))
    first = service.user(stock_id)

    run_program(DELAY, service.environment, tmp_path, [], given)
    service.send(plain_json(stock_id, id="another"))
    service.send(json.dumps(in_sns_notification(json.loads(plain_json(stock_id, id="a third")))))
    service.settle()

    assert list(service.database["users"].find({"stock_id": stock_id})) == [first]
    assert service.dead_letters(stock_id) == []


@pytest.mark.contract
def test_equal_registrations_at_one_instant_are_one_user_and_no_error(
    service: Service, stock_id: str
) -> None:
    bodies = [plain_json(stock_id, id=f"m{number}") for number in range(10)]
    entries = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(bodies)]

    service.queues.client.send_message_batch(QueueUrl=service.queues.url, Entries=entries)
    service.settle()

    assert service.database["users"].count_documents({"stock_id": stock_id}) == 1
    assert service.dead_letters(stock_id) == []
    assert service.worker.log_lines("message.retry") == []


@pytest.mark.contract
def test_another_payload_for_the_same_user_is_dead_lettered_and_the_first_stays(
    service: Service, stock_id: str
) -> None:
    service.send(plain_json(stock_id))
    first = service.user(stock_id)
    second = plain_json(stock_id, data={"userInfo": LEE})

    service.send(second)
    service.settle()

    [letter] = service.dead_letters(stock_id)
    note = json.loads(letter["MessageAttributes"]["dead-letter"]["StringValue"])
    assert (letter["Body"], note["error"], note["deliveries"]) == (second, "Conflict", 1)
    assert list(service.database["users"].find({"stock_id": stock_id})) == [first]


@pytest.mark.parametrize("outer", ["base64", "plain"])
@pytest.mark.parametrize("inner", ["base64", "plain"])
@pytest.mark.contract
def test_a_message_of_a_stock_producer_is_read(
    service: Service, stock_id: str, tmp_path: Path, outer: str, inner: str
) -> None:
    given, since = registration(stock_id), now()
    options: dict[str, Any] = {}
    if outer == "plain":
        options["sqs_base64_encoding"] = False
    if inner == "plain":
        options["body_encoding"] = None
    environment = stock_environment(service.queues, service.environment, tmp_path, options)

    id_ = run_program(STOCK_DELAY, environment, tmp_path, given)

    assert_registered(service, given, source="celery", message_id=id_, since=since)


@pytest.mark.parametrize(
    "settings",
    [
        {"task_protocol": 1},
        {"task_compression": "gzip"},
        {"task_protocol": 1, "task_compression": "gzip"},
    ],
    ids=["protocol 1", "gzip", "protocol 1 in gzip"],
)
@pytest.mark.contract
def test_a_message_of_an_old_or_compressing_producer_is_read(
    service: Service, stock_id: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    given, since = registration(stock_id), now()
    environment = stock_environment(service.queues, service.environment, tmp_path, {})
    environment["STOCK_SETTINGS"] = json.dumps(settings)

    id_ = run_program(STOCK_DELAY, environment, tmp_path, given)

    assert_registered(service, given, source="celery", message_id=id_, since=since)


def test_a_stock_worker_reads_our_messages(
    environment: dict[str, str], queues: Queues, stock_id: str, tmp_path: Path
) -> None:
    given = registration(stock_id)
    run_program(DELAY, environment, tmp_path, [], given)
    stock = stock_environment(queues, environment, tmp_path, {"wait_time_seconds": 1})
    command = [sys.executable, "-m", "celery", "-A", "stock", "worker", "-P", "solo"]
    log, registered = tmp_path / "stock.log", tmp_path / "registered"

    with Process(
        "a stock worker", command, log=log, grace=1, environment=stock, directory=tmp_path
    ):
        wait_until(
            lambda: registered.exists() and queues.is_empty(), SETTLE_SECONDS, "a stock worker"
        )

    assert json.loads(registered.read_text()) == given
    assert queues.dead_letters() == []


def registration(stock_id: str) -> dict[str, Any]:
    """The arguments of `register_user`, in their order."""
    return {"stock_id": stock_id, "user_id": "u1", "user_info": KIM}


def in_camel_case(given: dict[str, Any]) -> dict[str, Any]:
    names = {"stock_id": "stockId", "user_id": "userId", "user_info": "userInfo"}
    names |= {"loan_count": "loanCount"}
    return {names.get(name, name): value for name, value in given.items()}


def plain_json(stock_id: str, *, id: str = "m1", data: dict[str, Any] | None = None) -> str:
    whole = in_camel_case(registration(stock_id)) | (data or {})
    return json.dumps({"id": id, "action": "registerUser", "data": whole})


def in_sns_notification(message: dict[str, Any]) -> dict[str, Any]:
    """What SNS puts on a queue with raw delivery off.

    https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    """
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-west-2:123456789012:MyTopic",
        "Subject": "A registration",
        "Message": json.dumps(message),
        "Timestamp": "2012-05-02T00:54:06.655Z",
        "SignatureVersion": "1",
        "Signature": "EXAMPLEw6JRN...",
        "SigningCertURL": "https://sns.us-west-2.amazonaws.com/SimpleNotificationService.pem",
        "UnsubscribeURL": "https://sns.us-west-2.amazonaws.com/?Action=Unsubscribe",
    }


def assert_registered(
    service: Service, given: dict[str, Any], *, source: str, message_id: str, since: datetime
) -> None:
    """There is one user with all that was given, from the first delivery of this message."""
    user = service.user(given["stock_id"], given["user_id"])
    service.settle()
    record = user.pop("registration")
    times = [since, record.pop("enqueued_at"), record.pop("registered_at"), now()]
    assert times == sorted(times)
    assert user.pop("last_activity_time") == times[2]
    assert len(record.pop("payload_hash")) == 64
    assert record == {"message_id": message_id, "source": source, "deliveries": 1}

    del user["_id"], user["payload"]
    assert user == {"index": 0, "money": 1_000_000, "loan_count": 0} | given
    assert service.database["users"].count_documents({"stock_id": given["stock_id"]}) == 1
    assert service.dead_letters(given["stock_id"]) == []


def now() -> datetime:
    """To the millisecond, as MongoDB and SQS keep it."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def stock_environment(
    queues: Queues, ours: dict[str, str], directory: Path, options: dict[str, Any]
) -> dict[str, str]:
    """What a stock program needs that imports `stock` from this directory, and nothing of ours."""
    (directory / "stock.py").write_text(STOCK_APP)
    server = urlsplit(queues.endpoint_url)
    options = options | {
        "region": queues.region,
        "is_secure": server.scheme == "https",
        "predefined_queues": {queues.name: {"url": queues.url}},
    }
    return {
        "PATH": ours["PATH"],
        "HOME": ours["HOME"],
        "PYTHONPATH": str(directory),
        "STOCK_BROKER": f"sqs://{server.netloc}",
        "STOCK_OPTIONS": json.dumps(options),
        "STOCK_QUEUE": queues.name,
        **{name.upper(): value for name, value in queues.credentials.items()},
    }
