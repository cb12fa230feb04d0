"""The control plane in a worker: what was revoked is known, and what becomes of it is said."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.worker import state
from pymongo.errors import AutoReconnect

from sqs_broker.control import worker
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import ControlOptions
from tests.unit.conftest import GivePlane


class Store:
    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.ids = ["id-1"]

    def revoked(self) -> tuple[list[str], list[tuple[str, str]]]:
        if self.fault:
            raise self.fault
        return self.ids, [("batch", "b1")]

    def close(self) -> None: ...


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def consumer(give_plane: GivePlane, store: Store) -> Iterator[Any]:
    """What Celery's consumer is to the control plane; what Celery knows is as before after it."""
    kept = state.revoked.maxlen, state.revoked.expires
    address = give_plane(store, revokes_seconds=1_000)
    control = SimpleNamespace(options=address, on_commands_open=None)
    yield SimpleNamespace(
        app=Celery("tests", set_as_current=False),
        connection=SimpleNamespace(transport=SimpleNamespace(control=control)),
        hub=SimpleNamespace(call_soon=lambda call: call()),
        control=control,
    )
    state.revoked.maxlen, state.revoked.expires = kept
    state.revoked.clear()
    state.revoked_stamps.clear()
    signals.task_revoked.disconnect(worker.log_revoked)


def test_what_was_revoked_is_known_before_the_first_message(consumer: Any) -> None:
    worker.attach(consumer)
    assert "id-1" in state.revoked
    assert state.revoked_stamps == {"batch": ["b1"]}


def test_it_is_known_for_as_long_as_a_message_can_live(consumer: Any, store: Store) -> None:
    store.ids = [f"id-{number}" for number in range(60_000)]
    worker.attach(consumer)
    assert len(state.revoked) == 60_000
    assert state.revoked.expires == 1_000


def test_after_an_outage_it_is_asked_for_again(consumer: Any, store: Store) -> None:
    store.fault = AutoReconnect()
    worker.attach(consumer)
    assert "id-1" not in state.revoked
    store.fault = None
    consumer.control.on_commands_open()
    consumer.control.on_commands_open()
    assert "id-1" in state.revoked
    assert state.revoked_stamps == {"batch": ["b1"]}


def test_without_a_control_plane_a_worker_is_as_it_was(consumer: Any) -> None:
    consumer.control.options = ControlOptions()
    worker.attach(consumer)
    assert list(state.revoked) == []


def test_a_worker_without_a_control_plane_says_what_there_is_not(
    consumer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    consumer.control.options = ControlOptions()
    with caplog.at_level(logging.INFO):
        worker.attach(consumer)
    (line,) = (one for one in caplog.records if vars(one).get("event") == "control.none")
    for missing in ("no events, inspect and control", "no revoke", "deliveries that SQS counts"):
        assert missing in line.message


def test_names_that_differ_from_celerys_stop_the_worker(consumer: Any) -> None:
    consumer.app.conf.event_exchange = "other"
    with pytest.raises(ConfigurationError, match="event_exchange is 'other'"):
        worker.attach(consumer)


@pytest.mark.parametrize(("expired", "reason"), [(True, "expired"), (False, "revoked")])
def test_the_log_says_what_became_of_a_revoked_task(
    consumer: Any, caplog: pytest.LogCaptureFixture, expired: bool, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    worker.attach(consumer)

    @consumer.app.task(name="registerUser", shared=False)
    def register_user() -> None: ...

    signals.task_revoked.send(
        sender=register_user,
        request=SimpleNamespace(id="id-1"),
        terminated=False,
        signum=None,
        expired=expired,
    )
    (line,) = (vars(r) for r in caplog.records if vars(r).get("event") == "task.revoked")
    assert (line["task"], line["message_id"], line["reason"]) == ("registerUser", "id-1", reason)
