"""What Flower's `/metrics` says about queues. tests/acceptance asks Flower for it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sqs_broker.observers import instruments as of
from sqs_broker.observers.instruments import OF_QUEUES
from sqs_broker.testing import Clock
from sqs_broker.tools.commands.queues import Row
from sqs_broker.tools.flower.figures import VALID, Look, QueueFigures, samples_of
from tests.unit.counted import Series, counted

JOBS = Row("jobs", 3, 2, 1)
DEAD = Row("jobs-dlq", 4, 1, 0, dead_letters_of="jobs")


def test_a_queue_has_its_depth_and_its_dead_letters() -> None:
    assert counted(samples_of(Look([JOBS, DEAD]))) == {
        (of.QUEUE_PAUSED, ("jobs",)): 0,
        (of.READ, ("jobs",)): 1,
        (of.DEPTH, ("jobs", "visible")): 3,
        (of.DEPTH, ("jobs", "in flight")): 2,
        (of.DEPTH, ("jobs", "delayed")): 1,
        (of.READ, ("jobs-dlq",)): 1,
        (of.DEAD_LETTERS, ("jobs", "visible")): 4,
        (of.DEAD_LETTERS, ("jobs", "in flight")): 1,
        (of.DEAD_LETTERS, ("jobs", "delayed")): 0,
    }


def test_the_age_of_the_oldest_message_is_there_if_cloudwatch_knows_it() -> None:
    assert (
        counted(samples_of(Look([Row("jobs", 0, 0, 0, oldest=77)])))[of.QUEUE_AGE, ("jobs",)] == 77
    )


def test_a_queue_that_sqs_did_not_count_is_not_empty_but_unreadable() -> None:
    assert counted(samples_of(Look([Row("jobs", fault="AccessDenied")]))) == {
        (of.READ, ("jobs",)): 0,
        (of.QUEUE_PAUSED, ("jobs",)): 0,
    }


def test_a_pause_is_there_unless_it_is_not_known() -> None:
    paused = Row("jobs", 0, 0, 0, paused="deploy (kim, until it is resumed)")
    assert counted(samples_of(Look([paused])))[of.QUEUE_PAUSED, ("jobs",)] == 1
    unknown = counted(samples_of(Look([Row("jobs", 0, 0, 0)], "MongoDB does not answer")))
    assert (of.QUEUE_PAUSED, ("jobs",)) not in unknown


def test_each_figure_of_queues_is_here() -> None:
    rows = [Row("jobs", 0, 0, 0, oldest=1), DEAD]
    assert {each.instrument for each in samples_of(Look(rows))} == set(OF_QUEUES)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"visible": 9}, (of.DEPTH, ("jobs", "visible"))),
        ({"in_flight": 9}, (of.DEPTH, ("jobs", "in flight"))),
        ({"delayed": 9}, (of.DEPTH, ("jobs", "delayed"))),
        ({"oldest": 9}, (of.QUEUE_AGE, ("jobs",))),
        ({"visible": 9, "dead_letters_of": "x"}, (of.DEAD_LETTERS, ("x", "visible"))),
        ({"in_flight": 9, "dead_letters_of": "x"}, (of.DEAD_LETTERS, ("x", "in flight"))),
        ({"delayed": 9, "dead_letters_of": "x"}, (of.DEAD_LETTERS, ("x", "delayed"))),
    ],
)
def test_each_count_moves_its_figure_alone(change: dict[str, Any], moved: Series) -> None:
    before = Row("jobs", 0, 0, 0, oldest=1, dead_letters_of=change.get("dead_letters_of"))
    after = replace(before, **change)
    was, now = (counted(samples_of(Look([row]))) for row in (before, after))
    assert now.items() - was.items() == {(moved, 9)}


def test_a_look_is_shared_and_valid_for_a_while() -> None:
    clock, looks = Clock(), iter((Look([JOBS]), Look([DEAD])))
    taken = 0

    async def look() -> Look:
        nonlocal taken
        taken += 1
        await asyncio.sleep(0)  # The others ask meanwhile.
        return next(looks)

    async def ask() -> list[bytes]:
        figures = QueueFigures(look, clock)
        first = await asyncio.gather(*(figures.text() for _ in range(5)))
        clock.advance(VALID - 1)
        second = await figures.text()
        clock.advance(1)
        return [*first, second, await figures.text()]

    *same, later = asyncio.run(ask())
    assert taken == 2
    assert len(set(same)) == 1
    names = {s.labels["messaging_destination_name"]
             for family in text_string_to_metric_families(later.decode())
             for s in family.samples}  # fmt: skip
    assert names == {"jobs-dlq", "jobs"}
