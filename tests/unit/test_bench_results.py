"""The benchmark's numbers: medians, ratios, percentiles, and a JSON file that comes back equal."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench import processes, results, steadiness
from bench.database import caused
from bench.figures import delays, percentile
from bench.node import major
from bench.plan import FULL, QUICK
from bench.profile import read
from bench.quiet import calls_an_hour
from bench.sender import batches
from tests.unit.measured import round_of, row_of, run_of


def test_a_rate_is_the_median_of_its_rounds_and_is_told_with_its_spread() -> None:
    row = row_of("one", 100, 900, 110)

    assert row.rate == 110
    assert row.spread == (100, 900)


def test_a_figure_of_a_row_leaves_out_the_rounds_that_do_not_have_it() -> None:
    row = row_of("one")
    row.rounds.extend([round_of(100, worker_cpu=None), round_of(100, worker_cpu=0.4)])

    assert row.median(lambda each: each.cpu_a_thousand) == 2.0
    assert row_of("two").median(lambda each: each.cpu_a_thousand) is None


def test_costs_are_by_deleted_message() -> None:
    one = round_of(100)

    assert one.calls_a_message() == 42 / 200
    assert one.calls_a_message("Delete") == 22 / 200
    assert one.trips_a_message == 1.0
    assert round_of(100, stored=160).trips_a_message == 200 / 160
    assert one.cpu_a_thousand == 5.0


def test_a_ratio_is_to_the_same_work_at_the_same_distance() -> None:
    ours = row_of("ours", 300)
    run = run_of(ours, row_of("other", 100), row_of("other", 900, added_ms=0))

    assert run.ratio(ours, "other") == 3
    assert run.ratio(ours, "nobody") is None


def test_results_come_back_equal_from_their_file(tmp_path: Path) -> None:
    run = run_of(row_of("ours", 300, 310))
    run.quiet.append(results.Quiet("ours", "idle", 60, None, 180, 1))
    results.save(run, tmp_path / "new" / "bench.json")

    assert results.load(tmp_path / "new" / "bench.json") == run


def test_what_was_not_asked_between_two_looks_is_no_difference() -> None:
    assert results.difference(Counter(a=3, b=2), Counter(a=3, b=1)) == {"b": 1}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)], ids=str
)
def test_a_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_a_percentile_between_two_values_is_the_larger() -> None:
    assert percentile([1, 2, 3], 0.5) == 2


def test_no_values_have_no_percentile() -> None:
    assert percentile([], 0.5) is None


def test_only_what_was_done_has_a_delay() -> None:
    assert delays({"a": 10.0, "b": 10.0}, {"a": 10.25, "x": 11.0}) == [250.0]


def test_the_cpu_of_the_machine_includes_that_of_this_process() -> None:
    before = processes.cpu_of_machine()
    if before is None:
        pytest.skip("there is no /proc")
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = processes.cpu_of_machine()

    assert after is not None
    # The kernel counts in ticks of 10 ms.
    assert after - before >= 0.03


def test_an_idle_hour_is_counted_between_answers_of_long_polls() -> None:
    assert calls_an_hour([5.0, 25.0, 45.0], 62, state="idle") == 180


@pytest.mark.parametrize(("answered", "state"), [([5.0], "idle"), ([5.0], "full")], ids=str)
def test_without_two_answers_the_window_counts(answered: list[float], state: str) -> None:
    assert calls_an_hour(answered, 60, state=state) == 60


def test_a_full_worker_has_no_rhythm() -> None:
    assert calls_an_hour([5.0, 5.01], 60, state="full") == 120


def test_commands_that_no_message_causes_are_not_counted() -> None:
    told = {
        "findAndModify": {"failed": 0, "total": 7},
        "hello": {"failed": 0, "total": 90},
        "<UNKNOWN>": 3,
    }

    assert caused(told) == {"findAndModify": 7}


@pytest.mark.parametrize(
    ("told", "number"), [("v20.20.2\n", 20), ("v8.1.0", 8), ("", 0), ("none", 0)], ids=str
)
def test_the_version_of_node_is_its_first_number(told: str, number: int) -> None:
    assert major(told) == number


def test_the_last_batch_is_what_is_left() -> None:
    assert list(batches("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(batches("", 2)) == []


def test_a_profile_counts_a_function_once_a_sample_and_forgets_its_lines() -> None:
    profile = read(
        [
            "Main;run (app/a.py:10);work (app/b.py:1);work (app/b.py:2) 3",
            "Main;run (app/a.py:99) 1",
        ]
    )

    assert profile.total == 4
    assert profile.threads == {"Main": 4}
    assert profile.within == {"run (app/a.py)": 4, "work (app/b.py)": 3}
    assert profile.itself == {"work (app/b.py)": 3, "run (app/a.py)": 1}


def test_the_quick_run_measures_no_row_that_the_full_one_leaves_out() -> None:
    full = {(cell.candidate, cell.task, cell.delay_ms, cell.workers) for cell in FULL.cells}

    assert {(c.candidate, c.task, c.delay_ms, c.workers) for c in QUICK.cells} <= full
    assert len(full) == len(FULL.cells)


SAMPLE = steadiness.Sample(0, 100 * steadiness.MEGABYTE, 60, 14, 1000, 990, 900)
ACCOUNT = steadiness.Account(1000, 1000, 900, 900, 50, 50)


def soak_of(last: steadiness.Sample, account: steadiness.Account) -> steadiness.Soak:
    """A run of four quarters, whose last one may differ."""
    samples = [SAMPLE] * 9 + [last] * 3
    return steadiness.Soak("2026-01-02", "a machine", "a server", 1, 100, samples, account)


def changed(value: Any, **changes: Any) -> Any:
    return type(value)(**vars(value) | changes)


def test_a_steady_run_has_no_fault() -> None:
    within = changed(SAMPLE, memory=SAMPLE.memory + 8 * steadiness.MEGABYTE, threads=15)

    assert steadiness.faults(soak_of(within, ACCOUNT)) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"memory": 300 * steadiness.MEGABYTE}, "memory grew from 100 to 300 MB"),
        ({"descriptors": 90}, "descriptors grew from 60 to 90"),
        ({"threads": 17}, "threads grew from 14 to 17"),
        ({"settled": -1}, "the worker fell behind: 1001 messages waited at the end of the flow"),
    ],
    ids=["memory", "descriptors", "threads", "lag"],
)
def test_growth_is_a_fault(changes: dict[str, int], fault: str) -> None:
    assert steadiness.faults(soak_of(changed(SAMPLE, **changes), ACCOUNT)) == [fault]


def test_threads_that_come_and_go_are_no_growth() -> None:
    soak = soak_of(changed(SAMPLE, threads=17, descriptors=70), ACCOUNT)
    soak.samples[-1] = SAMPLE

    assert steadiness.faults(soak) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"settled": 999}, "messages sent, settled: 1000, 999"),
        ({"users_stored": 899}, "users sent, stored: 900, 899"),
        ({"dead_letters": 51}, "bad messages sent, dead-lettered: 50, 51"),
    ],
    ids=["settled", "stored", "dead letters"],
)
def test_drift_is_a_fault(changes: dict[str, int], fault: str) -> None:
    assert steadiness.faults(soak_of(SAMPLE, changed(ACCOUNT, **changes))) == [fault]


def test_a_run_without_samples_is_not_steady() -> None:
    empty = steadiness.Soak("2026-01-02", "a machine", "a server", 1, 100)

    assert steadiness.faults(empty) == ["nothing was sampled", "the messages were not counted"]
