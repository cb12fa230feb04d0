"""A scheduler whose message ids are made from the schedule.

Two beats that run at the same time, or one that was started again, send the same id for the same
turn, so a task that runs once for each id absorbs the second message. Set by `beat_scheduler`.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler
from celery.schedules import schedule as Interval

from sqs_broker.errors import ConfigurationError
from sqs_broker.machine import files

#: Seconds: the grain of all schedules but intervals (crontab, solar).
MINUTE = 60


class Scheduler(PersistentScheduler):
    """Celery's own, with `task_id` set to the entry's name and the number of its turn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_turns: dict[str, int] = {}
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Read the schedule's file, which is unpickled. Raises ConfigurationError where another
        user may have written it."""
        if why := files.fault(Path(self.schedule_filename)):
            raise ConfigurationError(
                f"beat_schedule_filename (--schedule): {why}. "
                "Name a file in a directory where this user alone may write."
            )
        super().setup_schedule()

    def apply_async(self, entry: Any, *args: Any, **kwargs: Any) -> Any:
        """Send the entry's task under the id of this turn."""
        turn = max(turn_of(entry), self._last_turns.get(entry.name, -1) + 1)
        self._last_turns[entry.name] = turn
        entry.options = {**entry.options, "task_id": f"{entry.name}:{turn}"}
        return super().apply_async(entry, *args, **kwargs)


def turn_of(entry: Any) -> int:
    """The number of the turn that is due: intervals or minutes since 1970."""
    now: datetime = entry.default_now()
    if type(entry.schedule) is Interval:
        return int(now.timestamp() // entry.schedule.run_every.total_seconds())
    due = now + entry.schedule.remaining_estimate(entry.last_run_at)
    return int(due.timestamp() // MINUTE)
