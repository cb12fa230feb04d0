"""docs/capacity.md: each figure is one of docs/bench.md, or follows from one by a formula."""

import math
import re
from pathlib import Path

import pytest

from sqs_broker.limits import MOST_IN_FLIGHT
from sqs_broker.tools.provision import RETENTION

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "capacity.md").read_text()
TEXT = " ".join(PAGE.split())
BENCH = (DOCS / "bench.md").read_text()

#: A month of AWS's price pages, in hours.
MONTH = 730

#: The rows of the page, and those of the benchmark's first table: one upsert, 10 ms a call.
WORKERS = {
    "one process a core (the default)": "this project",
    "8 processes": "this project, 8 processes",
    "8 threads": "this project, 8 threads",
    "two workers with one process a core": "this project, 2 workers",
}


def row(page: str, name: str) -> list[str]:
    """The cells of the first row that begins so."""
    found = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", page, re.MULTILINE)
    assert found is not None, name
    return [cell.strip() for cell in found[1].split(" |")]


def measured(name: str) -> tuple[float, float, float]:
    """Messages a second, CPU seconds for 1,000 messages, megabytes."""
    cells = row(BENCH, name)
    return float(cells[0].split("**")[1]), float(cells[7]), float(cells[9])


@pytest.mark.parametrize(("ours", "theirs"), WORKERS.items())
def test_what_a_worker_does_is_what_was_measured(ours: str, theirs: str) -> None:
    assert tuple(map(float, row(PAGE, ours))) == measured(theirs)


def test_the_formulas_of_speed_have_the_figures_of_the_benchmark() -> None:
    speed, cpu, _ = measured("this project")
    assert f"{1000 / cpu:,.0f} a second and core" in TEXT
    waiting = BENCH.partition("**50 ms of waiting, +10 ms a call**")[2]
    done = row(waiting, "this project, 8 processes")[0].split("**")[1]
    assert f"8 slots and 0.05 s: {8 / 0.05:.0f} a second; {done} were measured" in TEXT
    workers = math.ceil(3000 / (2 / 3) / speed)
    assert f"3,000 a second / 0.67 / {speed:,.0f} = {workers} workers" in TEXT
    assert f"500 a second arriving: {100_000 / (speed - 500):.0f} s" in TEXT


def test_the_delays_are_those_of_the_benchmark() -> None:
    low, high = (
        re.search(rf"^\| this project \| {load}% \| \d+ \| (\d+) \| (\d+) \|", BENCH, re.MULTILINE)
        for load in (10, 80)
    )
    assert low is not None
    assert high is not None
    assert f"within {low[1]} ms, at 80% within {high[1]} ms (99%: {high[2]} ms)" in TEXT


def test_the_memory_of_a_process_follows_from_the_measurements() -> None:
    two, eight = measured("this project")[2], measured("this project, 8 processes")[2]
    each = (eight - two) / 6
    assert f"= {two - 2 * each:.0f} MB + {each:.1f} MB for each process" in TEXT
    assert f"{two:.0f} MB with two processes, {eight:.0f} MB with eight" in TEXT
    assert f"worker with 8 threads took {measured('this project, 8 threads')[2]:.0f} MB" in TEXT
    boto3, curl = row(BENCH, "one more queue, received by TLS: MB")
    assert f"queue takes {curl} MB with libcurl, {boto3} MB with boto3" in TEXT


@pytest.mark.parametrize(
    ("name", "table", "scale"),
    [
        ("a million messages, received and deleted by a busy worker", "this project", 1e6),
        ("a million messages, sent in batches of ten", "publish_many", 1e6),
        ("a million messages, sent one by one", ".delay for each", 1e6),
    ],
)
def test_the_calls_of_a_million_messages_and_their_cost_are_measured(
    name: str, table: str, scale: float
) -> None:
    calls = float(row(BENCH, table)[4 if table == "this project" else 2]) * scale
    assert row(PAGE, name) == [f"{calls:,.0f}", f"${calls * 0.4 / 1e6:.2f}"]


def test_the_cost_of_an_idle_queue_follows_from_its_calls() -> None:
    (calls,) = re.findall(r"^\| this project \| idle \| [\d.]+% \| (\d+) \|", BENCH, re.MULTILINE)
    month = int(calls) * MONTH
    name = "an idle worker, a queue and a month of 730 hours"
    assert row(PAGE, name) == [f"{month:,.0f}", f"${month * 0.4 / 1e6:.2f}"]


def test_the_limits_of_sqs_are_those_of_the_code() -> None:
    assert f"allows {MOST_IN_FLIGHT:,} messages in flight" in TEXT
    assert MOST_IN_FLIGHT == 200 * 600
    assert f"({RETENTION // 86_400} days with `sqs provision`, at most 14 days)" in TEXT


def test_the_commands_to_mongodb_are_measured() -> None:
    with_batches, without = (
        row(BENCH, name)[8] for name in ("this project", "this project, without batches")
    )
    text = f"{with_batches} with the default pool, {without} without batches"
    assert row(PAGE, "commands for a registration, at a busy worker") == [text]


def test_the_connections_follow_from_the_formula() -> None:
    assert "2 · members · (processes + 3) + processes + 6" in TEXT
    two, eight = (2 * 3 * (processes + 3) + processes + 6 for processes in (2, 8))
    assert f"With 2 processes and 3 members these are {two}, with 8 processes {eight}" in TEXT


def test_the_speed_of_the_api_is_measured() -> None:
    full, *others = re.findall(r"^\| this project's API \|(.*)\|$", BENCH, re.MULTILINE)
    steady = next(each for each in others if "| 200/s |" in each)
    speed, cpu = full.split(" |")[2].strip(" *"), full.split(" |")[6].strip()
    assert f"took {int(speed):,} registrations a second" in TEXT
    assert f"with {cpu} ms of CPU for each" in TEXT
    assert f"99% were answered within {steady.split(' |')[4].strip()} ms" in TEXT
