"""Simulates how infra/service.yaml scales over a day. `python -m infra.scaling` draws it.

The policies, their metrics and their numbers are read from the template. What AWS does with them
is described here: how CloudWatch publishes, when target tracking's own alarms fire, and what
Application Auto Scaling makes of them.
"""

import ast
import math
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from infra.templates import Template, read

ROOT = Path(__file__).resolve().parents[1]

#: Target tracking's own alarms: datapoints of a minute above the target, and below 90% of it. AWS
#: says that it removes more slowly than it adds, and if the metric is usually more than 10% lower;
#: the two numbers are those of the alarms that it makes.
#: https://docs.aws.amazon.com/autoscaling/application/userguide/target-tracking-scaling-policy-overview.html
HIGH_POINTS, LOW_POINTS, LOW_PART = 3, 15, 0.9

#: Minutes of silence after which SQS publishes nothing, and how long it then takes to begin again.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-monitoring-using-cloudwatch.html
SILENT_AFTER, SILENT_FOR = 6 * 60, 15

#: Minutes until a datapoint can be used, and from the wish for a task to its first receive.
PUBLISHED_AFTER, STARTED_AFTER = 1, 2

DAY = 24 * 60

Values = Mapping[str, float | None]
"""The values of metrics in one minute, by their ids; None if there is none."""


# Metric math --------------------------------------------------------------------------------------


def evaluate(expression: str, values: Values) -> float | None:
    """The value of an expression of CloudWatch's metric math in one minute. Knows arithmetic,
    comparisons, `IF` and `FILL` with a number. Raises ValueError for anything else.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html
    """
    return _value(_parsed(expression), values)


@cache
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
}


def _value(node: ast.expr, values: Values) -> float | None:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(op, _value(left, values), _value(right, values))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _combined(op, _value(left, values), _value(right, values))
        case ast.Call(func=ast.Name(id="FILL"), args=[filled, number]):
            found = _value(filled, values)
            return _value(number, values) if found is None else found
        case ast.Call(func=ast.Name(id="IF"), args=[condition, yes, no]):
            holds = _value(condition, values)
            return None if holds is None else _value(yes if holds else no, values)
    raise ValueError(f"not known here: {ast.unparse(node)}")


def _combined(op: ast.AST, left: float | None, right: float | None) -> float | None:
    if left is None or right is None:
        return None
    if isinstance(op, ast.Div):
        # CloudWatch leaves the datapoint out.
        return left / right if right else None
    return float(_OPERATORS[type(op)](left, right))


# The policies -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tracking:
    """A policy that keeps a metric at a target."""

    expression: str
    target: float
    out_cooldown: float
    in_cooldown: float
    """Minutes."""


@dataclass(frozen=True)
class Wake:
    """The policy that starts the first task, and its alarm."""

    expression: str
    threshold: float
    added: int
    cooldown: float
    """Minutes."""


@dataclass(frozen=True)
class Policies:
    """What the template says about scaling."""

    least: int
    most: int
    tracking: tuple[Tracking, ...]
    wake: Wake | None


def policies(template: Template | None = None, **parameters: float) -> Policies:
    """The policies of infra/service.yaml, with these values of its parameters."""
    template = template or read("service")
    given = {
        name: parameters.get(name, about.get("Default"))
        for name, about in template["Parameters"].items()
    }

    def value(of: Any) -> Any:
        return given[of["Ref"]] if isinstance(of, dict) else of

    def tracking(policy: Mapping[str, Any]) -> Tracking:
        return Tracking(
            _expression(policy["CustomizedMetricSpecification"]["Metrics"]),
            float(value(policy["TargetValue"])),
            value(policy["ScaleOutCooldown"]) / 60,
            value(policy["ScaleInCooldown"]) / 60,
        )

    resources = {name: each["Properties"] for name, each in template["Resources"].items()}
    least = int(value(resources["ScalableTarget"]["MinCapacity"]))
    name = "TargetTrackingScalingPolicyConfiguration"
    return Policies(
        least=least,
        most=int(value(resources["ScalableTarget"]["MaxCapacity"])),
        tracking=tuple(tracking(each[name]) for each in resources.values() if name in each),
        # Its condition is StartsFromZero.
        wake=None if least else _wake(resources["WakePolicy"], resources["WakeAlarm"]),
    )


def _wake(policy: Mapping[str, Any], alarm: Mapping[str, Any]) -> Wake:
    rules = policy["StepScalingPolicyConfiguration"]
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    assert (alarm["EvaluationPeriods"], rules["AdjustmentType"]) == (1, "ChangeInCapacity")
    (step,) = rules["StepAdjustments"]
    return Wake(
        _expression(alarm["Metrics"]),
        alarm["Threshold"],
        step["ScalingAdjustment"],
        rules["Cooldown"] / 60,
    )


def _expression(metrics: Sequence[Mapping[str, Any]]) -> str:
    (returned,) = (each for each in metrics if each["ReturnData"])
    return str(returned["Expression"])


# The simulation -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minute:
    """The end of a minute."""

    arrived: int
    visible: int
    in_flight: int
    tasks: float
    """Running tasks; with a function, the invocations that are paid."""
    desired: float
    delay: float
    """Age of the oldest message that ended in this minute, or that still waits, in minutes."""


@dataclass
class Fleet:
    """A queue and its tasks. `rate`: messages that a task ends in a minute. `held`: messages that
    a task has at a time."""

    policies: Policies
    rate: float
    held: int
    waiting: deque[list[float]] = field(default_factory=deque)
    """The minutes in which messages arrived, and how many of them are left."""

    def __post_init__(self) -> None:
        self._scaling = Scaling(self.policies)

    def run(self, traffic: Sequence[int]) -> Iterator[Minute]:
        """Simulate minutes with so many new messages each."""
        for arrived in traffic:
            yield self._minute(arrived)

    def _minute(self, arrived: int) -> Minute:
        scaling = self._scaling
        scaling.begin()
        now, tasks = scaling.now, scaling.tasks
        if arrived:
            self.waiting.append([now, arrived])
        delay = work_off(self.waiting, tasks * self.rate, now)[1]
        left = round(sum(count for _, count in self.waiting))
        in_flight = min(left, tasks * self.held)
        scaling.end(arrived, left - in_flight, in_flight)
        return Minute(arrived, left - in_flight, in_flight, scaling.tasks, scaling.desired, delay)


@dataclass
class Scaling:
    """The number of tasks from minute to minute, as the policies change it."""

    policies: Policies
    now: int = 0
    """The minute."""
    tasks: int = 0
    """Those that run."""
    desired: int = 0
    _starting: list[int] = field(default_factory=list)
    _points: list[Values] = field(default_factory=list)
    """The values of the expressions in each minute so far."""
    _out_until: dict[Tracking, float] = field(default_factory=dict)
    _in_until: dict[Tracking, float] = field(default_factory=dict)
    _wake_until: float = 0
    _last_message: float = -math.inf
    _quiet_until: float = 0

    def __post_init__(self) -> None:
        self.tasks = self.desired = self.policies.least

    def begin(self) -> None:
        """Begin a minute: tasks that have started run."""
        ready = [at for at in self._starting if at <= self.now]
        self._starting = [at for at in self._starting if at > self.now]
        self.tasks = min(self.tasks + len(ready), self.desired)

    def end(self, arrived: int, visible: int, in_flight: int) -> None:
        """End a minute, with the figures of the queue, and begin to start or stop tasks."""
        self._publish(arrived, visible, in_flight)
        self._scale()
        self.now += 1

    def _publish(self, arrived: int, visible: int, in_flight: int) -> None:
        if arrived and self.now - self._last_message > SILENT_AFTER:
            self._quiet_until = self.now + SILENT_FOR
        if arrived or visible or in_flight:
            self._last_message = self.now
        is_silent = self.now - self._last_message > SILENT_AFTER or self.now < self._quiet_until
        values = {
            "visible": None if is_silent else visible,
            "inflight": None if is_silent else in_flight,
            "sent": None if is_silent else arrived,
            "tasks": self.tasks or None,
        }
        wake = self.policies.wake
        expressions = [each.expression for each in self.policies.tracking]
        expressions += [wake.expression] if wake else []
        self._points.append({each: evaluate(each, values) for each in expressions})

    def _scale(self) -> None:
        known = self._points[-LOW_POINTS - PUBLISHED_AFTER : len(self._points) - PUBLISHED_AFTER]
        # Tasks are added if any policy says so, and removed only if all do, to the larger number.
        # https://docs.aws.amazon.com/autoscaling/application/userguide/target-tracking-scaling-policy-overview.html
        wished = [self._tracked(each, known) for each in self.policies.tracking]
        self._set(max(*wished, self._woken(known)))

    def _tracked(self, policy: Tracking, known: Sequence[Values]) -> int:
        values = [each[policy.expression] for each in known]
        high = values[-HIGH_POINTS:]
        if len(high) == HIGH_POINTS and all(v is not None and v > policy.target for v in high):
            if self.now >= self._out_until.get(policy, 0):
                return self._in_proportion(policy, high[-1])
            return self.desired
        below = policy.target * LOW_PART
        is_low = len(values) == LOW_POINTS and all(v is not None and v < below for v in values)
        if is_low and self.now >= self._in_until.get(policy, 0):
            return min(self._in_proportion(policy, values[-1]), self.desired)
        return self.desired

    def _in_proportion(self, policy: Tracking, value: float | None) -> int:
        return math.ceil(self.desired * (value or 0.0) / policy.target)

    def _woken(self, known: Sequence[Values]) -> int:
        wake = self.policies.wake
        if wake is None or not known or self.now < self._wake_until:
            return 0
        value = known[-1][wake.expression]
        return self.desired + wake.added if value is not None and value >= wake.threshold else 0

    def _set(self, wished: int) -> None:
        wished = max(self.policies.least, min(wished, self.policies.most))
        if wished > self.desired:
            self._starting += [self.now + STARTED_AFTER] * (wished - self.desired)
            for each in self.policies.tracking:
                self._out_until[each] = self.now + each.out_cooldown
                self._in_until[each] = self.now + each.in_cooldown
            if self.policies.wake is not None:
                self._wake_until = self.now + self.policies.wake.cooldown
        elif wished < self.desired:
            for each in self.policies.tracking:
                self._in_until[each] = self.now + each.in_cooldown
            # Those that start are stopped first.
            surplus = self.tasks + len(self._starting) - wished
            self._starting = self._starting[: max(len(self._starting) - surplus, 0)]
            self.tasks = min(self.tasks, wished)
        self.desired = wished


def work_off(waiting: deque[list[float]], room: float, now: int) -> tuple[float, float]:
    """Take up to so many messages from those that wait, the oldest first. Returns their number, and
    the age in minutes of the oldest that waited in this minute."""
    left, oldest = room, 0.0
    while waiting and left > 0:
        at, count = waiting[0]
        oldest = max(oldest, now - at)
        done = min(count, left)
        left -= done
        if done == count:
            waiting.popleft()
        else:
            waiting[0][1] -= done
    return room - left, max(oldest, now - waiting[0][0] if waiting else 0.0)


# A function ---------------------------------------------------------------------------------------

#: Invocations that a trigger starts with, and how many more it has a minute later.
#: https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-scaling.html
FIRST_INVOCATIONS, MORE_INVOCATIONS = 5, 300

#: Minutes for which a trigger gathers messages.
WINDOW = 0.5


def invoke(most: int) -> list[Minute]:
    """The day, with a Lambda function in the place of the tasks: at most so many invocations at a
    time, which run their messages one after the other."""
    waiting: deque[list[float]] = deque()
    minutes, limit = [], 0
    for now, arrived in enumerate(day()):
        if arrived:
            waiting.append([now, arrived])
        limit = min(most, limit + MORE_INVOCATIONS if limit else FIRST_INVOCATIONS)
        limit = limit if waiting else 0
        done, oldest = work_off(waiting, limit * 60 / SECONDS, now)
        paid = done * SECONDS / 60
        left = round(sum(count for _, count in waiting))
        delay = oldest + WINDOW if done or left else 0.0
        minutes.append(Minute(arrived, left, 0, paid, paid, delay))
    return minutes


# A day --------------------------------------------------------------------------------------------

#: What the drawn day assumes: seconds of a message, and processes of a task.
SECONDS, CONCURRENCY = 0.5, 4

#: Messages that a task ends in a minute: the backlog for a delay of a minute.
RATE = round(60 / SECONDS * CONCURRENCY)

#: New messages a minute for one task.
FLOW = round(RATE * 2 / 3)

#: Messages a minute at these minutes of the day. In between, they are interpolated.
CURVE = (
    (0, 0), (419, 0), (420, 60), (540, 900), (720, 1400), (840, 900), (1080, 1600),
    (1260, 700), (1380, 200), (1410, 0), (1440, 0),
)  # fmt: skip

#: First minute, length, and messages a minute in addition.
SPIKES = ((600, 10, 4000), (1140, 5, 9000))

#: The minute of one message, in the night.
LONE = 240


def day() -> list[int]:
    """New messages in each minute of a day with a silent night, a lone message in it, two peaks
    and two spikes."""
    traffic = [0] * DAY
    for (begin, low), (end, high) in pairwise(CURVE):
        for minute in range(begin, min(end, DAY)):
            part = (minute - begin) / (end - begin)
            traffic[minute] = round(low + (high - low) * part)
    for begin, length, more in SPIKES:
        for minute in range(begin, begin + length):
            traffic[minute] += more
    traffic[LONE] += 1
    return traffic


def simulate(least: int, most: int = 20, *, has_flow: bool = True) -> list[Minute]:
    """The day, with so many tasks; with the policy of the backlog alone if so wanted."""
    rules = policies(MinTasks=least, MaxTasks=most, BacklogPerTask=RATE, FlowPerTask=FLOW)
    if not has_flow:
        rules = replace(rules, tracking=rules.tracking[:1])
    return list(Fleet(rules, RATE, held=2 * CONCURRENCY).run(day()))


def task_hours(minutes: Sequence[Minute]) -> float:
    """Hours of tasks that are paid: those that run and those that start."""
    return sum(max(minute.tasks, minute.desired) for minute in minutes) / 60


def invocations(minutes: Sequence[Minute], batch: int) -> int:
    """How many invocations a function has that gets batches of this size."""
    return sum(math.ceil(minute.tasks * 60 / SECONDS / batch) for minute in minutes)


def delay(minutes: Sequence[Minute], part: float) -> float:
    """The delay in minutes that this part of the minutes with messages does not exceed."""
    delays = sorted(each.delay for each in minutes if each.arrived or each.visible)
    return delays[math.ceil(part * len(delays)) - 1]


def started(minutes: Sequence[Minute]) -> float:
    """How many tasks were started."""
    return sum(max(after.desired - before.desired, 0) for before, after in pairwise(minutes))


def main() -> int:
    """Draw the day, and print its figures."""
    from infra.scaling_chart import draw

    days = {
        "minimum 1": simulate(1),
        "minimum 0": simulate(0),
        "always 8": simulate(8, 8),
        "minimum 1, by backlog alone": simulate(1, has_flow=False),
        "Lambda, at most 50": invoke(50),
    }
    for name, minutes in days.items():
        print(
            f"{name}: {task_hours(minutes):.0f} task hours; delay: half {delay(minutes, 0.5):.0f}, "
            f"99% {delay(minutes, 0.99):.1f}, longest {delay(minutes, 1):.1f} minutes; tasks "
            f"started: {started(minutes):.0f}"
        )
    print(draw(days, day(), ROOT / "docs" / "images"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
