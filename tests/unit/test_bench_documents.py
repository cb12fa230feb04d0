"""What the benchmark writes: tables, goals, and documents changed between their markers alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kombu.transport import virtual

from app.messages import Registration, decode_json
from bench import api, bodies, documents, table
from bench.candidates import BARE, BARE_BULK, EVERYONE, OURS, OURS_8, SQS_CONSUMER, STOCK_BEST
from bench.doors import DOORS, MIXED, USER, copies, in_turn
from bench.errors import BenchError
from bench.goals import goals
from bench.plan import FULL, QUICK
from bench.results import (
    BatchSent,
    FirstUse,
    Latency,
    Load,
    Lone,
    Publishing,
    Quiet,
    Recovery,
    Requests,
    Throughput,
)
from sqs_broker.rules.decoding import decode
from tests.unit.conftest import MakeDelivery
from tests.unit.measured import round_of, row_of, run_of

ROOT = Path(__file__).parents[2]
MARKER = re.compile(r"<!-- bench: (\w+) -->\n.*?<!-- end: (\w+) -->", re.DOTALL)


def test_only_what_is_between_the_markers_changes() -> None:
    text = "before\n<!-- bench: a -->\nold\n<!-- end: a -->\nafter\n"

    changed = documents.replaced(text, "a", "new")

    assert changed == "before\n<!-- bench: a -->\nnew\n<!-- end: a -->\nafter\n"
    assert documents.replaced(changed, "a", "new") == changed


@pytest.mark.parametrize("text", ["", "<!-- bench: a -->\n", "<!-- end: a -->"], ids=repr)
def test_a_document_that_lost_a_marker_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="markers"):
        documents.replaced(text, "a", "new")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("README.md", ["headline"]),
        (
            "docs/bench.md",
            [
                "machine", "figures", "throughput", "latency", "quiet", "recovery", "api",
                "publishing",
                "events", "depths", "queues", "fleets", "loads", "soak",
            ],
        ),
        ("docs/fleet.md", ["law", "size", "days", "dollars", "prices"]),
    ],
)  # fmt: skip
def test_the_documents_have_their_markers(path: str, names: list[str]) -> None:
    found = MARKER.findall((ROOT / path).read_text())

    assert found == [(name, name) for name in names]


def test_the_page_names_everyone_who_is_measured() -> None:
    rows = (ROOT / "docs" / "bench.md").read_text()

    for candidate in EVERYONE:
        assert candidate.name.split(", ")[0] in rows


def test_a_row_has_its_rate_its_ratios_and_its_costs() -> None:
    run = run_of(row_of(OURS.name, 300, 290, 310), row_of(STOCK_BEST.name, 30))

    lines = table.throughput(run).splitlines()

    assert lines[0] == "**one MongoDB upsert, +10 ms a call**"
    cells = [cell.strip() for cell in lines[4].strip("|").split("|")]
    assert cells == [
        "this project", "**300** (290-310)", "10.0", "-", "-", "0.070", "0.033", "0.037", "1.67",
        "1.00", "100",
    ]  # fmt: skip


def test_a_page_says_what_it_comes_from_and_what_is_missing() -> None:
    run = run_of(row_of(OURS.name, 300))
    run.skipped.append("sqs-consumer: no Node on this machine")
    run.failed.append("round 1, somebody: it ended")

    page = documents.markdown(run)

    for told in ("2026-01-02", "`make bench`", "a machine", "Python 3", "a server"):
        assert told in page
    assert "Not measured: sqs-consumer: no Node on this machine." in page
    assert "Failed: round 1, somebody: it ended." in page


def test_many_rows_for_which_no_time_was_left_are_one_sentence() -> None:
    run = run_of(row_of(OURS.name, 300, 290, 310), row_of(STOCK_BEST.name, 30))
    run.skipped += [f"round 3, row {n}, +10 ms: no time was left" for n in range(5)]
    run.skipped.append("sqs-consumer: no Node on this machine")

    page = documents.markdown(run)

    assert "Not measured: round 3, 5 rows: no time was left." in page
    assert "row 1, +10 ms" not in page
    assert "Not measured: sqs-consumer: no Node on this machine." in page
    assert "Medians of 1-3 round(s)" in page


def test_the_tables_begin_with_one_upsert_far_away() -> None:
    rows = [
        row_of("a", 1, task=task, added_ms=ms) for task in ("noop", "register") for ms in (0, 10)
    ]
    titles = [line for line in table.throughput(run_of(*rows)).splitlines() if line[:2] == "**"]

    assert titles == [
        "**one MongoDB upsert, +10 ms a call**",
        "**one MongoDB upsert, +0 ms a call**",
        "**no work, +10 ms a call**",
        "**no work, +0 ms a call**",
    ]


def test_what_was_not_measured_is_said() -> None:
    assert table.latency(run_of()) == "Not measured."


def test_the_headline_has_our_rate_beside_that_of_stock_celery_far_away() -> None:
    run = run_of(
        row_of(OURS.name, 1000),
        row_of(OURS.name, 1200, added_ms=0),
        row_of(STOCK_BEST.name, 70),
    )

    assert table.headline(run) == (
        "One worker stores 1000 messages/s (one MongoDB upsert each, 10 ms added to each SQS call) "
        "with 0.02 SQS calls per message; stock Celery with its best settings stores 70."
    )


def test_a_headline_without_one_of_the_two_is_not_measured() -> None:
    assert table.headline(run_of(row_of(OURS.name, 1000))) == "Not measured."


def test_a_goal_is_told_with_what_was_measured() -> None:
    run = run_of(
        row_of(OURS.name, 1000),
        row_of(STOCK_BEST.name, 50),
        row_of(SQS_CONSUMER.name, 500),
        row_of(BARE.name, 1000),
        row_of(OURS_8.name, 156, task="wait"),
    )

    told = {goal.what: (goal.wanted, goal.measured, goal.is_reached) for goal in goals(run)}

    assert told["one upsert, +10 ms a call: times stock Celery at its best"] == (
        "at least 10",
        "20",
        True,
    )
    assert told["one upsert, +10 ms a call: times sqs-consumer"] == ("at least 3", "2", False)
    assert told["50 ms of waiting on 8 slots, +10 ms: of 160 possible"] == (
        "at least 156/s",
        "156/s",
        True,
    )
    assert told["MongoDB round trips a registration"] == ("at most 1.01", "1", True)


def test_the_goals_at_rest_are_of_this_project_alone() -> None:
    run = run_of()
    run.quiet += [
        Quiet(OURS.name, "idle", 60, 0.03, 180, None),
        Quiet(OURS.name, "full", 60, 0.9, 9000, None),
        Quiet(STOCK_BEST.name, "idle", 60, 0.9, 9000, None),
    ]
    run.recovery.append(Recovery(OURS.name, 60, 27, 61.0))
    run.publishing.append(Publishing("publish_many", 1000, 1.0, {"SendMessageBatch": 100}))

    assert [(goal.measured, goal.is_reached) for goal in goals(run)] == [
        ("0.1", True),
        ("1e+03/s", False),
        ("3%", False),
        ("180", True),
        ("61 s", True),
    ]


def test_the_goals_name_what_is_compared() -> None:
    plain = "this project, door: plain JSON"
    run = run_of(
        row_of(OURS.name, 1000, worker_cpu=0.5),
        row_of(BARE_BULK.name, 1250, worker_cpu=0.4),
        row_of(plain, 1000),
        row_of("this project, door: SNS", 890),
        row_of(OURS.name, 600, task="noop"),
        row_of(BARE.name, 1000, task="noop"),
    )
    run.latency += [
        Latency(OURS.name, 10, 0.1, 130, 10, 10, 2.0, 7.0),
        Latency(OURS.name, 10, 0.2, 200, 10, 10, 9.0, 9.0),
    ]
    run.first_use = FirstUse(0.4, 0.2, 300)

    told = {goal.what: (goal.measured, goal.is_reached) for goal in goals(run)}

    there = "one upsert, +10 ms a call: "
    assert told[f"{there}times the bare loop with bulk writes"] == ("0.8", False)
    assert told[f"{there}CPU, times that of the same"] == ("1.56", False)
    assert told[f"{there}SNS, times plain JSON"] == ("0.89", False)
    assert f"{there}plain JSON, times plain JSON" not in told
    assert told["no work, +10 ms a call: times the bare loop"] == ("0.6", True)
    assert told["from sent to stored, 130/s, +10 ms a call: p50"] == ("2 ms", True)
    assert told["from sent to stored, 130/s, +10 ms a call: p99"] == ("7 ms", False)
    assert told["a producer: import of app.tasks"] == ("0.4 s", True)
    assert told["a producer: first .delay"] == ("0.2 s", False)


def test_a_row_of_queues_says_what_a_busy_queue_costs_among_others() -> None:
    run = run_of()
    for count, calls in ((1, 20), (50, 30)):
        row = Throughput(OURS.name, "register", 10, 1, 6000, queues=count)
        row.rounds.append(round_of(100, calls={"ReceiveMessage": calls}))
        run.queues.append(row)

    _, _, *rows = table.queues(run).splitlines()
    assert [[cell.strip() for cell in row.split("|")[1:4]] for row in rows] == [
        ["1", "**100** (100-100)", "0.100"],
        ["50", "**100** (100-100)", "0.150"],
    ]


def test_a_row_of_a_fleet_says_whose_the_cores_were() -> None:
    run = run_of()
    row = Throughput(OURS.name, "register", 10, 4, 6000)
    cpu = {"worker_cpu": 1.0, "server_cpu": 0.2, "database_cpu": 0.4, "proxy_cpu": 0.1}
    row.rounds.append(round_of(100, rest_cpu=2.0, **cpu))
    run.fleets.append(row)

    head, _, line = table.fleets(run).splitlines()

    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:9] == [
        "4", "**100** (100-100)", "**200**", "5.00", "0.50", "0.10", "0.20", "0.05", "1.00",
    ]  # fmt: skip
    assert "cores: workers | cores: SQS server | cores: MongoDB | cores: proxy" in head


def test_a_load_is_told_with_what_a_message_took_and_an_idle_worker_without() -> None:
    run = run_of()
    calls, commands = {"ReceiveMessage": 30, "DeleteMessageBatch": 10}, {"insert": 20}
    busy = Load(OURS.name, 10, 10, 10.0, 100, 100, calls, commands, 1.0, 0.5, 70_000, 5.4, 9.6)
    idle = Load(OURS.name, 10, 0, 10.0, 0, 0, {}, {}, 0.01, 0.02, 0, None, None)
    run.loads += [idle, busy]

    _, _, *lines = table.loads(run).splitlines()

    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["0", "0", "0.00", "-", "0.0", "-", "0.001", "0.002", "-", "-", "-"],
        ["10", "10", "4.00", "0.400", "2.0", "0.20", "0.100", "0.050", "700", "5", "10"],
    ]


def test_a_way_to_send_is_told_with_the_cpu_of_a_message() -> None:
    run = run_of()
    run.publishing += [
        Publishing(".delay for each", 1_000, 10.0, {"SendMessage": 1_000}, cpu=0.5),
        Publishing("publish_many", 1_000, 1.0, {"SendMessageBatch": 100}),
    ]

    _, _, *lines = table.publishing(run).splitlines()

    assert lines == [
        "| .delay for each | 1,000 | 100 | 1.00 | 500 |",
        "| publish_many | 1,000 | 1000 | 0.10 | - |",
    ]


def test_events_are_no_round_trip_of_a_registration() -> None:
    row = Throughput(OURS.name, "register", 10, 1, 6000)
    commands = {"findAndModify": 200, "insert": 9, "getMore": 50}
    row.rounds.append(round_of(100, commands=commands))
    told = {goal.what: goal.measured for goal in goals(run_of(row))}

    assert told["MongoDB round trips a registration"] == "1"


@pytest.mark.parametrize("make", [bodies.celery, bodies.stock_celery], ids=["ours", "stock"])
def test_the_measured_messages_are_registrations(
    make: Callable[[str, str], bodies.Body], make_delivery: MakeDelivery
) -> None:
    payload = decode(make_delivery(body=make("register", "bench-1")("u1")), None)

    message = virtual.Message(payload, channel=object.__new__(virtual.Channel))
    assert message.headers["task"] == "registerUser"
    _, kwargs, _ = message.payload
    assert Registration.model_validate(kwargs).user_id == "u1"


PLAIN = json.dumps({"id": USER, "action": "registerUser", "data": bodies.arguments(USER)})

#: As a producer may have put it on the queue.
SENT = {
    "ours": bodies.celery("register", "bench-1")(USER),
    "stock": bodies.stock_celery("register", "bench-1")(USER),
    "plain JSON": PLAIN,
    "SNS": json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:x:1:t", "Message": PLAIN}),
}


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
def test_a_copy_of_a_message_is_the_same_registration_of_another_user(
    sent: str, make_delivery: MakeDelivery
) -> None:
    copy = copies(sent)

    def read(body: str) -> tuple[Any, Any]:
        payload = decode(make_delivery(body=body), decode_json)
        return payload["headers"]["id"], payload["body"]

    id_, body = read(sent)
    ids = {id_}
    for user_id in ("u1", "u2"):
        copied_id, copied = read(copy(user_id))
        assert copied == json.loads(json.dumps(body).replace(USER, user_id))
        assert len(copy(user_id)) < 1.1 * len(sent)
        ids.add(copied_id)
    assert len(ids) == 3


def test_messages_of_all_doors_come_in_turn() -> None:
    mixed = in_turn([copies(sent) for sent in SENT.values()])

    assert [len(mixed(USER)) for _ in range(8)] == [len(sent) for sent in SENT.values()] * 2


def test_each_door_has_a_row_in_either_run() -> None:
    for plan in (FULL, QUICK):
        doors = [cell.candidate.door for cell in plan.cells if cell.candidate.door]
        assert doors == [*DOORS, MIXED]


def test_the_api_is_measured_full_and_at_most_of_what_it_carries_in_either_run() -> None:
    for plan in (FULL, QUICK):
        assert (api.API, None) in plan.requests
        assert 0.8 in plan.request_loads


def test_each_measured_message_has_an_id_of_its_own() -> None:
    body = bodies.celery("noop", "bench-1")

    assert json.loads(body("u1"))["headers"]["id"] != json.loads(body("u1"))["headers"]["id"]


def requests_of(way: str, per_second: float, **changes: Any) -> Requests:
    fields: dict[str, Any] = {
        "clients": 200,
        "added_ms": 10.0,
        "rate": None,
        "seconds": 2.0,
        "accepted": int(2 * per_second),
        "refused": 0,
        "p50": 20.0,
        "p99": 39.0,
        "calls_a_request": 0.1,
        "cpu_ms": 0.5,
    }
    return Requests(way=way, **fields | changes)


@pytest.mark.parametrize("is_reached", [True, False])
def test_the_api_is_compared_with_its_own_figures_where_clients_ask_again_at_once(
    is_reached: bool,
) -> None:
    run = run_of()
    figures = {} if is_reached else {"p99": 41.0, "calls_a_request": 0.16, "cpu_ms": 0.71}
    run.requests = [
        requests_of(api.API, 2_000, processes=2),
        requests_of(api.API, 700, clients=50, p99=99.0),
        requests_of(api.API, 1_000 if is_reached else 900, **figures),
        requests_of(api.SEND_MESSAGE, 200),
        requests_of(api.DELAY, 320),
        requests_of(api.API, 800, rate=800.0, **figures),
    ]
    run.lone = Lone(13.0 if is_reached else 13.5, 11.2)
    run.batch = BatchSent(10_000, 10_000, 3.0, 1_000 + (not is_reached), 4 - (not is_reached))

    found = goals(run)

    assert [goal.is_reached for goal in found] == [is_reached] * 9
    assert found[0].what == "API, 200 clients, 800 requests/s: p99"
    assert ("at most 1,000", "1,000" if is_reached else "1,001") == (
        found[7].wanted,
        found[7].measured,
    )


def test_the_table_of_the_api_has_a_row_for_each_way_and_the_single_requests() -> None:
    run = run_of()
    run.requests = [
        requests_of(api.API, 1_000),
        requests_of(api.API, 2_000, processes=2),
        requests_of(api.DELAY, 300, rate=200.0),
    ]
    run.lone, run.batch = Lone(13.0, 11.2), BatchSent(10_000, 9_999, 3.0, 1_000, 8)

    told = table.api(run)

    assert "| this project's API | 200 | as fast as they can | **1000** | 20 | 39 |" in told
    assert "| this project's API, 2 processes | 200 | as fast as they can | **2000** |" in told
    assert "| 200/s | **300** |" in told
    assert "13.0 ms" in told
    assert "9,999 accepted within 3.0 s by 1,000 calls, up to 8" in told


def test_a_floor_of_the_latency_has_a_rate_that_it_can_carry() -> None:
    measured = {
        cell.candidate.name for cell in FULL.cells if (cell.task, cell.delay_ms) == ("register", 10)
    }
    assert FULL.floor
    assert {each.name for each in FULL.floor} <= measured
    assert not {*FULL.floor} & {*FULL.latency}
