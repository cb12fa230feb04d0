"""The plan of a chaos run: the same for the same seed, and with all that a fleet can meet."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sqs_broker.options import BOTO3, CURL
from tests.chaos import dead_letters
from tests.chaos.fleet import Release
from tests.chaos.plan import (
    BURST,
    CALLS,
    DEPLOY,
    DEPLOYS,
    EARLY,
    FAILING_TASK,
    FAULTS,
    FULL,
    GROUP,
    MONGO,
    POOLS,
    RESTART,
    ROLL,
    SHORT,
    Scale,
    least,
    planned,
    schedule,
)
from tests.chaos.run import Result
from tests.chaos.sides import ROOT, RUNS, Ours
from tests.chaos.traffic import Traffic
from tests.services import wait_until

SCALES = pytest.mark.parametrize("scale", [SHORT, FULL], ids=["short", "full"])
ALL_SCALES = pytest.mark.parametrize(
    "scale", [SHORT, FULL, DEPLOYS], ids=["short", "full", "deploys"]
)


@SCALES
def test_a_seed_gives_the_same_strikes_each_time_and_another_one_others(scale: Scale) -> None:
    assert schedule(3, scale) == schedule(3, scale)
    assert schedule(3, scale) != schedule(4, scale)


@SCALES
@pytest.mark.parametrize("seed", range(5))
def test_every_fault_of_every_call_and_every_outage_is_in_it(scale: Scale, seed: int) -> None:
    counts = planned(schedule(seed, scale))
    assert {f"{call}: {fault}" for call in CALLS for fault in FAULTS} <= set(counts)
    assert {kind: counts[kind] for kind in MONGO} == {k: n for k, (n, _) in scale.mongo.items()}
    assert all(counts[kind] for kind in MONGO)


@SCALES
def test_a_run_has_to_land_all_that_it_planned_for_mongodb_and_a_part_of_the_rest(
    scale: Scale,
) -> None:
    counts = planned(schedule(3, scale))
    needed = least(counts, scale)
    assert {kind: needed[kind] for kind in MONGO} == {kind: counts[kind] for kind in MONGO}
    assert all(needed[kind] <= counts[kind] for kind in counts)
    assert needed[RESTART] == int(counts[RESTART] * scale.minimum) > 0


@ALL_SCALES
@pytest.mark.parametrize("seed", range(5))
def test_workers_are_stopped_alone_by_group_and_in_turn_and_a_deploy_replaces_them(
    scale: Scale, seed: int
) -> None:
    counts = planned(schedule(seed, scale))
    needed = least(counts, scale)
    assert counts[GROUP] == scale.groups
    assert counts[ROLL] == scale.rolls * len(POOLS)
    assert counts[DEPLOY] == needed[DEPLOY] == 1
    assert all(needed[kind] > 0 for kind in (RESTART, GROUP, ROLL))
    assert scale.new > 0 < scale.failing


def test_failed_runs_are_exact_only_if_workers_come_and_go_and_nothing_else_goes_wrong() -> None:
    assert set(planned(schedule(3, DEPLOYS))) == {RESTART, GROUP, ROLL, DEPLOY}
    assert DEPLOYS.is_exact
    assert not SHORT.is_exact
    assert not replace(DEPLOYS, kills=1).is_exact
    assert not replace(DEPLOYS, mongo=SHORT.mongo).is_exact


def test_a_run_in_which_workers_only_come_and_go_has_no_attempts_to_spare() -> None:
    assert DEPLOYS.attempts == 3


@SCALES
@pytest.mark.parametrize("seed", range(5))
def test_mongodb_has_one_trouble_at_a_time_and_a_pause_between_two(scale: Scale, seed: int) -> None:
    troubles = [strike for strike in schedule(seed, scale) if strike.kind in MONGO]
    for one, next_ in pairwise(troubles):
        assert one.at + one.seconds < next_.at


@ALL_SCALES
@pytest.mark.parametrize("seed", range(5))
def test_strikes_come_in_order_within_the_run_and_hit_a_worker_there_is(
    scale: Scale, seed: int
) -> None:
    strikes = schedule(seed, scale)
    assert strikes == sorted(strikes, key=lambda strike: strike.at)
    assert all(0 <= strike.at < scale.seconds for strike in strikes)
    assert all(0 <= strike.slot < len(POOLS) for strike in strikes)


def test_a_seed_gives_the_same_messages_each_time() -> None:
    def orders(seed: int) -> list[object]:
        return list(Traffic([lambda *_: None] * 3, 50, 1.0, seed).orders())

    assert orders(3) == orders(3)
    assert orders(3) != orders(4)


def nowhere(*_: object) -> None:
    """A door that leads nowhere."""


def test_each_failing_message_is_sent_once() -> None:
    orders = Traffic([nowhere], 50, 1.0, 3, failing=200).orders()
    failing = [order for order in orders if order.task == FAILING_TASK]
    assert len({order.id for order in failing}) == len(failing) == 200
    assert not any(order.is_twice for order in failing)


def test_messages_come_at_once_when_a_rolling_restart_begins_and_evenly_else() -> None:
    traffic = Traffic([nowhere], 50, 100.0, 3, bursts=(20.0,))
    due = [traffic.due(place, 100) for place in range(100)]
    assert due[:20] == [float(place) for place in range(20)]
    assert due[20 : 20 + int(BURST)] == [20.0] * int(BURST)
    assert due[20 + int(BURST) :] == [float(place) for place in range(20 + int(BURST), 100)]


@pytest.mark.parametrize(("is_known", "early"), [(False, 2), (True, 0)])
def test_a_message_of_the_new_task_is_early_until_every_worker_has_the_task(
    is_known: bool, early: int
) -> None:
    sent: list[str] = []
    traffic = Traffic([lambda task, id_, fields: sent.append(task)], 0, 1.0, 3)
    traffic.start_new(2, lambda: is_known)
    wait_until(lambda: len(sent) >= 2, 30, "two messages")
    assert traffic.wait(10)
    assert {*sent} == {"later"}
    assert traffic.landed[EARLY] == early


def letter(id_: str, reason: str) -> dict[str, Any]:
    """As SQS returns a dead letter."""
    note = json.dumps({"message_id": id_, "reason": reason})
    attribute = {"DataType": "String", "StringValue": note}
    return {"Body": "{}", "MessageAttributes": {"dead-letter": attribute}}


AS_IT_SHOULD_BE = "ValueError (failed runs: 3, deliveries: 5)"


@pytest.mark.parametrize(
    ("runs", "reasons", "is_right", "is_right_under_fire"),
    [
        (3, [AS_IT_SHOULD_BE], True, True),
        (4, [AS_IT_SHOULD_BE], False, True),
        (3, [AS_IT_SHOULD_BE] * 2, False, True),
        (3, ["ValueError (failed runs: 2, deliveries: 3)"], False, True),
        (2, [AS_IT_SHOULD_BE], False, False),
    ],
)
def test_a_failing_message_has_as_many_failed_runs_as_it_may(
    tmp_path: Path, runs: int, reasons: list[str], is_right: bool, is_right_under_fire: bool
) -> None:
    (tmp_path / RUNS).write_text("fail-1\n" * runs)
    there = [letter("fail-1", reason) for reason in reasons]
    stage: Any = SimpleNamespace(
        directory=tmp_path, queues=SimpleNamespace(dead_letters=lambda: there)
    )

    exact = dead_letters.read(stage, is_exact=True)
    under_fire = dead_letters.read(stage, is_exact=False)

    assert exact.runs == {"fail-1": runs}
    assert exact.could_run == []
    assert (not exact.miscounted, not under_fire.miscounted) == (is_right, is_right_under_fire)


def test_a_dead_letter_of_any_other_message_could_run(tmp_path: Path) -> None:
    (tmp_path / RUNS).touch()
    there = [letter("increment-1", "unknown task"), {"Body": "of SQS itself"}]
    stage: Any = SimpleNamespace(
        directory=tmp_path, queues=SimpleNamespace(dead_letters=lambda: there)
    )
    assert dead_letters.read(stage, is_exact=False).could_run == [
        "increment-1: unknown task",
        "of SQS itself: no reason",
    ]


def stage_in(directory: Path) -> Any:
    """A stage for the commands of workers."""
    return SimpleNamespace(
        directory=directory,
        mongo_uri=lambda **_: "mongodb://127.0.0.1",
        queues=SimpleNamespace(name="q", url="http://q", dead_letter_url="http://d"),
        proxies=[SimpleNamespace(url="http://127.0.0.1")] * len(POOLS),
    )


def test_a_release_decides_which_code_and_which_tasks_a_worker_has(tmp_path: Path) -> None:
    side = Ours(stage_in(tmp_path), SHORT, Path("/old"))
    started = {release: side.command(0, release) for release in Release}

    codes = {r: env["PYTHONPATH"].split(os.pathsep)[0] for r, (_, env) in started.items()}
    tasks = {r: command[command.index("-I") + 1] for r, (command, _) in started.items()}
    assert codes == {Release.OLD: "/old", Release.NOW: str(ROOT), Release.NEXT: str(ROOT)}
    assert tasks == {
        Release.OLD: "chaos_failing",
        Release.NOW: "chaos_failing",
        Release.NEXT: "chaos_failing,chaos_new",
    }


def test_the_workers_of_a_run_call_sqs_with_both_clients_or_with_the_one_given(
    tmp_path: Path,
) -> None:
    def clients(scale: Scale) -> list[str]:
        side = Ours(stage_in(tmp_path), scale)
        return [side.command(n, Release.NOW)[1]["SQS_CLIENT"] for n, _ in enumerate(POOLS)]

    assert set(clients(SHORT)) == {CURL, BOTO3}
    assert clients(replace(SHORT, clients=(CURL,) * len(POOLS))) == [CURL] * len(POOLS)


def test_what_is_no_checkout_is_refused_as_an_older_commit(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--directory", str(tmp_path / "logs")],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "CHAOS_OLD": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ran.returncode, ran.stderr) == (
        1,
        f"CHAOS_OLD: {tmp_path} is no checkout of this project\n",
    )


GOOD = Result(
    "this project", 1, 5, users=5, count=5, statuses={"0": 4}, left={"queue": (0, 0, 0)},
    minimum={"a fault": 2}, landed={"a fault": 2},
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"users": 4},
        {"count": 6},
        {"undone": ["increment-1"]},
        {"lost": 1},
        {"doubled": ["increment-1"]},
        {"left": {"queue": (0, 1, 0)}},
        {"dead_lettered": ["increment-1: unknown task"]},
        {"new": 1},
        {"failing": 1},
        {"miscounted": ["fail-1: 2 runs"]},
        {"deaf": ["w1"]},
        {"ends": {"by itself": 1}},
        {"statuses": {"0": 3, "-9": 1}},
        {"strays": [17]},
        {"not_recovered": {"a fault": 1}},
        {"landed": {"a fault": 1}},
    ],
    ids=str,
)
def test_a_run_fails_for_each_promise_that_was_not_kept(change: dict[str, object]) -> None:
    assert GOOD.faults() == []
    assert len(replace(GOOD, **change).faults()) == 1  # type: ignore[arg-type]


def test_if_workers_are_only_replaced_no_message_uses_up_an_attempt() -> None:
    retried = replace(GOOD, retried=["increment-1: TransientError"])
    assert retried.faults() == []
    assert len(replace(retried, is_exact=True).faults()) == 1
