"""What `install` gives an app, and what the app's own choice takes its place."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.result import allow_join_result
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request as CeleryRequest
from kombu.utils.imports import symbol_by_name

from sqs_broker import Transport, batching, install, publish_many
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import Options
from sqs_broker.tools.startup import check_consumed, check_limits
from sqs_broker.worker.consumer import Consumer
from sqs_broker.worker.defaults import RELIABLE, is_elsewhere, uses_sqs
from sqs_broker.worker.request import Request

OPTIONS = {
    "region": "us-east-1",
    "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
}

MakeApp = Callable[..., Celery]


def configure_before(app: Celery, settings: dict[str, Any]) -> None:
    app.config_from_object(type("Settings", (), settings))
    install(app)


def configure_after(app: Celery, settings: dict[str, Any]) -> None:
    install(app)
    app.config_from_object(type("Settings", (), settings))


def update_before(app: Celery, settings: dict[str, Any]) -> None:
    app.conf.update(settings)
    install(app)


def update_after(app: Celery, settings: dict[str, Any]) -> None:
    install(app)
    app.conf.update(settings)


def update_when_it_was_read(app: Celery, settings: dict[str, Any]) -> None:
    install(app)
    assert app.conf.broker_url.startswith("sqs:")
    app.conf.update(settings)


def install_when_it_was_read(app: Celery, settings: dict[str, Any]) -> None:
    app.conf.update(settings)
    assert app.conf.task_protocol == 2
    install(app)


WAYS = [
    configure_before,
    configure_after,
    update_before,
    update_after,
    update_when_it_was_read,
    install_when_it_was_read,
]


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Makes an app with these settings, in one of the ways that a project has."""
    made: list[Celery] = []

    def make(way: Callable[..., None] = update_after, **settings: Any) -> Celery:
        app = Celery("shop", set_as_current=False)
        made.append(app)
        way(app, {"broker_transport_options": OPTIONS, **settings})
        return app

    yield make
    for app in made:
        app.close()


@pytest.mark.parametrize("way", WAYS)
def test_an_app_that_says_nothing_has_all_that_no_message_is_lost_without(
    make_app: MakeApp, way: Callable[..., None]
) -> None:
    conf = make_app(way).conf
    assert {name: conf[name] for name in RELIABLE} == RELIABLE
    assert conf.beat_scheduler == "sqs_broker.worker.beat:Scheduler"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beat_scheduler", "django_celery_beat.schedulers:DatabaseScheduler"),
        ("broker_url", "memory://"),
        ("task_acks_late", False),
        ("task_time_limit", 7),
        ("worker_prefetch_multiplier", 3),
        ("worker_pool", "solo"),
    ],
)
def test_what_an_app_says_itself_wins(
    make_app: MakeApp, way: Callable[..., None], name: str, value: Any
) -> None:
    assert make_app(way, **{name: value}).conf[name] == value


@pytest.mark.parametrize("settings", [{"beat_scheduler": "a:B"}, {"CELERYBEAT_SCHEDULER": "a:B"}])
def test_a_setting_wins_by_its_old_name_too(make_app: MakeApp, settings: dict[str, Any]) -> None:
    app = Celery("shop", set_as_current=False)
    install(app)
    app.config_from_object(type("Settings", (), settings))
    assert app.conf.beat_scheduler == "a:B"


def test_a_setting_with_a_prefix_wins() -> None:
    app = Celery("shop", set_as_current=False)
    install(app)
    settings = {"CELERY_BEAT_SCHEDULER": "a:B", "CELERY_BROKER_TRANSPORT_OPTIONS": OPTIONS}
    app.config_from_object(type("Settings", (), settings), namespace="CELERY")
    assert app.conf.beat_scheduler == "a:B"
    assert (app.conf.task_acks_late, app.conf.task_default_queue) == (True, "jobs")


def test_a_default_is_given_where_the_task_reads_it(make_app: MakeApp) -> None:
    app = make_app()

    @app.task(shared=False)
    def job() -> None: ...

    assert (job.acks_late, job.reject_on_worker_lost, job.acks_on_failure) == (True, True, False)


@pytest.mark.parametrize(("lease", "limit"), [(None, 55), (300, 295), (3, 1)])
def test_a_task_without_a_limit_ends_before_its_lease(
    make_app: MakeApp, lease: int | None, limit: int
) -> None:
    options = OPTIONS | ({"visibility_timeout": lease} if lease else {})
    assert make_app(broker_transport_options=options).conf.task_time_limit == limit


@pytest.mark.parametrize(
    ("settings", "queue"),
    [({}, "jobs"), ({"task_default_queue": "mail"}, "mail"), ({"task_queues": ()}, "celery")],
)
def test_the_first_configured_queue_is_the_default_one(
    make_app: MakeApp, settings: dict[str, Any], queue: str
) -> None:
    assert make_app(**settings).conf.task_default_queue == queue


# Which broker


def transport_of(app: Celery) -> Any:
    return app.connection_for_write().get_transport_cls()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"broker_url": "sqs://"},
        {"broker_url": "sqs://localhost"},
        {"broker_url": "SQS://"},
        {"broker_url": "sqs://;sqs://"},
        {"broker_url": ["sqs://", "sqs://"]},
        {"broker_transport": "sqs"},
        {"broker_url": "sqs://", "broker_transport": "SQS"},
    ],
    ids=repr,
)
def test_what_names_sqs_and_what_names_nothing_is_this_broker(
    make_app: MakeApp, settings: dict[str, Any]
) -> None:
    app = make_app(**settings)
    assert transport_of(app) is Transport
    assert app.connection_for_write().clone().get_transport_cls() is Transport
    assert uses_sqs(app)
    assert not is_elsewhere(app)


def test_inspect_can_show_the_connection(make_app: MakeApp) -> None:
    assert json.dumps(make_app().connection_for_read().info())


@pytest.mark.parametrize("way", WAYS)
def test_another_url_is_another_broker(make_app: MakeApp, way: Callable[..., None]) -> None:
    app = make_app(way, broker_url="memory://")
    assert transport_of(app).driver_type == "memory"
    assert not uses_sqs(app)


def test_the_transport_of_kombu_by_its_path_is_another_broker(make_app: MakeApp) -> None:
    app = make_app(broker_transport="kombu.transport.SQS:Transport")
    assert transport_of(app) is not Transport
    assert is_elsewhere(app)


def test_another_url_of_the_environment_is_another_broker(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    assert transport_of(make_app()).driver_type == "memory"


def test_the_url_of_the_app_itself_wins() -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app)
    assert transport_of(app).driver_type == "memory"
    assert not app.conf.task_acks_late


def test_on_another_broker_a_worker_has_celerys_consumer(make_app: MakeApp) -> None:
    app = make_app(broker_url="memory://", broker_transport_options={})
    # A worker notes for its process that results must not be awaited; this forgets it again.
    with allow_join_result():
        worker = app.WorkController(pool_cls="solo", concurrency=1)
    assert type(worker.consumer) is CeleryConsumer
    assert not isinstance(worker.consumer, Consumer)


def test_a_request_is_that_of_the_broker_that_the_app_uses_now(make_app: MakeApp) -> None:
    app = make_app()

    @app.task(shared=False)
    def job() -> None: ...

    assert symbol_by_name(job.Request) is Request
    # As a project's tests do, after its tasks are made.
    app.conf.update(broker_url="memory://", broker_transport_options={})
    assert symbol_by_name(job.Request) is CeleryRequest


def test_on_another_broker_calls_of_this_one_are_plain_calls(make_app: MakeApp) -> None:
    app = make_app(broker_url="memory://", broker_transport_options={})

    @app.task(shared=False, name="job")
    def job(number: int) -> None: ...

    assert publish_many(job, [{"number": 1}, {"nummer": 2}]).failed.keys() == {1}
    with batching():
        job.delay(2)
    asyncio.run(job.adelay(3))
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("celery")
        sent = [queue.get(block=False).payload[:2] for _ in range(3)]
    assert sent == [[[], {"number": 1}], [[2], {}], [[3], {}]]


def test_an_eager_call_of_many_runs_them(make_app: MakeApp) -> None:
    app = make_app(task_always_eager=True)
    ran: list[int] = []

    @app.task(shared=False, name="job")
    def job(number: int) -> None:
        ran.append(number)

    assert publish_many(job, [{"number": 1}, {"number": 2}]).sent == 2
    assert ran == [1, 2]


@pytest.mark.parametrize("acks_late", [True, False])
def test_on_another_broker_a_task_fails_and_is_retried_as_celery_has_it(
    make_app: MakeApp, acks_late: bool
) -> None:
    app = make_app(broker_url="memory://", broker_transport_options={}, task_acks_late=acks_late)

    @app.task(shared=False, bind=True, name="job", max_retries=99)
    def job(self: Any, error: str) -> None:
        if error == "retry":
            self.retry(args=("other",), countdown=0)
        raise KeyError

    trace = build_tracer("job", job, app=app)
    request = {"id": "1", "retries": 0, "delivery_info": {"routing_key": "jobs"}}
    failed = trace("1", ("fails",), {}, request)
    assert failed.info.state == "FAILURE"
    # A new message, with the arguments of the call.
    assert trace("1", ("retry",), {}, request).info.state == "RETRY"
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("celery")
        assert queue.get(block=False).payload[0] == ["other"]


# What a worker checks


def test_a_queue_that_is_not_configured_stops_a_worker(make_app: MakeApp) -> None:
    app = make_app()
    options = Options.read(OPTIONS)
    check_consumed(app, options)
    # As `celery worker -Q job` does.
    app.amqp.queues.select("job")
    with pytest.raises(ConfigurationError, match=r"No queue 'job' is configured.* see -Q"):
        check_consumed(app, options)


def test_numbers_that_contradict_each_other_stop_a_worker(make_app: MakeApp) -> None:
    check_limits(make_app())
    with pytest.raises(ConfigurationError, match=r"max_attempts \(9\)"):
        check_limits(make_app(broker_transport_options=OPTIONS | {"max_attempts": 9}))


@pytest.mark.parametrize("heartbeat", [True, False])
def test_a_task_longer_than_its_lease_needs_the_heartbeat(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, heartbeat: bool
) -> None:
    options = OPTIONS | {"visibility_timeout": 30, "heartbeat": heartbeat}
    app = make_app(broker_transport_options=options, task_time_limit=60)
    if heartbeat:
        check_limits(app)
        (record,) = caplog.records
        assert "visibility_timeout (30 s)" in record.getMessage()
    else:
        with pytest.raises(ConfigurationError, match="visibility_timeout"):
            check_limits(app)
