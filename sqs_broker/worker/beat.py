"""A scheduler that derives message ids from the schedule. Set by `beat_scheduler`.

Two beat processes that run at the same time, or one that was restarted, send the same id for the
same turn. A task that runs once for each id then ignores the second message.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler
from celery.schedules import schedule as Interval

from sqs_broker.errors import ConfigurationError
from sqs_broker.machine import files

#: The resolution of all schedules except intervals (crontab, solar), in seconds.
MINUTE = 60


class Scheduler(PersistentScheduler):
    """Celery's scheduler, with `task_id` set to the entry's name and the number of its turn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_turns: dict[str, int] = {}
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Read the schedule's file. It is unpickled, so this raises ConfigurationError if another
        user may have written it."""
        if why := files.fault(Path(self.schedule_filename)):
            raise ConfigurationError(
                f"beat_schedule_filename (--schedule): {why}. "
                "Set it to a file in a directory that only this user may write to."
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
