"""A run goes on where a measurement fails, begins nothing it has no time for, and says both."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from bench.candidates import OURS, SQS_CONSUMER
from bench.errors import BenchError
from bench.plan import FULL, Plan
from bench.run import Run
from bench.servers import Server
from bench.throughput import Cell
from devstack.sqs import SqsServer
from tests.unit.measured import round_of, run_of

CELL = Cell(OURS, "register", 10)
PLAN = Plan(limit=600, rounds=3, window=1, backlog=6000, cells=[CELL])


class Lab:
    """Nothing runs in it."""

    def __init__(self, deepest: int | None, why_no_node: str | None) -> None:
        self.server = Server(SqsServer(process=None, port=0), "a server", deepest)  # type: ignore[arg-type]  # nobody looks
        self.why_no_node = why_no_node
        self.logs = Path()


@pytest.fixture
def run_with() -> Callable[..., Run]:
    """Runs a plan whose cells are measured by a function."""

    def make(
        measure: Callable[..., Any],
        plan: Plan = PLAN,
        *,
        deepest: int | None = None,
        why_no_node: str | None = None,
        only: str = "this project",
        started: float | None = None,
    ) -> Run:
        lab: Any = Lab(deepest, why_no_node)
        at = monotonic() if started is None else started
        run = Run(lab, plan, run_of(), lambda _: None, only, at, watch=measure)
        run.measure()
        return run

    return make


def test_every_round_is_kept_in_the_row_of_its_cell(run_with: Callable[..., Run]) -> None:
    rates = iter([100, 300, 200])
    run = run_with(lambda *_: round_of(next(rates)))

    (row,) = run.results.throughput
    assert [each.rate for each in row.rounds] == [100, 300, 200]
    assert row.rate == 200


def test_a_later_round_fills_what_the_rate_seen_needs(run_with: Callable[..., Run]) -> None:
    filled = []

    def measure(_lab: Any, _cell: Cell, effort: Any) -> Any:
        filled.append(effort.backlog)
        return round_of(50)

    run = run_with(measure)

    assert filled == [6000, 1200, 1200]
    assert [row.backlog for row in run.results.throughput] == [6000]


def test_a_failure_is_told_and_the_rest_is_measured(run_with: Callable[..., Run]) -> None:
    answers = iter([BenchError("it ended"), round_of(100), round_of(100)])

    def measure(*_: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    run = run_with(measure)

    assert run.results.failed == ["round 1, this project, register, +10 ms: it ended"]
    assert [len(row.rounds) for row in run.results.throughput] == [2]


def test_a_row_that_never_was_measured_is_no_row(run_with: Callable[..., Run]) -> None:
    def measure(*_: Any) -> Any:
        raise BenchError("it ended")

    run = run_with(measure)

    assert run.results.throughput == []
    assert len(run.results.failed) == 3


def test_what_there_is_no_time_for_is_not_begun_and_told(run_with: Callable[..., Run]) -> None:
    run = run_with(lambda *_: round_of(100), started=monotonic() - PLAN.limit)

    assert run.results.throughput == []
    assert run.results.skipped[0] == "round 1, this project, register, +10 ms: no time was left"


def test_who_cannot_run_here_is_told_once(run_with: Callable[..., Run]) -> None:
    plan = replace(PLAN, cells=[Cell(SQS_CONSUMER, "register", 10)])
    run = run_with(
        lambda *_: round_of(100), plan, why_no_node="no Node on this machine", only="sqs"
    )

    assert run.results.throughput == []
    assert run.results.skipped == ["sqs-consumer: no Node on this machine"]


def test_each_number_of_queues_is_a_row_of_its_own(run_with: Callable[..., Run]) -> None:
    plan = replace(PLAN, cells=[], queues=(1, 10), rounds=2)
    run = run_with(lambda _lab, cell, _effort: round_of(cell.queues), plan)

    assert [(row.queues, row.rate, len(row.rounds)) for row in run.results.queues] == [
        (1, 1, 2),
        (10, 10, 2),
    ]
    assert run.results.throughput == []


def test_each_number_of_workers_is_a_row_of_its_own(run_with: Callable[..., Run]) -> None:
    plan = replace(PLAN, cells=[], fleets=(1, 4), rounds=2)
    run = run_with(lambda _lab, cell, _effort: round_of(cell.workers), plan)

    assert [(row.workers, row.rate, len(row.rounds)) for row in run.results.fleets] == [
        (1, 1, 2),
        (4, 4, 2),
    ]
    assert run.results.throughput == []


def test_a_server_that_is_slow_at_depth_is_spared_it(run_with: Callable[..., Run]) -> None:
    plan = replace(PLAN, cells=[], depths=(1_000, 100_000), rounds=1)
    run = run_with(lambda *_: round_of(100), plan, deepest=10_000)

    assert [row.backlog for row in run.results.depths] == [1_000]
    assert run.results.skipped == ["this project, a backlog of 100000: a server is slow at it"]


def test_only_what_was_asked_for_is_measured(run_with: Callable[..., Run]) -> None:
    run = run_with(lambda *_: round_of(100), only="somebody else")

    assert (run.results.throughput, run.results.skipped) == ([], [])


def test_the_full_run_ends_within_half_an_hour() -> None:
    assert FULL.limit <= 28 * 60
