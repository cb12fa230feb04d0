"""Estimates how many messages the pool will start within a second, from how long its jobs took.

A message that is received beyond that number waits here while another worker could run it.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import monotonic

#: Seconds within which a message that is received ahead should start.
HORIZON = 1.0

#: The weight of the latest job in the averages: after a few jobs the earlier ones hardly count.
WEIGHT = 0.25

#: Shortest duration of a job in the estimate, in seconds.
SHORTEST = 0.001


@dataclass(frozen=True)
class Job:
    """What a pool process runs at one time: one message, or several messages of one task."""

    id: Hashable
    takes: int = 1
    """Most messages of this task that a process takes at one time."""
    is_measured: bool = True
    """Whether a message ends when its job ends. Not so if the message is deleted before it runs."""


@dataclass
class _Run:
    """A running job."""

    started_at: float
    messages: int = 0
    """Its messages that have not ended."""
    is_measured: bool = False


class Forecast:
    """The running jobs, and how long earlier jobs took. Its owner's lock must be held.

    A process whose job has run for longer than the horizon is not expected to finish it soon. For
    the other processes, jobs per horizon = the share of jobs that end within it / the average time
    that a job takes of it.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        #: By the id of the job, the oldest first.
        self._runs: dict[Hashable, _Run] = {}
        self._running = 0
        self._takes: float | None = None
        #: Averages over the jobs so far, the latest weighted most: the share that ended within the
        #: horizon, and the seconds of the horizon that a job took.
        self._ended: tuple[float, float] | None = None

    def started(self, job: Job) -> None:
        """Record that a process runs a message of this job."""
        if (run := self._runs.get(job.id)) is None:
            run = self._runs[job.id] = _Run(self._clock(), is_measured=not job.is_measured)
            self._takes = _latest(self._takes, job.takes)
        run.messages += 1
        self._running += 1

    def ended(self, job: Job) -> None:
        """Record that a message of this job has ended."""
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
        """Number of running messages."""
        return self._running

    @property
    def runs(self) -> int:
        """Number of running jobs."""
        return len(self._runs)

    @property
    def takes(self) -> float:
        """Messages that a process takes at one time, on average."""
        return self._takes or 1

    def at_once(self, processes: int) -> int:
        """Messages that the free processes take at once. `processes`: size of the pool."""
        return int(max(processes - len(self._runs), 0) * self.takes)

    def soon(self, processes: int) -> int | None:
        """Messages that a pool of this size starts within the horizon; None if no job has ended
        yet. A process whose job has run for longer than the horizon is expected to start none."""
        if self._ended is None:
            return None
        within, seconds = self._ended
        jobs = within * HORIZON / max(seconds, SHORTEST)
        return int(max(processes - self._lasting(), 0) * jobs * self.takes)

    def _lasting(self) -> int:
        """Number of processes whose job has run for longer than the horizon."""
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
