"""How infra/service.yaml scales: its own policies, over minutes and over a day."""

import itertools
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from infra.scaling import (
    DAY,
    LONE,
    RATE,
    SILENT_FOR,
    Fleet,
    Minute,
    Policies,
    day,
    delay,
    evaluate,
    policies,
    simulate,
    started,
    task_hours,
)

PAGE = (Path(__file__).parents[2] / "docs" / "aws.md").read_text()

#: Messages that a task ends in a minute, and holds at a time.
ENDED, HELD = 100, 10


def fleet(*, has_wake: bool = True, **parameters: float) -> Fleet:
    rules = policies(**{"BacklogPerTask": ENDED, "FlowPerTask": 60} | parameters)
    return Fleet(rules if has_wake else replace(rules, wake=None), ENDED, HELD)


def run(simulated: Fleet, *traffic: int, minutes: int = 120) -> list[Minute]:
    return list(simulated.run([*traffic, *([0] * (minutes - len(traffic)))]))


def expressions(rules: Policies) -> list[str]:
    assert rules.wake is not None
    return [rules.wake.expression, *(each.expression for each in rules.tracking)]


# Metric math


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("FILL(missing, 7)", 7.0),
        ("FILL(five, 7)", 5.0),
        ("missing + 1", None),
        ("IF(five > 4, 1, missing)", 1.0),
        ("IF(five < 4, 1, missing)", None),
        ("five / 0", None),
        ("(five + 1) * 2 - 4", 8.0),
    ],
)
def test_metric_math_is_evaluated_as_cloudwatch_describes_it(
    expression: str, value: float | None
) -> None:
    assert evaluate(expression, {"five": 5.0, "missing": None}) == value


def test_metric_math_that_is_not_known_is_refused() -> None:
    for expression in ("SEARCH('x')", "-five", "five ** 2"):
        with pytest.raises((ValueError, KeyError)):
            evaluate(expression, {"five": 5.0})


def test_the_metrics_have_a_value_at_zero_tasks_and_with_any_data_missing() -> None:
    numbers = (None, 0.0, 3.0)
    for expression in expressions(policies(MinTasks=0)):
        for visible, inflight, sent, tasks in itertools.product(numbers, repeat=4):
            values = {"visible": visible, "inflight": inflight, "sent": sent, "tasks": tasks}
            assert evaluate(expression, values) is not None, (expression, values)


def test_messages_in_flight_are_part_of_the_backlog() -> None:
    (backlog, *_) = policies().tracking
    values = {"visible": 100.0, "inflight": 200.0, "tasks": 3.0}
    assert evaluate(backlog.expression, values) == 100


# From zero


def test_one_message_and_no_task_starts_one_task() -> None:
    minutes = run(fleet(MinTasks=0), 1)
    assert max(each.desired for each in minutes) == 1
    assert started(minutes) == 1
    assert minutes[-1].visible == minutes[-1].in_flight == 0


def test_target_tracking_alone_starts_none() -> None:
    minutes = run(fleet(MinTasks=0, has_wake=False), 1000)
    assert max(each.desired for each in minutes) == 0


def test_a_message_after_a_silence_waits_no_longer_than_is_said() -> None:
    simulated = fleet(MinTasks=0)
    minutes = run(simulated, 1)
    assert max(each.delay for each in minutes) <= SILENT_FOR + 4
    assert "up to 15 minutes longer" in " ".join(PAGE.split())
    # The next one, an hour later, is seen at once.
    assert max(each.delay for each in run(simulated, 1)) <= 4


def test_with_nothing_to_do_the_last_task_is_taken_away_if_the_minimum_is_zero() -> None:
    assert run(fleet(MinTasks=0), 1)[-1].desired == 0
    assert run(fleet(MinTasks=1), 1)[-1].desired == 1


# Up and down


def test_a_spike_is_worked_off_by_more_tasks_which_then_go() -> None:
    minutes = run(fleet(MinTasks=1, MaxTasks=10), 5000, minutes=240)
    assert max(each.tasks for each in minutes) == 10
    assert minutes[-1].visible == minutes[-1].in_flight == 0
    assert minutes[-1].desired == 1


def test_there_are_never_more_tasks_than_the_maximum_nor_fewer_than_the_minimum() -> None:
    minutes = run(fleet(MinTasks=2, MaxTasks=5), 90_000, minutes=300)
    assert {each.desired for each in minutes} <= {2, 3, 4, 5}


def test_no_task_is_taken_away_while_the_backlog_of_each_is_near_the_target() -> None:
    simulated = replace(fleet(MinTasks=1, MaxTasks=5), rate=0.0)
    minutes = run(simulated, 500, minutes=400)
    top = [each.desired for each in minutes].index(5)
    assert {each.desired for each in minutes[top:]} == {5}


def test_a_fleet_that_keeps_up_with_a_steady_flow_stays() -> None:
    minutes = run(fleet(MinTasks=1, MaxTasks=20), *([280] * 600), minutes=600)
    settled = [each.desired for each in minutes[120:]]
    assert max(settled) - min(settled) <= 1
    assert min(settled) * ENDED >= 280


def test_by_the_backlog_alone_it_would_start_ten_times_as_many_tasks() -> None:
    assert started(whole_day(1)) * 10 < started(whole_day(1, has_flow=False))


# A day


@cache
def whole_day(least: int, most: int = 20, has_flow: bool = True) -> list[Minute]:
    return simulate(least, most, has_flow=has_flow)


@pytest.mark.parametrize("least", [0, 1])
def test_all_messages_of_a_day_are_worked_off_with_fewer_task_hours_than_an_even_fleet(
    least: int,
) -> None:
    minutes = whole_day(least)
    assert len(minutes) == DAY == len(day())
    assert minutes[-1].visible == minutes[-1].in_flight == 0
    assert task_hours(minutes) < task_hours(whole_day(8, 8)) / 2
    assert max(each.delay for each in minutes[LONE + 60 :]) <= 5


def test_the_day_has_spikes_zeros_and_a_lone_message() -> None:
    traffic = day()
    assert traffic[LONE] == 1
    assert set(traffic[LONE + 1 : LONE + 60]) == {0}
    assert max(traffic) > 5 * RATE


@pytest.mark.parametrize(
    ("name", "least", "most", "has_flow"),
    [
        ("minimum 1 (the default)", 1, 20, True),
        ("minimum 0", 0, 20, True),
        ("8 tasks, always", 8, 8, True),
        ("minimum 1, by the backlog alone", 1, 20, False),
    ],
)
def test_the_page_has_the_figures_of_the_simulation(
    name: str, least: int, most: int, has_flow: bool
) -> None:
    minutes = whole_day(least, most, has_flow)
    (row,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", PAGE, re.MULTILINE)
    hours, late, longest, count, _ = row.split(" | ")
    assert [float(hours), float(late), float(longest), float(count)] == [
        round(task_hours(minutes)),
        delay(minutes, 0.99),
        max(each.delay for each in minutes),
        started(minutes),
    ]
