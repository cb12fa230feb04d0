"""Message ids made from the schedule."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule

from sqs_broker.worker.beat import Scheduler, turn_of

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Entry(ScheduleEntry):
    """An entry in a world where it is just past noon."""

    def default_now(self) -> datetime:
        return NOON + timedelta(seconds=0.4)


def entry(when: Any, last_run_at: datetime) -> Entry:
    app = Celery("beat", set_as_current=False)
    when.nowfun = lambda: NOON + timedelta(seconds=0.4)
    when.app = app
    return Entry(name="report", task="report", schedule=when, last_run_at=last_run_at, app=app)


@pytest.mark.parametrize(
    ("when", "ago"),
    [(schedule(timedelta(minutes=5)), 300), (crontab(minute="*/5"), 300)],
)
def test_two_beats_number_the_same_turn_alike(when: Any, ago: float) -> None:
    one = entry(when, NOON - timedelta(seconds=ago))
    other = entry(when, NOON - timedelta(seconds=ago - 0.2))

    assert turn_of(one) == turn_of(other)


def test_the_id_of_a_message_is_the_entry_and_its_turn(tmp_path: Any) -> None:
    sent: list[str] = []
    scheduler = Scheduler(app=Celery("beat", set_as_current=False), lazy=True)
    scheduler.send_task = lambda *args, **options: sent.append(options["task_id"])
    due = entry(schedule(timedelta(minutes=5)), NOON - timedelta(minutes=5))
    turn = int(NOON.timestamp() // 300)

    scheduler.apply_async(due, advance=False)
    scheduler.apply_async(due, advance=False)

    assert sent == [f"report:{turn}", f"report:{turn + 1}"]
