"""Jobs of plain messages in which some fail: each message ends as if it had run alone."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo import MongoClient

from tests.acceptance.lane import NAME, PATIENCE, Lane, lanes, registration
from tests.acceptance.worker import Place
from tests.services import wait_until

pytestmark = pytest.mark.slow

#: The lines about one message.
LINES = ("message.received", "message.done", "message.retry", "message.dead-letter", "task.failed")

FIGURES = (
    "Ended", "Failed", "DeadLettered", "LateFailures", "Released", "SettleFailures", "LostLeases",
    "SentToDone",
)  # fmt: skip

#: The messages of one scene, by their numbers.
TWICE, ODD, TAKEN, ONE, OTHER, INVALID = 3, 5, 6, 7, 8, 9
NUMBERS = (0, 1, 2, TWICE, ODD, TAKEN, ONE, OTHER, INVALID)


@pytest.fixture(scope="module")
def lane(
    where: Place, mongo_client: MongoClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lane]:
    variables = {"WORKER_METRICS_SECONDS": "1", "SQS_BACKOFF_BASE": "0.5"}
    with lanes(where, mongo_client, tmp_path_factory.mktemp("lane") / "one", **variables) as made:
        yield made


def id_of(mark: str, number: int) -> str:
    return f"{mark}-{number:02}"


def scene(mark: str) -> list[tuple[str, str]]:
    """Ten messages with their ids: four that are done, one of which is sent twice; one that MongoDB
    refuses for a while, one whose user is taken, two of the same user, and one without a user."""
    users = {ODD: f"odd-{id_of(mark, ODD)}", OTHER: id_of(mark, ONE)}
    messages = [
        (id_, registration(id_, users.get(number)))
        for number in (0, 1, 2, TWICE, TWICE, ODD, TAKEN, ONE, OTHER)
        for id_ in [id_of(mark, number)]
    ]
    body = json.loads(registration(id_of(mark, INVALID)))
    del body["data"]["userId"]
    return [*messages, (id_of(mark, INVALID), json.dumps(body))]


@dataclass
class Seen:
    """What was seen of the messages of a scene, by their numbers."""

    lines: dict[int, list[tuple[Any, ...]]]
    events: dict[int, list[str]]
    notes: dict[int, tuple[str, str, int]]
    users: set[int]
    figures: dict[str, int]


def said(event: str, line: dict[str, Any]) -> tuple[Any, ...]:
    """What a line says of the end of a message. The driver has a class for errors of one write, and
    another for those of many: only their code counts."""
    error = line.get("error")
    if error and error.endswith(")"):
        error = error[error.index("(") :]
    return event, line.get("deliveries"), line.get("attempt"), error, line.get("reason")


def look(lane: Lane, mark: str, before: Sequence[int]) -> Seen:
    """What is seen now. `before`: the figures before the scene."""
    numbers = {id_of(mark, n): n for n in NUMBERS}
    lines: dict[int, list[tuple[Any, ...]]] = {n: [] for n in NUMBERS}
    for event in LINES:
        for id_, found in lane.lines(event, numbers).items():
            lines[numbers[id_]] += [said(event, line) for line in found]
    notes = [
        json.loads(letter["MessageAttributes"]["dead-letter"]["StringValue"])
        for letter in lane.service.dead_letters(f"{mark}-")
    ]
    figures = zip(FIGURES, lane.figures(*FIGURES), before, strict=True)
    return Seen(
        lines,
        {number: sorted(lane.of(id_)) for id_, number in numbers.items()},
        {numbers[n["message_id"]]: (n["error"], n["reason"], n["deliveries"]) for n in notes},
        {numbers[user.removeprefix("odd-")] for user in lane.registered(f"(odd-)?{mark}")},
        {name: now - then for name, now, then in figures if now != then},
    )


RECEIVED, DONE = ("message.received", 1, 1, None, None), ("message.done", 1, 1, None, None)
CONFLICT = "the user is registered already, with another payload"
NO_USER = "registerUser: user_id: Field required"
SUCCESS = ["task-received", "task-started", "task-succeeded"]
FAILURE = ["task-failed", "task-received", "task-rejected", "task-started"]

EXPECTED = Seen(
    lines={
        **{n: [RECEIVED, DONE] for n in (0, 1, 2, ONE, OTHER)},
        TWICE: [RECEIVED, RECEIVED, DONE, DONE],
        ODD: [
            RECEIVED,
            ("message.received", 2, 2, None, None),
            ("message.done", 2, 2, None, None),
            ("message.retry", 1, 1, "(121)", None),
        ],
        TAKEN: [
            RECEIVED,
            ("message.dead-letter", 1, 1, "Conflict", CONFLICT),
            ("task.failed", None, None, "Conflict", None),
        ],
        INVALID: [
            RECEIVED,
            ("message.dead-letter", 1, 1, "InvalidMessage", NO_USER),
            ("task.failed", None, None, "InvalidMessage", None),
        ],
    },
    events={
        **dict.fromkeys((0, 1, 2, ONE, OTHER), SUCCESS),
        TWICE: sorted(2 * SUCCESS),
        ODD: sorted([*SUCCESS, "task-received", "task-started", "task-retried", "task-rejected"]),
        TAKEN: FAILURE,
        INVALID: FAILURE,
    },
    notes={TAKEN: ("Conflict", CONFLICT, 1), INVALID: ("InvalidMessage", NO_USER, 1)},
    users={0, 1, 2, TWICE, ODD, TAKEN, ONE},
    figures={"Ended": 11, "Failed": 3, "DeadLettered": 2, "SentToDone": 8},
)


def run(lane: Lane, mark: str, *, together: bool) -> Seen:
    """Put the ten messages through the worker: in one job, or one after the other."""
    taken = registration(f"{mark}-before", id_of(mark, TAKEN), nickname="another")
    lane.send_bodies([(f"{mark}-before", taken)])
    lane.settle()
    database, messages = lane.service.database, scene(mark)
    lane.wait_for_lines("message.done", [f"{mark}-before"])
    done = len(lane.service.worker.log_lines("message.done"))
    lane.wait_for(lambda: lane.figures("SentToDone") == [done], "figures")
    before = lane.figures(*FIGURES)
    rule = {"user_id": {"$not": {"$regex": "^odd-"}}}
    database.command("collMod", "users", validator=rule)
    if together:
        with lane.slow_inserts(1_500):
            with lane.received_together():
                lane.send_bodies(messages)
            # One of them has no user, two have one id.
            lane.wait_for_a_job(mark, 8)
    for message in () if together else messages:
        lane.send_bodies([message])
        if message[0] != id_of(mark, ODD):
            lane.settle()
        else:
            lane.wait_for_lines("message.retry", [message[0]])
            database.command("collMod", "users", validator={})
    lane.wait_for_lines("message.retry", [id_of(mark, ODD)])
    database.command("collMod", "users", validator={})
    lane.settle()
    # Lines and events come after what they tell of.
    with suppress(TimeoutError):
        wait_until(lambda: look(lane, mark, before) == EXPECTED, PATIENCE / 4, "all of it")
    return look(lane, mark, before)


def test_each_message_of_a_job_in_which_some_fail_ends_as_if_it_had_run_alone(lane: Lane) -> None:
    alone, together = (run(lane, mark, together=mark == "job") for mark in ("each", "job"))
    for seen in alone, together:
        assert seen.lines == EXPECTED.lines
        assert seen.events == EXPECTED.events
        assert seen.notes == EXPECTED.notes
        assert seen.users == EXPECTED.users
        assert seen.figures == EXPECTED.figures


def test_a_job_past_its_soft_limit_keeps_its_process_and_each_message_runs_again(
    lane: Lane,
) -> None:
    def limit(soft: float, hard: float) -> None:
        limits = {"task_name": "registerUser", "soft": soft, "hard": hard}
        lane.client.control.broadcast(
            "time_limit", arguments=limits, reply=True, destination=[NAME], timeout=PATIENCE
        )

    pids = lane.service.worker.pool_pids()
    limit(1.0, 20.0)
    try:
        # Only the job: MongoDB is asked whether it was the cause.
        with lane.slow_inserts(3_000, times=1):
            ids = lane.send_together("soft")
            lane.wait_for_a_job("soft", 10)
            lane.wait_for_events("task-retried", ids)
    finally:
        limit(25.0, 30.0)
    lane.assert_each_is_done_once(ids)
    assert lane.service.worker.pool_pids() == pids
    retries, done = (lane.lines(event, ids) for event in ("message.retry", "message.done"))
    assert {i: [line["error"] for line in retries[i]] for i in ids} == {
        i: ["SoftTimeLimitExceeded"] for i in ids
    }
    assert {line["attempt"] for lines in done.values() for line in lines} == {2}
