"""A shortened message is the same message for a stock worker and for ours."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.worker.request import Request
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.transport import virtual

from sqs_broker.rules.decoding import decode
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.short_form import IN_HEADERS, NO_CALLBACKS, NONE_IF_MISSING, shortened

MANY = settings(derandomize=True, database=None, max_examples=100)

#: Few characters, so that those that JSON escapes are frequent.
TEXTS = st.text('a"\\[]{}é', max_size=6)

CALLBACK = {"task": "add", "args": [], "kwargs": {}, "options": {}}

#: What a call may ask for.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "eta": st.just("2026-01-02T03:04:05+00:00"),
    "expires": st.just("2099-01-02T03:04:05+00:00"),
    "group_id": TEXTS,
    "group_index": st.integers(0, 3),
    "retries": st.integers(0, 3),
    "time_limit": st.just(5),
    "root_id": st.just("root"),
    "parent_id": st.just("parent"),
    "shadow": TEXTS,
    "callbacks": st.lists(st.just(CALLBACK)),
    "chain": st.lists(st.just(CALLBACK)),
    "ignore_result": st.sampled_from([None, True, False]),
    "replaced_task_nesting": st.integers(0, 2),
    "argsrepr": TEXTS,
}

#: Arguments that look like the end of a body.
ARGUMENTS = st.lists(
    TEXTS | st.sampled_from([NO_CALLBACKS, f'"], {NO_CALLBACKS}', json.loads(NO_CALLBACKS[:-1])])
)


@pytest.fixture(scope="module")
def app() -> Celery:
    made = Celery("tests", set_as_current=False)

    @made.task(name="add", shared=False)
    def add() -> None:
        """Is never run."""

    return made


def sent(app: Celery, args: Any, options: dict[str, Any]) -> dict[str, Any]:
    """A message as Celery and kombu hand it to a channel."""
    made = app.amqp.as_task_v2("id-1", "add", args=args, **options)
    properties = made.properties | dict.fromkeys(IN_HEADERS, "x")
    return {
        "body": json.dumps(made.body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": made.headers,
        "properties": properties
        | {"delivery_info": {"exchange": "", "routing_key": "jobs"}, "delivery_mode": 2}
        | {"priority": 0, "body_encoding": None, "delivery_tag": "t"},
    }


def shown_of(context: Context) -> dict[str, Any]:
    """What a task finds in its request."""
    names = {name for name in vars(Context) if not name.startswith("_")} - {"headers", "properties"}
    return {n: getattr(context, n) for n in names if not callable(getattr(context, n))}


def in_stock(app: Celery, body: str) -> Any:
    """What a stock worker makes of it."""
    payload = json.loads(body)
    message = virtual.Message(payload, channel=object.__new__(virtual.Channel))
    request = Request(
        message, app=app, task=app.tasks["add"], hostname="h", body=message.body,
        headers=message.headers, utc=True,
    )  # fmt: skip
    facts = request.time_limits, request.eta, request.expires, request.chord, request.errbacks
    info = request.info(safe=True), request.group, request.stamps, request.ignore_result
    return facts, info, shown_of(request._context)


def in_ours(body: str) -> Any:
    """What our worker makes of it."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    read = decode(Delivery("1", "jobs", "m", "r", body, {}, 1, at, 0.0), None)
    args, kwargs, embed = read["body"]
    context = Context(read["headers"], args=args, kwargs=kwargs, **embed)
    return read["headers"] | {"delivery": None}, read["properties"], shown_of(context)


@MANY
@given(args=ARGUMENTS, options=st.fixed_dictionaries({}, optional=OPTIONS))
def test_each_worker_makes_the_same_of_a_shortened_message(
    app: Celery, args: list[Any], options: dict[str, Any]
) -> None:
    message = sent(app, args, options)
    long, short = json.dumps(message), json.dumps(shortened(message))

    assert in_stock(app, short) == in_stock(app, long)
    assert in_ours(short) == in_ours(long)
    assert len(short) < len(long)


@pytest.mark.parametrize("name", sorted(NONE_IF_MISSING))
def test_only_headers_that_celery_reads_as_none_are_left_out(name: str) -> None:
    assert getattr(Context, name, "not None") is None


def test_a_header_of_the_producer_is_kept_without_a_value(app: Celery) -> None:
    message = sent(app, [], {})
    message["headers"]["tenant"] = None

    assert shortened(message)["headers"]["tenant"] is None


def test_the_message_itself_is_not_changed(app: Celery) -> None:
    message = sent(app, [1], {})
    before = json.dumps(message)

    shortened(message)

    assert json.dumps(message) == before


def test_a_message_of_another_protocol_is_as_it_was() -> None:
    message = {
        "body": json.dumps({"task": "add", "id": "1", "eta": None, "args": [], "kwargs": {}}),
        "headers": {"group": None},
        "properties": {"argsrepr": "()", "body_encoding": None},
    }

    assert shortened(message) is message
