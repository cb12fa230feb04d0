"""The simulated fleet: cases that can be computed by hand, and the pages that tell of it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import results
from bench.errors import BenchError
from bench.fleet import documents, prices
from bench.fleet.days import MESSAGES, SECONDS, Day, days, spread
from bench.fleet.law import Costs, Law, law
from bench.fleet.page import RESERVE, advised
from bench.fleet.simulation import Simulated, simulate
from bench.results import Load, Results, Storage
from infra.scaling import (
    HIGH_POINTS,
    PUBLISHED_AFTER,
    SILENT_FOR,
    STARTED_AFTER,
    day,
    policies,
)
from infra.templates import read
from tests.unit.measured import round_of, row_of, run_of

ROOT = Path(__file__).parents[2]

FLEET = (ROOT / "docs" / "fleet.md").read_text()

#: A message at a full queue takes a hundredth of a core, so that a worker with one does 100/s.
FULL = Costs(calls=0.2, commands=0.1, cores=0.01, database=0.004)
IDLE = Costs(calls=0.05, commands=1.5, cores=0.001, database=0.002)
#: At half of that, a call to receive and one to delete for each two messages.
HALF = Costs(calls=50, commands=10, cores=0.6, database=0.3)
#: It takes long to read.
TEMPLATE = read("service")

LAW = Law(
    rate=1_000, full=FULL, loads=((0, IDLE), (50, HALF)), log=600, data=250, files=100, indexes=50
)


def passed(*arrivals: int, away: range = range(0), tasks: int = 1, cores: float = 1) -> Simulated:
    rules = policies(TEMPLATE, MinTasks=tasks, MaxTasks=tasks)
    return simulate(LAW, rules, cores, Day("a day", arrivals, away))


# The law


def test_a_worker_does_what_its_cores_allow_up_to_what_was_measured() -> None:
    assert LAW.capacity(1) == 100
    assert LAW.capacity(0.5) == 50
    assert LAW.capacity(64) == 1_000


def test_between_two_measured_loads_costs_are_in_proportion() -> None:
    assert LAW.second(0) == IDLE
    assert LAW.second(50) == HALF
    assert LAW.second(25).calls == pytest.approx((0.05 + 50) / 2)


def test_beyond_the_largest_load_costs_approach_those_of_a_full_queue() -> None:
    assert LAW.second(1_000).calls == pytest.approx(200)
    assert LAW.second(525).calls == pytest.approx((50 + 200) / 2)


def load(asked: float, **changes: Any) -> Load:
    """Ten seconds."""
    fields: dict[str, Any] = {
        "seconds": 10.0,
        "sent": int(asked * 10),
        "deleted": int(asked * 10),
        "calls": {"ReceiveMessage": 20, "DeleteMessageBatch": 10},
        "commands": {"insert": 40},
        "worker_cpu": 2.0,
        "database_cpu": 1.0,
        "log_bytes": int(asked * 10) * 700,
        "p50": 5.0,
        "p99": 9.0,
    }
    return Load("this project", 10, asked, **fields | changes)


def measured(*loads: Load) -> Results:
    found = run_of()
    row = row_of("this project")
    row.rounds.append(round_of(100, worker_cpu=2.0, database_cpu=0.4))
    found.fleets.append(row)
    found.loads = list(loads)
    found.storage = Storage(users=1_000, data=250_000, files=100_000, indexes=50_000)
    return found


def test_the_law_is_that_of_the_measurements() -> None:
    found = law(measured(load(0), load(50)))

    assert (found.rate, found.full) == (100, Costs(42 / 200, 1.0, 0.01, 0.002))
    assert found.loads == [(0.0, Costs(3, 4, 0.2, 0.1)), (50.0, Costs(3, 4, 0.2, 0.1))]
    assert (found.log, found.data, found.files, found.indexes) == (700, 250, 100, 50)


def test_a_load_that_the_worker_did_not_keep_up_with_is_no_part_of_the_law() -> None:
    found = law(measured(load(0), load(50), load(100, deleted=949)))

    assert [rate for rate, _ in found.loads] == [0, 50]


def test_without_an_idle_worker_there_is_no_law() -> None:
    with pytest.raises(BenchError, match="not measured"):
        law(measured(load(50)))


# Days


def test_each_day_has_ten_million_messages_in_whole_ones() -> None:
    for each in days():
        assert (len(each.arrivals), sum(each.arrivals)) == (SECONDS, MESSAGES)
        assert min(each.arrivals) >= 0


def test_the_page_says_how_high_the_highest_peak_is() -> None:
    minutes = day()
    ratio = max(minutes) / (sum(minutes) / len(minutes))

    assert f"In the higher one, {ratio:.0f} times as many messages come" in FLEET


def test_messages_are_spread_in_proportion_and_none_is_lost_by_rounding() -> None:
    assert spread([1, 1, 1], 10) == [3, 3, 4]
    assert spread([0, 3, 1], 8) == [0, 6, 2]


# A simulated day


def test_what_comes_is_done_in_its_second_while_there_is_room() -> None:
    done = passed(100, 0, 40)

    assert (done.arrived, done.done, done.waiting, done.oldest) == (140, 140, 0, 0)


def test_a_worker_that_has_too_much_works_it_off_the_oldest_first() -> None:
    """250 messages at once, 100 a second: 150 wait after the first second and 50 after the next."""
    done = passed(250, 0, 0, 0)

    assert (done.done, done.most_waiting, done.oldest) == (250, 150, 1)


def test_a_part_of_a_message_is_done_in_the_next_second() -> None:
    """Of 1.5 messages a second, three are done in two seconds."""
    assert passed(9, 0, cores=0.015).done == 3


def test_an_outage_leaves_all_that_came_in_it_and_the_age_of_its_first() -> None:
    """From second 10 to 69 nothing is done, so 60 · 20 messages wait. Then each second leaves 80
    fewer."""
    done = passed(*[20] * 120, away=range(10, 70))

    assert (done.most_waiting, done.oldest) == (60 * 20, 59)
    assert (done.waiting, done.behind) == (0, 0)


def test_seconds_are_counted_in_which_a_message_is_a_minute_old() -> None:
    """After 100 seconds away the first message is 99 s old, and all are done in the next second."""
    done = passed(*[1] * 180, away=range(100))

    assert (done.oldest, done.behind) == (99, 40)


def test_workers_share_what_comes() -> None:
    assert passed(250, 0, 0, tasks=2).most_waiting == 50
    assert passed(250, 0, 0, tasks=3).most_waiting == 0


def test_a_full_second_costs_what_its_messages_cost_at_a_full_queue() -> None:
    full = passed(100)

    assert full.costs == FULL.times(100)
    assert full.most_cores == 1


def test_a_second_that_is_not_full_costs_what_was_measured_at_this_rate() -> None:
    assert passed(50).costs == HALF
    assert passed(100, tasks=2).costs == HALF.times(2)
    assert passed(0).costs == IDLE


def test_a_worker_uses_no_more_than_its_cores() -> None:
    assert passed(24, cores=0.25).most_cores == 0.25


def test_workers_are_added_as_the_template_says_and_paid_from_then_on() -> None:
    """All comes in the first minute, after a silence, so that SQS publishes nothing for a while. An
    alarm needs three datapoints, each of which is known a minute later; then the tasks start."""
    rules = policies(TEMPLATE, MinTasks=1, MaxTasks=4, BacklogPerTask=6_000)
    alarm = SILENT_FOR + HIGH_POINTS + PUBLISHED_AFTER

    def until(minutes: int) -> Simulated:
        arrivals = [1_000_000, *[0] * (60 * minutes - 1)]
        return simulate(LAW, rules, 1, Day("a day", arrivals))

    before = until(alarm + STARTED_AFTER - 1)
    assert (before.most_tasks, until(alarm + STARTED_AFTER).most_tasks) == (1, 4)
    assert before.task_seconds == 60 * (alarm + 4 * (STARTED_AFTER - 1))


def test_a_fleet_that_is_scaled_as_advised_has_room_for_a_third_more() -> None:
    rules = advised(100)

    assert [each.target for each in rules.tracking] == [6_000, 6_000 * RESERVE]


# The pages


def test_the_pages_are_what_the_stored_measurements_give() -> None:
    """The simulation that they are from takes half a second, and is deterministic."""
    for path, contents in documents.sections(results.load(documents.MEASURED)).items():
        text = path.read_text()
        for name, content in contents.items():
            assert f"<!-- bench: {name} -->\n{content}\n<!-- end: {name} -->" in text, (
                f"{path.name}, {name}: write it with python -m bench.fleet {documents.MEASURED}"
            )


def test_only_what_is_about_fleets_is_kept() -> None:
    run = measured(load(0), load(50))
    run.throughput.append(row_of("this project", 100))

    kept = documents.only_fleets(run)

    assert kept == replace(run, throughput=[])


def test_the_prices_are_those_of_the_page_about_aws() -> None:
    page = (ROOT / "docs" / "aws.md").read_text()
    known: Mapping[str, prices.Price] = prices.read().prices

    for name in ("sqs", "vcpu", "memory"):
        (line,) = (each for each in page.splitlines() if each.startswith(f"| {known[name].of} |"))
        assert float(line.split("|")[2]) == known[name].dollars
    assert f"CloudWatch takes ${known['logs'].dollars:.2f} a GB" in page
