"""What a command means here that it does not mean in Celery, or that it means nothing."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.control import Panel
from kombu import Exchange, Queue

from sqs_broker.control import commands

OPTIONS = {
    "region": "us-east-1",
    "predefined_queues": {"jobs": {"url": "https://sqs.test/jobs"}},
    "credentials": {"aws_secret_access_key": "marker-of-a-secret"},
    "control": {"database_uri": "mongodb://user:marker-of-a-secret@127.0.0.1/"},
}


@pytest.fixture
def state() -> Any:
    """What Celery gives to a command."""
    app = Celery("tests", set_as_current=False)
    app.conf.update(
        broker_transport_options=OPTIONS,
        task_time_limit=30,
        task_queues=[Queue(name, Exchange("")) for name in ("jobs", "elsewhere")],
    )
    asked: list[Any] = []
    consumer = SimpleNamespace(
        pool=SimpleNamespace(),
        asked=asked,
        call_soon=lambda *call, **options: asked.append(call[1]),
        add_task_queue=None,
        cancel_task_queue=None,
        update_strategies=lambda: asked.append("update_strategies"),
        event_dispatcher=SimpleNamespace(groups=set()),
        controller=SimpleNamespace(
            autoscaler=None, stats=lambda: {"broker": {"transport_options": OPTIONS}, "pid": 1}
        ),
        _update_prefetch_count=asked.append,
        connection=SimpleNamespace(
            transport=SimpleNamespace(control=SimpleNamespace(lost=7)),
        ),
    )
    return SimpleNamespace(app=app, consumer=consumer)


def test_celery_finds_ours() -> None:
    for name in ("stats", "pool_grow", "pool_shrink", "time_limit", "disable_events"):
        assert Panel.data[name] is getattr(commands, name)
    for name in ("add_consumer", "cancel_consumer", "election"):
        assert Panel.data[name] is getattr(commands, name)


def test_stats_show_no_secret(state: Any) -> None:
    told = commands.stats(state)
    assert (told["pid"], told["control"]) == (1, {"lost_events": 7})
    assert "marker-of-a-secret" not in str(told)
    assert told["broker"]["transport_options"]["region"] == "us-east-1"


@pytest.mark.parametrize("command", [commands.pool_grow, commands.pool_shrink])
def test_a_pool_that_keeps_its_size_says_so(state: Any, command: Any) -> None:
    assert "has a fixed size" in command(state, n=1)["error"]


def test_a_pool_of_processes_grows_and_shrinks(state: Any) -> None:
    state.consumer.pool = SimpleNamespace(
        grow=state.consumer.asked.append, shrink=state.consumer.asked.append
    )
    assert commands.pool_grow(state, n=2) == {"ok": "pool will grow"}
    assert commands.pool_shrink(state, n=1) == {"ok": "pool will shrink"}
    assert state.consumer.asked == [2, 2, 1, -1]


@pytest.mark.parametrize("command", [commands.add_consumer, commands.cancel_consumer])
@pytest.mark.parametrize("queue", ["nowhere", "elsewhere"])
def test_only_configured_queues_are_consumed(state: Any, command: Any, queue: str) -> None:
    # A queue that Celery makes on its own ends in an exception in the loop.
    assert (
        f"no queue {queue!r} is configured; the configured queues are: jobs"
        in command(state, queue)["error"]
    )
    assert command(state, "jobs")["ok"]
    assert state.consumer.asked == ["jobs"]


def test_a_time_limit_beyond_the_lease_is_refused(state: Any) -> None:
    @state.app.task(name="work", shared=False)
    def work() -> None: ...

    assert "visibility_timeout" in commands.time_limit(state, "work", hard=60)["error"]
    assert (work.time_limit, state.consumer.asked) == (30, [])
    assert commands.time_limit(state, "work", hard=40, soft=20)["ok"]
    assert (work.time_limit, work.soft_time_limit) == (40, 20)
    # Else the next task would still run with the limits of before.
    assert state.consumer.asked == ["update_strategies"]


def test_events_of_all_groups_can_be_turned_off(state: Any) -> None:
    # Celery takes no group, which means all, for none (celery 5.7 worker/control.py).
    assert commands.disable_events(state) == {"ok": "task events disabled"}
    assert state.consumer.event_dispatcher.groups == {"worker"}
    assert commands.disable_events(state) == {"ok": "task events already disabled"}


def test_an_election_says_that_there_is_none(state: Any) -> None:
    assert "not supported" in commands.election(state, id="1", topic="task")["error"]
