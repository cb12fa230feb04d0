"""How many messages the pool is likely to start within a second, by how long its jobs took so far.

What is held beyond that waits here for long, while another worker could run it.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import monotonic

#: Seconds within which what is held ahead shall be started.
HORIZON = 1.0

#: What the latest job counts for: after some of another kind, those before hardly count any more.
WEIGHT = 0.25

#: Seconds that a job takes at the least, as it is reckoned with.
SHORTEST = 0.001


@dataclass(frozen=True)
class Job:
    """What a process of the pool runs at a time: one message, or several that share it."""

    id: Hashable
    takes: int = 1
    """How many messages of its task a process takes at a time, where so many wait."""
    is_measured: bool = True
    """Whether the end of a message is that of its job: not where it is deleted before it runs."""


@dataclass
class _Run:
    """A job that runs, of so many messages that have not ended."""

    started_at: float
    messages: int = 0
    is_measured: bool = False


class Forecast:
    """What runs, and how long what ran took. Used under the lock of its owner.

    A process that runs a job for longer than the horizon is not expected to finish it. How many
    jobs of another process fit into it is the share of jobs that do, by the time they take of it.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        #: By the id of their job, the oldest first.
        self._runs: dict[Hashable, _Run] = {}
        self._running = 0
        self._takes: float | None = None
        #: Of all jobs so far, the later the more: the share that ended within the horizon, and the
        #: seconds of it that they took.
        self._ended: tuple[float, float] | None = None

    def started(self, job: Job) -> None:
        """A process runs a message of this job now."""
        if (run := self._runs.get(job.id)) is None:
            run = self._runs[job.id] = _Run(self._clock(), is_measured=not job.is_measured)
            self._takes = _latest(self._takes, job.takes)
        run.messages += 1
        self._running += 1

    def ended(self, job: Job) -> None:
        """A message of this job runs no more."""
        run = self._runs[job.id]
        run.messages -= 1
        self._running -= 1
        if not run.is_measured:
            run.is_measured = True
            self._measure(self._clock() - run.started_at)
        if not run.messages:
            del self._runs[job.id]

    @property
    def running(self) -> int:
        """Messages that run."""
        return self._running

    def at_once(self, processes: int) -> int:
        """Messages that the processes which are free take at once."""
        return int(max(processes - len(self._runs), 0) * (self._takes or 1))

    def soon(self, processes: int) -> int | None:
        """Messages that are started within the horizon by processes that end a job until then, if
        those that are free have enough. None where no job has ended yet."""
        if self._ended is None:
            return None
        within, seconds = self._ended
        jobs = within * HORIZON / max(seconds, SHORTEST)
        return int(max(processes - self._lasting(), 0) * jobs * (self._takes or 1))

    def _lasting(self) -> int:
        """Processes whose job runs for longer than the horizon."""
        before = self._clock() - HORIZON
        lasting = 0
        for run in self._runs.values():
            if run.started_at > before:
                break
            lasting += 1
        return lasting

    def _measure(self, seconds: float) -> None:
        within, spent = self._ended or (None, None)
        self._ended = (
            _latest(within, float(seconds <= HORIZON)),
            _latest(spent, min(seconds, HORIZON)),
        )


def _latest(average: float | None, value: float) -> float:
    return value if average is None else average + (value - average) * WEIGHT
