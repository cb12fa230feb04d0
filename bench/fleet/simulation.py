"""Simulates a day of a fleet, second by second.

Workers share what waits, the oldest first. The number of workers changes each minute as
infra/service.yaml says (infra/scaling.py).
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.fleet.days import Day
from bench.fleet.law import Costs, Law
from infra.scaling import Policies, Scaling

MINUTE = 60
NOTHING = Costs(0, 0, 0, 0)


class Second(NamedTuple):
    """What a second was like, as far as its costs depend on it."""

    tasks: int
    done: int
    is_full: bool
    """Whether the tasks did all that they can."""


@dataclass
class Simulated:
    """A day that has passed."""

    arrived: int = 0
    done: int = 0
    most_tasks: int = 0
    task_seconds: int = 0
    """That are paid: of tasks that run and of tasks that start."""
    most_waiting: int = 0
    """Messages at the end of a second."""
    oldest: int = 0
    """Age of the oldest message at the end of a second, in seconds; the largest."""
    behind: int = 0
    """Seconds at whose end a message was a minute old."""
    costs: Costs = NOTHING
    """Of the whole day."""
    most_cores: float = 0
    """CPU seconds of all workers in the busiest second."""
    most_database: float = 0
    """The same of mongod."""
    _seconds: Counter[Second] = field(default_factory=Counter, repr=False)

    @property
    def waiting(self) -> int:
        """Messages that wait now."""
        return self.arrived - self.done


def simulate(law: Law, policies: Policies, cores: float, day: Day) -> Simulated:
    """A day of workers with so many cores each."""
    queue = _Queue(law.capacity(cores))
    scaling, passed = Scaling(policies), Simulated()
    for begin in range(0, len(day.arrivals), MINUTE):
        scaling.begin()
        minute = range(begin, min(begin + MINUTE, len(day.arrivals)))
        passed.task_seconds += len(minute) * max(scaling.tasks, scaling.desired)
        passed.most_tasks = max(passed.most_tasks, scaling.tasks)
        before = passed.arrived
        _minute(passed, queue, scaling.tasks, minute, day)
        # The policies add those that are visible and those in flight.
        scaling.end(passed.arrived - before, passed.waiting, 0)
    _add_costs(passed, law, cores)
    return passed


def _minute(passed: Simulated, queue: "_Queue", tasks: int, minute: range, day: Day) -> None:
    for second in minute:
        passed.arrived += (new := day.arrivals[second])
        working = 0 if second in day.away else tasks
        done, is_full = queue.pass_second(second, new, working)
        passed.done += done
        passed._seconds[Second(tasks, done, is_full)] += 1
        passed.most_waiting = max(passed.most_waiting, passed.waiting)
        if (age := queue.age(second)) > 0:
            passed.oldest = max(passed.oldest, age)
            passed.behind += age >= MINUTE


class _Queue:
    """The messages that wait, by the seconds in which they came."""

    def __init__(self, capacity: float) -> None:
        """`capacity`: messages that a task does in a second."""
        self._capacity = capacity
        self._waiting: deque[list[int]] = deque()
        self._part = 0.0
        """Of a message that tasks have begun."""

    def pass_second(self, second: int, new: int, tasks: int) -> tuple[int, bool]:
        """Let messages come, and tasks work. Returns how many are done, and whether the tasks did
        all that they can."""
        if new:
            self._waiting.append([second, new])
        if not tasks:
            return 0, False
        self._part += tasks * self._capacity
        room = left = int(self._part)
        while left and self._waiting:
            oldest = self._waiting[0]
            taken = min(oldest[1], left)
            left -= taken
            oldest[1] -= taken
            if not oldest[1]:
                self._waiting.popleft()
        is_full = not left
        self._part = self._part - room if is_full else 0.0
        return room - left, is_full

    def age(self, second: int) -> int:
        """Seconds that the oldest message has waited; 0 without one."""
        return second - self._waiting[0][0] if self._waiting else 0


def _add_costs(passed: Simulated, law: Law, cores: float) -> None:
    for second, count in passed._seconds.items():
        taken = _of_a_second(law, cores, *second)
        passed.costs += taken.times(count)
        passed.most_cores = max(passed.most_cores, taken.cores)
        passed.most_database = max(passed.most_database, taken.database)


def _of_a_second(law: Law, cores: float, tasks: int, done: int, is_full: bool) -> Costs:
    if not tasks:
        return NOTHING
    taken = law.full.times(done) if is_full else law.second(done / tasks).times(tasks)
    # With small jobs a message takes more CPU; a task that has no more of it gets larger jobs.
    used = min(taken.cores, tasks * cores)
    return Costs(taken.calls, taken.commands, used, taken.database)
