"""A call raises what a worker with the same options would write on a dead letter."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, group

from sqs_broker import PublishError, batching, install, publish_many
from sqs_broker.testing import FakeSqs

#: What a project without canvas sets.
CLOSED: dict[str, Any] = {"built_in_tasks": (), "most_callbacks": 0}

#: A call of a task.
Call = Callable[[Any], Any]


@pytest.fixture
def fake() -> FakeSqs:
    made = FakeSqs()
    made.create_queue("jobs")
    return made


@pytest.fixture
def make_task(fake: FakeSqs) -> Iterator[Callable[..., Any]]:
    """Makes a task on the fake, with these options of the broker."""
    apps: list[Celery] = []

    def make(**options: Any) -> Any:
        app = Celery("tests", set_as_current=False)
        apps.append(app)
        install(app)
        app.conf.update(
            broker_transport_options=fake.transport_options(**options), task_default_queue="jobs"
        )

        @app.task(name="add", shared=False)
        def add(*args: Any, **kwargs: Any) -> None:
            """Takes anything."""

        return add

    yield make
    for app in apps:
        app.close()


def deep() -> list[Any]:
    """A value with more levels than a worker reads."""
    value: list[Any] = []
    for _ in range(70):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda t: t.apply_async((1,), serializer="yaml"), "application/x-yaml, .* only JSON"),
        (lambda t: t.delay(deep()), "nested deeper than 64 levels"),
        (lambda t: t.apply_async((1,), time_limit="5"), r"headers\.timelimit: .*number of seconds"),
        (lambda t: t.apply_async((1,), shadow=5), r"headers\.shadow: .*valid string"),
        (lambda t: t.apply_async((1,), reply_to=5), r"properties\.reply_to: .*valid string"),
        (lambda t: t.apply_async((1,), link={"task": 5}), "a callback is not a signature"),
        (lambda t: t.app.send_task("x" * 256), r"headers\.task: .*1 to 255 characters"),
    ],
)
def test_what_no_worker_reads_is_an_error_of_the_call(
    make_task: Callable[..., Any], fake: FakeSqs, call: Call, why: str
) -> None:
    with pytest.raises(PublishError, match=f"No worker would run this message: .*{why}"):
        call(make_task())
    assert fake.asked("SendMessage") == []


CANVAS = {
    "link": lambda t: t.apply_async((1,), link=t.si(2)),
    "link_error": lambda t: t.apply_async((1,), link_error=t.si(2)),
    "chain": lambda t: chain(t.si(1), t.si(2))(),
    "chain with a group": lambda t: chain(t.si(1), group(t.si(2), t.si(3)))(),
    "map": lambda t: t.map([1, 2]).delay(),
    "starmap": lambda t: t.starmap([(1,), (2,)]).delay(),
    "chunks": lambda t: t.chunks([(1,), (2,)], 1).apply_async(),
    "send_task": lambda t: t.app.send_task("celery.backend_cleanup"),
}


@pytest.mark.parametrize("call", CANVAS.values(), ids=CANVAS)
def test_canvas_that_the_options_forbid_is_an_error_of_the_call(
    make_task: Callable[..., Any], fake: FakeSqs, call: Call
) -> None:
    closed, opened = make_task(**CLOSED), make_task()
    with pytest.raises(PublishError, match=r"\((built_in_tasks|most_callbacks)\)"):
        call(closed)
    assert fake.asked("SendMessage") == []
    call(opened)
    assert fake.asked("SendMessage") != []


def test_a_block_and_a_call_of_many_refuse_it_too(
    make_task: Callable[..., Any], fake: FakeSqs
) -> None:
    task = make_task(**CLOSED)

    def send_in_a_block() -> None:
        with batching():
            task.delay(1)
            task.apply_async((2,), link=task.si(3))

    with pytest.raises(PublishError, match="most_callbacks"):
        send_in_a_block()
    published = publish_many(task, [{"x": 1}, {"x": deep()}])
    assert published.sent == 1
    assert "nested deeper" in published.failed[1]
    assert [len(call["Entries"]) for call in fake.asked("SendMessageBatch")] == [1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task_protocol": 1},
        {"stamped_headers": ("shop",), "shop": "7"},
        {"headers": {"mine": {"a": [1, 2]}}},
        {"expires": 60, "countdown": 5, "time_limit": 3},
        {"app_id": "shop", "type": "order"},
    ],
    ids=repr,
)
def test_what_a_worker_reads_is_sent(
    make_task: Callable[..., Any], fake: FakeSqs, options: dict[str, Any]
) -> None:
    task = make_task(**CLOSED)
    task.app.conf.task_protocol = options.pop("task_protocol", 2)
    task.apply_async((1, "[" * 100), **options)
    assert len(fake.asked("SendMessage")) == 1


def test_what_a_running_task_sends_is_not_refused(
    make_task: Callable[..., Any], fake: FakeSqs
) -> None:
    # An error would fail that task, although its work may be done.
    make_task(**CLOSED).apply_async((1,), shadow=5, parent_id="running")
    assert len(fake.asked("SendMessage")) == 1
