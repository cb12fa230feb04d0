"""The plan of a chaos run: the same for the same seed, and with all that a fleet can meet."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.chaos.plan import (
    CALLS,
    FAULTS,
    FULL,
    MONGO,
    POOLS,
    RESTART,
    SHORT,
    Scale,
    least,
    planned,
    schedule,
)
from tests.chaos.run import Result
from tests.chaos.traffic import Traffic

SCALES = pytest.mark.parametrize("scale", [SHORT, FULL], ids=["short", "full"])


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


@SCALES
@pytest.mark.parametrize("seed", range(5))
def test_mongodb_has_one_trouble_at_a_time_and_a_pause_between_two(scale: Scale, seed: int) -> None:
    troubles = [strike for strike in schedule(seed, scale) if strike.kind in MONGO]
    for one, next_ in pairwise(troubles):
        assert one.at + one.seconds < next_.at


@SCALES
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
        {"left": {"dead letters": (1, 0, 0)}},
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
