"""Observers: each hears everything, and none of them harms another or a message."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from sqs_broker.observers.observer import Observer, Observers, Together
from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.outcomes import Done, Happened, Outcome, Succeeded
from tests.unit.conftest import MakeDelivery

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


class Noting(Observer):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def received(self, message: Facts) -> None:
        self.heard.append("received")

    def started(self, message: Facts) -> None:
        self.heard.append("started")

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        self.heard.append(f"ended {outcome.name}")

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        self.heard.append(f"settled {error}")

    def lost(self, message: Facts, why: str) -> None:
        self.heard.append(f"lost {why}")

    def published(self, queue: str, count: int) -> None:
        self.heard.append(f"published {count}")

    def paused(self, reasons: frozenset[str]) -> None:
        self.heard.append(f"paused {sorted(reasons)}")


class Broken(Observer):
    """Fails at everything."""

    def __getattribute__(self, name: str) -> Any:
        def fail(*_: Any) -> None:
            raise ValueError(MARKER)

        return object.__getattribute__(self, name) if name.startswith("__") else fail


def tell(observer: Observer, message: Facts) -> None:
    """All that can happen to a message, and around it."""
    observer.received(message)
    observer.started(message)
    observer.ended(message, Succeeded(), Done())
    observer.settled(message, Done(), None)
    observer.lost(message, "why")
    observer.published("jobs", 3)
    observer.paused(frozenset({"b", "a"}))


ALL = [
    "received", "started", "ended done", "settled None", "lost why", "published 3",
    "paused ['a', 'b']",
]  # fmt: skip


def test_each_observer_hears_everything_in_order(make_delivery: MakeDelivery) -> None:
    one, other = Noting(), Noting()
    tell(Observers([one, other]), facts_of(make_delivery(), None))
    assert one.heard == other.heard == ALL


def test_each_observer_hears_of_each_message_of_many(make_delivery: MakeDelivery) -> None:
    message, noting = facts_of(make_delivery(), None), Noting()
    observers = Observers([Broken(), noting])
    observers.received_all([message, message])
    observers.started_all([message, message])
    observers.ended_all([(message, Succeeded(), Done())] * 2)
    observers.settled_all([(message, Done(), None), (message, Done(), "AccessDenied")])
    assert noting.heard == [
        "received", "received", "started", "started", "ended done", "ended done", "settled None",
        "settled AccessDenied",
    ]  # fmt: skip


def test_an_observer_that_hears_nothing_needs_no_method(make_delivery: MakeDelivery) -> None:
    tell(Observers([Observer()]), facts_of(make_delivery(), None))


@pytest.mark.parametrize("at", [0, 1])
def test_an_observer_that_fails_costs_a_line_and_nothing_else(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    noting = Noting()
    observers: list[Observer] = [noting]
    observers.insert(at, Broken())
    with caplog.at_level(logging.ERROR):
        tell(Observers(observers), facts_of(make_delivery(), None))
    assert noting.heard == ALL
    assert {vars(record)["event"] for record in caplog.records} == {"observer.failed"}
    assert len(caplog.records) == len(ALL)
    assert MARKER not in caplog.text


def test_an_observer_that_wants_to_exit_costs_a_line_too(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    class Exiting(Observer):
        def started(self, message: Facts) -> None:
            raise SystemExit(2)

    Observers([Exiting()]).started(facts_of(make_delivery(), None))
    assert [vars(record)["error"] for record in caplog.records] == ["SystemExit(2)"]


def test_an_observer_that_keeps_failing_is_said_once_for_each_of_its_methods(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    observers, facts = Observers([Broken()]), facts_of(make_delivery(), None)
    for _ in range(100):
        observers.received(facts)
    assert len(caplog.records) == 1


def test_a_message_that_could_not_be_read_is_known_by_the_id_of_sqs(
    make_delivery: MakeDelivery,
) -> None:
    facts = facts_of(make_delivery(message_id="sqs-7"), None)
    assert (facts.id, facts.task, facts.source) == ("sqs-7", None, None)


def test_steps_of_several_messages_are_heard_one_by_one(make_delivery: MakeDelivery) -> None:
    one = Noting()
    observers = Observers([Broken(), one])
    messages = [facts_of(make_delivery(), None) for _ in range(2)]
    observers.received_all(messages)
    observers.started_all(messages)
    observers.ended_all([(message, Succeeded(), Done()) for message in messages])
    assert one.heard == ["received"] * 2 + ["started"] * 2 + ["ended done"] * 2


def test_an_observer_that_fails_for_one_message_hears_of_the_next(
    make_delivery: MakeDelivery,
) -> None:
    class Fragile(Noting):
        def started(self, message: Facts) -> None:
            super().started(message)
            raise ValueError(MARKER)

    fragile = Fragile()
    Observers([fragile]).started_all([facts_of(make_delivery(), None) for _ in range(2)])
    assert fragile.heard == ["started"] * 2


def test_an_observer_that_fails_to_hear_of_several_at_once_costs_a_line(
    make_delivery: MakeDelivery, caplog: pytest.LogCaptureFixture
) -> None:
    class Sudden(Together):
        def started(self, message: Facts) -> None:
            raise AssertionError

        def together(self, what: str, each: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
            raise ValueError(MARKER)

    noting = Noting()
    Observers([Sudden(), noting]).started(facts_of(make_delivery(), None))
    assert noting.heard == ["started"]
    assert [vars(record)["event"] for record in caplog.records] == ["observer.failed"]
