"""The alarms of infra/alarms.yaml: deployed, read back, fired by what they watch, and cleared. The
rules of CloudWatch are those of tests/cloudformation/evaluator.py."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sqs_broker.observers.metrics import DIMENSION, NAMESPACE
from tests.cloudformation.cloud import Cloud, Stack
from tests.cloudformation.evaluator import ALARM, MORE, OK, Metrics, composite, evaluate

ROOT = Path(__file__).parents[2]

MINUTE = 60

VISIBLE = "ApproximateNumberOfMessagesVisible"

#: Some time, at the beginning of a period of any length.
NOON = 1_795_780_800


@pytest.fixture(scope="module")
def queues(cloud: Cloud) -> Stack:
    return cloud.stack("queue.yaml", QueueName=f"q-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def stack(cloud: Cloud, queues: Stack) -> Stack:
    return cloud.stack("alarms.yaml", QueueStack=queues.name, Email="someone@example.com")


def alarms(stack: Stack) -> dict[str, Any]:
    """The metric alarms, and the composite ones, by the last part of their names."""
    found = stack.cloud.client("cloudwatch").describe_alarms(AlarmNamePrefix=f"{stack.name}-")
    both = [*found["MetricAlarms"], *found["CompositeAlarms"]]
    return {each["AlarmName"].removeprefix(f"{stack.name}-"): each for each in both}


@dataclass
class Watched:
    """The alarms, and the metrics of one queue and of its dead-letter queue, minute by minute."""

    alarms: Mapping[str, Any]
    queue: str
    dead_letter_queue: str
    metrics: Metrics = field(default_factory=Metrics)
    now: int = NOON
    states: dict[str, str] = field(default_factory=dict)

    def minute(self, dead: Mapping[str, float] | None = None, **values: float) -> None:
        """Let a minute pass, with these metrics of SQS."""
        for name, value in values.items():
            self.metrics.put("AWS/SQS", name, self.now, value, QueueName=self.queue)
        for name, value in (dead or {}).items():
            self.metrics.put("AWS/SQS", name, self.now, value, QueueName=self.dead_letter_queue)
        self.pass_minute()

    def ours(self, **values: float) -> None:
        """Let a minute pass, with these metrics of ours."""
        for name, value in values.items():
            self.metrics.put(NAMESPACE, name, self.now, value, **{DIMENSION: self.queue})
        self.pass_minute()

    def pass_minute(self) -> None:
        self.now += MINUTE
        for name, alarm in self.alarms.items():
            if "AlarmRule" not in alarm:
                before = self.states.get(name, OK)
                self.states[name] = evaluate(alarm, self.metrics, self.now, before)

    def quiet(self, minutes: int) -> None:
        for _ in range(minutes):
            self.pass_minute()

    @property
    def fired(self) -> set[str]:
        """The metric alarms that are in alarm."""
        return {name for name, state in self.states.items() if state == ALARM}

    @property
    def trouble(self) -> str:
        return self.composite("Trouble")

    def composite(self, alarm_name: str) -> str:
        """The state of a composite alarm."""
        alarm = self.alarms[alarm_name]
        by_full_name = {
            self.alarms[name]["AlarmName"]: state for name, state in self.states.items()
        }
        return composite(alarm["AlarmRule"], by_full_name)


@pytest.fixture
def watched(stack: Stack, queues: Stack) -> Watched:
    outputs = queues.outputs
    return Watched(alarms(stack), outputs["QueueName"], outputs["DeadLetterQueueName"])


# Deployed -----------------------------------------------------------------------------------------


def test_each_alarm_exists_and_says_what_to_do(stack: Stack) -> None:
    found = alarms(stack)
    assert set(found) == {
        "Depth",
        "Oldest",
        "ErrorRate",
        "NobodyPolls",
        "Trouble",
        "PausedTrouble",
        "Paused",
        "FunctionPaused",
        "Outage",
        "DeadLetters",
        "DeadLettersGrow",
        "LateFailures",
    }
    assert all(len(alarm["AlarmDescription"]) > 20 for alarm in found.values())


def test_one_topic_with_the_address_gets_all_alarms(stack: Stack) -> None:
    sns, topic = stack.cloud.client("sns"), stack.outputs["AlarmTopicArn"]
    (subscription,) = sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", "someone@example.com")
    with_actions = {name for name, alarm in alarms(stack).items() if alarm.get("AlarmActions")}
    assert with_actions == {
        "Trouble",
        "PausedTrouble",
        "Outage",
        "DeadLetters",
        "DeadLettersGrow",
        "LateFailures",
    }
    assert {action for a in alarms(stack).values() for action in a["AlarmActions"]} == {topic}


def test_what_has_no_action_is_part_of_the_composite_alarm(stack: Stack) -> None:
    found = alarms(stack)
    silent = {alarm["AlarmName"] for alarm in found.values() if not alarm.get("AlarmActions")}
    rule = found["Trouble"]["AlarmRule"]
    assert set(re.findall(r'ALARM\("([^"]+)"\)', rule)) == silent


def test_the_thresholds_are_parameters_and_changed_in_place(cloud: Cloud, queues: Stack) -> None:
    made = cloud.stack("alarms.yaml", QueueStack=queues.name)
    assert made.deploy() == []
    assert made.deploy(DepthThreshold="500", OldestSeconds="900") == ["Depth", "Oldest"]
    found = alarms(made)
    assert (found["Depth"]["Threshold"], found["Oldest"]["Threshold"]) == (500, 900)
    assert made.deploy(ErrorRateLeast="50") == ["ErrorRate"]
    assert "ended >= 50" in alarms(made)["ErrorRate"]["Metrics"][0]["Expression"]


def test_the_events_that_a_description_names_are_in_the_log(stack: Stack) -> None:
    documented = (ROOT / "docs" / "logging.md").read_text()
    named = {
        event
        for alarm in alarms(stack).values()
        # `docs/runbooks/….md` is no event.
        for event in re.findall(r"\b[a-z_]+\.(?!md\b)[a-z_-]+\b", alarm["AlarmDescription"])
    }
    assert named
    assert {event for event in named if f"| `{event}` |" not in documented} == set()


# Fired and cleared --------------------------------------------------------------------------------


def test_many_messages_for_three_of_five_minutes_fire_and_fewer_clear(watched: Watched) -> None:
    polled = {"NumberOfMessagesReceived": 10}
    for depth in (100, 100, 99):
        watched.minute(ApproximateNumberOfMessagesVisible=depth, **polled)
    assert watched.fired == set()
    watched.minute(ApproximateNumberOfMessagesVisible=500, **polled)
    assert watched.fired == {"Depth"}
    assert watched.trouble == ALARM
    for _ in range(4):
        watched.minute(ApproximateNumberOfMessagesVisible=10, **polled)
    assert watched.trouble == OK


def test_an_old_message_fires_by_either_age(watched: Watched) -> None:
    for _ in range(2):
        watched.minute(ApproximateAgeOfOldestMessage=300)
    assert watched.fired == {"Oldest"}
    watched.quiet(5)
    assert watched.fired == set()
    # SQS leaves out messages that it has delivered three times.
    for _ in range(2):
        watched.metrics.put(NAMESPACE, "Age", watched.now, 301, **{DIMENSION: watched.queue})
        watched.minute(ApproximateAgeOfOldestMessage=5)
    assert watched.fired == {"Oldest"}
    watched.quiet(5)
    assert watched.fired == set()


def test_an_error_rate_counts_from_enough_runs_on(watched: Watched) -> None:
    watched.ours(Ended=19, Failed=19)
    watched.quiet(9)
    assert watched.fired == set()
    watched.ours(Ended=20, Failed=1)
    watched.quiet(9)
    assert watched.fired == set()
    watched.ours(Ended=20, Failed=2)
    watched.quiet(4)
    assert watched.fired == {"ErrorRate"}
    # Without newer data, the last one counts for as long as CloudWatch retrieves it.
    watched.quiet(5 * MORE)
    assert watched.fired == {"ErrorRate"}
    watched.quiet(5)
    assert watched.fired == set()


def test_messages_that_nobody_asks_for_fire(watched: Watched) -> None:
    silent = {"NumberOfEmptyReceives": 0, "NumberOfMessagesReceived": 0}
    for _ in range(5):
        watched.minute(ApproximateNumberOfMessagesVisible=1, **silent)
    assert watched.fired == {"NobodyPolls"}
    watched.minute(ApproximateNumberOfMessagesVisible=1, NumberOfMessagesReceived=1)
    assert watched.fired == set()


def test_messages_that_nobody_asks_for_fire_also_if_sqs_says_nothing_of_polls(
    watched: Watched,
) -> None:
    for _ in range(4):
        watched.minute(ApproximateNumberOfMessagesVisible=1)
    # A minute in which a poll took the last message: the least counts.
    watched.metrics.put("AWS/SQS", VISIBLE, watched.now, 3, QueueName=watched.queue)
    watched.minute(ApproximateNumberOfMessagesVisible=0)
    assert watched.fired == set()
    for _ in range(5):
        watched.minute(ApproximateNumberOfMessagesVisible=1)
    assert watched.fired == {"NobodyPolls"}
    # Of a queue that is silent for six hours SQS says nothing.
    watched.quiet(8)
    assert watched.fired == set()


@pytest.mark.parametrize(
    "values",
    [
        {"ApproximateNumberOfMessagesVisible": 0},
        {"ApproximateNumberOfMessagesVisible": 5, "NumberOfEmptyReceives": 1},
        {"ApproximateNumberOfMessagesVisible": 5, "NumberOfMessagesReceived": 5},
    ],
)
def test_a_queue_that_is_empty_or_polled_fires_nothing(
    watched: Watched, values: dict[str, float]
) -> None:
    for _ in range(10):
        watched.minute(**values)
    assert watched.fired == set()


def dead(visible: float, hidden: float = 0) -> dict[str, float]:
    return {
        "ApproximateNumberOfMessagesVisible": visible,
        "ApproximateNumberOfMessagesNotVisible": hidden,
    }


def test_a_dead_letter_fires_until_it_is_gone_also_if_sqs_falls_silent(watched: Watched) -> None:
    watched.minute(dead=dead(1))
    assert watched.fired == {"DeadLetters"}
    watched.quiet(600)
    assert watched.fired == {"DeadLetters"}
    watched.minute(dead=dead(0))
    assert watched.fired == set()


def test_further_dead_letters_fire_again_and_a_look_at_them_does_not(watched: Watched) -> None:
    for _ in range(5):
        watched.minute(dead=dead(3))
    assert watched.fired == {"DeadLetters"}
    # `dlq list` hides what it reads.
    for hidden in (3, 3, 0, 0, 0):
        watched.minute(dead=dead(3 - hidden, hidden))
    assert watched.fired == {"DeadLetters"}
    for hidden in (3, 3, 3, 3, 3, 0, 0, 0, 0, 0):
        watched.minute(dead=dead(3 - hidden, hidden))
        assert "DeadLettersGrow" not in watched.fired
    for _ in range(5):
        watched.minute(dead=dead(4))
    assert watched.fired == {"DeadLetters", "DeadLettersGrow"}
    for _ in range(5):
        watched.minute(dead=dead(4))
    assert watched.fired == {"DeadLetters"}
    for _ in range(5):
        watched.minute(dead=dead(0))
    assert watched.fired == set()


def test_a_third_failure_fires_once(watched: Watched) -> None:
    watched.ours(LateFailures=1)
    assert watched.fired == {"LateFailures"}
    watched.ours(LateFailures=0)
    assert watched.fired == set()


def test_an_outage_has_one_page_and_no_other(watched: Watched) -> None:
    paged: list[str] = []
    suppressor = watched.alarms["Trouble"]
    began = watched.now
    for minute in range(60):
        away = {} if minute % 9 and minute > 5 else {"ServiceAway": 1.0}
        for name, value in away.items():
            watched.metrics.put(NAMESPACE, name, watched.now, value, **{DIMENSION: watched.queue})
        before = set(watched.fired)
        watched.minute(
            ApproximateNumberOfMessagesVisible=500,
            ApproximateAgeOfOldestMessage=60 * minute,
            NumberOfEmptyReceives=0,
            NumberOfMessagesReceived=0,
        )
        with_actions = {name for name in watched.fired if watched.alarms[name]["AlarmActions"]}
        paged += with_actions - before
        # The composite alarm waits for the alarm that suppresses it.
        if watched.trouble == ALARM and "Outage" not in watched.fired:
            assert watched.now - began <= suppressor["ActionsSuppressorWaitPeriod"]
    assert paged == ["Outage"]
    assert {"Depth", "Oldest", "NobodyPolls"} <= watched.fired
    watched.quiet(26)
    assert watched.fired == set()


def test_what_follows_from_a_pause_has_a_page_that_says_so_and_no_other(watched: Watched) -> None:
    pages: set[str] = set()
    for minute in range(60):
        if minute < 40:
            watched.metrics.put(NAMESPACE, "Paused", watched.now, 1, **{DIMENSION: watched.queue})
        watched.minute(
            ApproximateNumberOfMessagesVisible=500 if minute < 45 else 0,
            ApproximateAgeOfOldestMessage=60 * minute if minute < 45 else 0,
            NumberOfEmptyReceives=0 if minute < 40 else 9,
            NumberOfMessagesReceived=0,
        )
        pages |= {name for name in ("Trouble", "PausedTrouble") if watched.composite(name) == ALARM}
        if minute == 39:
            assert {"Depth", "Oldest", "NobodyPolls", "Paused"} <= watched.fired
    assert pages == {"PausedTrouble"}
    assert "is paused" in watched.alarms["PausedTrouble"]["AlarmDescription"]
    assert (watched.fired, watched.composite("PausedTrouble")) == (set(), OK)


def test_while_a_function_is_paused_and_silent_the_page_says_so_until_what_waited_is_handled(
    watched: Watched,
) -> None:
    pages: set[str] = set()
    watched.ours(FunctionPaused=1)
    for minute in range(600):
        if minute == 580:
            for name, value in (("FunctionPaused", 0), ("Paused", 1)):
                watched.metrics.put(
                    NAMESPACE, name, watched.now, value, **{DIMENSION: watched.queue}
                )
        waits = minute < 588
        watched.minute(
            ApproximateNumberOfMessagesVisible=500 if waits else 0,
            ApproximateAgeOfOldestMessage=60 * minute if waits else 0,
            NumberOfEmptyReceives=0 if minute < 580 else 9,
            NumberOfMessagesReceived=0,
        )
        pages |= {name for name in ("Trouble", "PausedTrouble") if watched.composite(name) == ALARM}
        if minute == 579:
            assert {"Depth", "Oldest", "NobodyPolls", "FunctionPaused"} <= watched.fired
    assert pages == {"PausedTrouble"}
    assert (watched.fired, watched.composite("PausedTrouble")) == (set(), OK)


def test_a_pause_of_an_empty_queue_has_no_page_and_failures_in_it_have(watched: Watched) -> None:
    watched.ours(Paused=1)
    assert watched.fired == {"Paused"}
    assert (watched.trouble, watched.composite("PausedTrouble")) == (OK, OK)
    for _ in range(10):
        watched.ours(Paused=1, Failed=20, Ended=20)
    assert "ErrorRate" in watched.fired
    assert (watched.trouble, watched.composite("PausedTrouble")) == (ALARM, OK)
