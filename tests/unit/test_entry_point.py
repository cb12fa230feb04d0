"""The four rules without a Celery worker: SQS records as AWS Lambda gives them, in 30 lines."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
from celery import Celery

from app.messages import Registration
from sqs_broker.options import Options
from sqs_broker.rules.admission import Admitted, admit, arrive
from sqs_broker.rules.attempts import AttemptStore, Record
from sqs_broker.rules.dead_letter import read_note
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Released, Retry, decide
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Received
from sqs_broker.sqs.settlement import Reporter, Settlement
from sqs_broker.testing import FakeSqs, MemoryAttempts, State
from sqs_broker.worker.run import run

LEASE = 60


# The 30 lines -----------------------------------------------------------------------------------


def handle(
    event: Any, celery_app: Celery, reporter: Reporter, options: Options, attempts: AttemptStore
) -> dict[str, Any]:
    """Handle the records of an event. What comes again is in the answer."""
    known = attempts.read(
        [record["messageId"] for record in event["Records"] if count_of(record) > 1]
    )
    settlements = [settlement_of(record, known, celery_app, options) for record in event["Records"]]
    errors = reporter.tell(settlements)
    return {
        "batchItemFailures": [
            {"itemIdentifier": settlement.message.delivery.message_id}
            for settlement, error in zip(settlements, errors, strict=True)
            if error or isinstance(settlement.outcome, Retry | Released)
        ]
    }


def settlement_of(
    record: Any, known: Mapping[str, Record], celery_app: Celery, options: Options
) -> Settlement:
    delivery = delivery_of(record, known.get(record["messageId"], Record()))
    arrival = arrive(delivery, options.decode_json)
    policy, happened = options.policy, arrival.ended
    if happened is None:
        admitted = admit(arrival, celery_app.tasks)
        if isinstance(admitted, Admitted):
            policy, happened = admitted.task.policy, run(arrival, admitted)
        else:
            happened = admitted
    outcome = decide(happened, delivery, policy)
    return Settlement(facts_of(delivery, arrival.headers), outcome, delivery.received_at + LEASE)


def count_of(record: Any) -> int:
    return int(record["attributes"]["ApproximateReceiveCount"])


def delivery_of(record: Any, known: Record) -> Delivery:
    """The record in the words of the broker: Lambda spells its keys with a small letter."""
    return Delivery(
        tag=record["messageId"],
        queue=record["eventSourceARN"].rpartition(":")[2],
        message_id=record["messageId"],
        receipt_handle=record["receiptHandle"],
        body=record["body"],
        attributes={},
        count=count_of(record),
        enqueued_at=datetime.fromtimestamp(int(record["attributes"]["SentTimestamp"]) / 1000, UTC),
        received_at=monotonic(),
        record=known,
    )


# What becomes of records ------------------------------------------------------------------------

PLAIN = (
    '{"id": "id-1", "action": "registerUser", '
    '"data": {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": "Kim"}}}'
)


@pytest.fixture
def fake() -> FakeSqs:
    made = FakeSqs()
    made.create_queue("jobs", dead_letters="jobs-dlq", visibility_timeout=LEASE)
    return made


@pytest.fixture
def url(fake: FakeSqs) -> str:
    return fake.options().queue("jobs").url


Invoke = Callable[..., Any]


@pytest.fixture
def store() -> MemoryAttempts:
    return MemoryAttempts()


@pytest.fixture
def invoke(fake: FakeSqs, url: str, store: MemoryAttempts) -> Invoke:
    """Lets a task with the given body handle what is in the queue; gives the function's answer."""

    def invoke_it(body: Callable[[Any], Any] = lambda _: None) -> Any:
        app = Celery("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
        app.conf.update(
            broker_transport_options=fake.transport_options(decode_json="app.messages:decode_json"),
            task_acks_late=True,
            task_ignore_result=True,
        )

        @app.task(shared=False, name="registerUser", model=Registration)
        def register_user(message: Registration, provenance: Any) -> Any:
            return body(message)

        options = fake.options(decode_json="app.messages:decode_json", unknown_task_grace=0)
        event = {
            "Records": [as_lambda_gives_it(message) for message in Queue(url, fake).receive(10, 0)]
        }
        reporter = Reporter(options, fake, attempts=store)
        return handle(event, app, reporter, options, store)

    return invoke_it


def as_lambda_gives_it(message: Received) -> dict[str, Any]:
    return {
        "messageId": message.message_id,
        "receiptHandle": message.receipt_handle,
        "body": message.body,
        "attributes": message.system,
        "messageAttributes": {},
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:jobs",
    }


def dead_letters(fake: FakeSqs, url: str) -> list[tuple[str, str]]:
    found = fake.messages(f"{url}-dlq")
    notes = [read_note(message.attributes) or {} for message in found]
    return [(message.body, note["reason"]) for message, note in zip(found, notes, strict=True)]


def test_a_message_that_succeeds_is_deleted(fake: FakeSqs, url: str, invoke: Invoke) -> None:
    fake.put(url, PLAIN)
    done: list[Any] = []
    assert invoke(done.append) == {"batchItemFailures": []}
    assert [message.user_id for message in done] == ["u1"]
    assert fake.messages(url) == []


def test_a_failure_comes_again_after_its_backoff_and_no_other_record_does(
    fake: FakeSqs, url: str, invoke: Invoke, store: MemoryAttempts
) -> None:
    failing = fake.put(url, PLAIN.replace("u1", "u2"))
    fake.put(url, PLAIN)

    def fail_once(message: Registration) -> None:
        if message.user_id == "u2":
            raise KeyError

    assert invoke(fail_once) == {"batchItemFailures": [{"itemIdentifier": failing}]}
    (left,) = fake.messages(url)
    assert (left.message_id, left.state) == (failing, State.IN_FLIGHT)
    assert store.read([failing]) == {failing: Record(failed=frozenset({1}))}
    assert 0 < left.visible_in <= 2


def test_the_last_attempt_goes_to_the_dead_letters_with_its_reason(
    fake: FakeSqs, url: str, invoke: Invoke, store: MemoryAttempts
) -> None:
    # Three deliveries to others, which were two failed runs.
    id_ = fake.put(url, PLAIN, receives=3)
    store.add({id_: Record(failed=frozenset({1, 3}))})

    def fail(_: Registration) -> None:
        raise KeyError

    assert invoke(fail) == {"batchItemFailures": []}
    ((body, reason),) = dead_letters(fake, url)
    assert body == PLAIN
    assert "KeyError" in reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("nonsense", "neither JSON nor base64 of JSON"),
        (PLAIN.replace("registerUser", "nobody"), "unknown task 'nobody'"),
        (PLAIN.replace("nickname", "name"), "nickname"),
    ],
)
def test_what_can_never_run_is_dead_lettered_at_once(
    fake: FakeSqs, url: str, invoke: Invoke, body: str, reason: str
) -> None:
    fake.put(url, body)
    assert invoke() == {"batchItemFailures": []}
    ((_, noted),) = dead_letters(fake, url)
    assert reason in noted


def test_a_message_whose_delete_fails_comes_again(fake: FakeSqs, url: str, invoke: Invoke) -> None:
    stays = fake.put(url, PLAIN)
    fake.fail("DeleteMessageBatch", entries=[0])
    assert invoke() == {"batchItemFailures": [{"itemIdentifier": stays}]}
