"""The same project on this broker and on kombu's own SQS transport, behaviour by behaviour.

Each row is observed on both, on this broker with each of its clients, and each must be seen to do
what its cell of the table says: a row that stock comes to pass fails here, and is then no longer
worth its line in docs/behaviour.md.

`python -m tests.acceptance.test_against_stock` writes the page to stdout.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from devstack.sqs import SqsServer
from sqs_broker.options import BOTO3, CLIENTS, CURL
from tests.faults import proxy
from tests.faults.proxy import EXPIRED, LOST, SERVER_ERROR, SILENT, Fault, FaultProxy
from tests.probe.project import PATIENCE, ProbeProject
from tests.probe.stock_project import StockProject
from tests.services import MakeQueues, Queues, wait_until

ROOT = Path(__file__).parents[2]

#: Kombu's transport, and this broker with each of its clients.
STOCK = "stock"
SIDES = (STOCK, *CLIENTS)

#: Seconds after which what could come at once will not come by itself.
SOON = 6

#: Seconds for what waits for a few timeouts.
LATER = 25


@dataclass
class Run:
    """One project at work: on this broker, or on stock."""

    project: ProbeProject
    faults: FaultProxy
    start: Callable[[], "Popen[bytes]"]

    def start_warm(self) -> "Popen[bytes]":
        """A worker that has done a message: so the harness is not what fails a row."""
        worker = self.start()
        self.project.wait_for_end(self.project.send("work"))
        return worker

    def happens(self, condition: Callable[[], Any], seconds: float = SOON) -> bool:
        """Whether a condition comes true in time."""
        with suppress(TimeoutError):
            return bool(wait_until(condition, seconds, "an observation"))
        return False

    def starts(self, id_: str) -> int:
        """How often a task was started."""
        return len(self.project.events(id_, "start"))

    def note(self) -> dict[str, Any] | None:
        """The note on the one dead letter; None where it has none."""
        (letter,) = self.project.queues.dead_letters()
        if "MessageAttributes" not in letter:
            return None
        (note,) = self.project.notes().values()
        return note


@dataclass(frozen=True)
class Row:
    """A behaviour, and what it is seen to be on each transport."""

    name: str
    stock: str
    ours: str
    observe: Callable[[Run], str]
    queues: dict[str, Any] = field(default_factory=dict)
    transport: dict[str, Any] = field(default_factory=dict)
    stock_transport: dict[str, Any] = field(default_factory=dict)
    celery: dict[str, Any] = field(default_factory=dict)


ROWS: list[Row] = []


def row(name: str, *, stock: str, ours: str, **settings: Any) -> Any:
    """Make a row of a function that observes."""

    def add(observe: Callable[..., str]) -> Callable[..., str]:
        ROWS.append(Row(name, stock, ours, observe, **settings))
        return observe

    return add


# Receiving ------------------------------------------------------------------------------------

GOES_ON = "receives again without a restart"
DEAF = "exits, or stays alive but never receives again"


def after(run: Run, fault: Fault, seconds: float) -> str:
    """What a worker does after one receive call that failed."""
    worker = run.start_warm()
    run.faults.fail("ReceiveMessage", fault, last=1)
    wait_until(lambda: run.faults.failed["ReceiveMessage"], PATIENCE, "a receive call")
    id_ = run.project.send("work")
    run.happens(lambda: run.project.events(id_, "end") or worker.poll() is not None, seconds)
    return GOES_ON if run.project.events(id_, "end") and worker.poll() is None else DEAF


@row("after one receive call that failed with HTTP 500, the worker", stock=DEAF, ours=GOES_ON)
def one_server_error(run: Run) -> str:
    return after(run, SERVER_ERROR, SOON)


@row(
    "after one receive call that failed with 403 (expired token), the worker",
    stock=DEAF,
    ours=GOES_ON,
)
def one_expired_token(run: Run) -> str:
    return after(run, EXPIRED, SOON)


@row("after one receive call that got no answer, the worker", stock=DEAF, ours=GOES_ON)
def no_answer(run: Run) -> str:
    return after(run, SILENT, LATER)


STALLS = "receives nothing for a second whenever it holds as many messages as it may"
REDELIVERED = "has `redelivered` set to true"
FIRST = "cannot be told from a first delivery"
FLOWS = "receives again as soon as one task ends"


@row(
    "with many short tasks and default settings, the worker",
    stock=STALLS,
    ours=FLOWS,
    celery={"worker_prefetch_multiplier": 1},
    stock_transport={"polling_interval": 1},
)
def full_window(run: Run) -> str:
    run.start_warm()
    run.faults.hold("ReceiveMessage")
    ids = [run.project.send("work", 0.05) for _ in range(12)]
    run.faults.let_go("ReceiveMessage")
    for id_ in ids:
        run.project.wait_for_end(id_)
    at = sorted(run.project.events(id_, "start")[0]["at"] for id_ in ids)
    # Two at a time, in a window of two: six rounds, of 0.05 s or of one second more.
    return STALLS if at[-1] - at[0] > 3 else FLOWS


@row(
    "a task that is delivered again",
    stock=FIRST,
    ours=REDELIVERED,
    queues={"visibility_timeout": 3},
    transport={"visibility_timeout": 3},
)
def redelivery(run: Run) -> str:
    run.start_warm()
    run.faults.fail("ReceiveMessage", LOST, last=1)
    # The poll that will be lost is open, and takes what is sent now.
    wait_until(lambda: run.faults.failed["ReceiveMessage"], PATIENCE, "a receive call")
    id_ = run.project.send("work")
    run.project.wait_for_end(id_)
    (start,) = run.project.events(id_, "start")
    return REDELIVERED if start["redelivered"] else FIRST


# What nobody can run --------------------------------------------------------------------------

STOPS = "stops the worker"
HIDES = 'the log says "deleted", but the message is still in the queue'
REJECT_AGAIN = "runs again after the visibility timeout"
REASON = "is dead-lettered at once, with the reason"


@row(
    'a body of `{"properties": "x"}`',
    stock=STOPS,
    ours=REASON,
)
def properties_in_the_body(run: Run) -> str:
    worker = run.start_warm()
    run.project.send_raw('{"properties": "x"}')
    run.happens(lambda: run.project.queues.dead_letters() or worker.poll() is not None)
    if worker.poll() is not None:
        return STOPS
    return REASON if (run.note() or {}).get("reason") else "is dead-lettered without a reason"


@row(
    "a body that is not JSON",
    stock=HIDES,
    ours=REASON,
)
def not_json(run: Run) -> str:
    run.start_warm()
    run.project.send_raw("hello")
    if run.happens(run.project.queues.dead_letters) and (run.note() or {}).get("reason"):
        return REASON
    assert "Received and deleted unknown message" in run.project.worker_log()
    assert run.project.queues.counts()[1] == 1, "it is still in flight"
    return HIDES


@row(
    "a task that raises `Reject(requeue=False)`",
    stock=REJECT_AGAIN,
    ours=REASON,
    queues={"visibility_timeout": 2},
)
def reject(run: Run) -> str:
    run.start_warm()
    id_ = run.project.send("reject")
    run.happens(lambda: run.project.queues.dead_letters() or run.starts(id_) > 1)
    if run.starts(id_) > 1:
        return REJECT_AGAIN
    return REASON if (run.note() or {}).get("reason") == "not for me" else "is dead-lettered"


# Settling ----------------------------------------------------------------------------------------

MORE = "more than one: each message needs a delete call of its own"
FEW = "less than 0.5: one call receives ten messages, and one deletes ten"
ONCE = "runs once"
MORE_THAN_ONCE = "runs more than once"
NEW = "a new message is sent, whose deliveries count from one"
SAME = "the same message is delivered again, after its backoff"
NO_WORD = "is dead-lettered by SQS without a reason"
NOTED = "is dead-lettered with the error, the id and the number of deliveries"


@row(
    "SQS calls that receive and delete one message of many",
    stock=MORE,
    ours=FEW,
)
def calls(run: Run) -> str:
    messages = 60
    for _ in range(messages):
        run.project.send("work")
    run.start()
    run.project.wait_for_empty_queue()
    made = run.faults.calls
    if made["DeleteMessage"] == messages:
        return MORE
    assert sum(made.values()) < messages / 2, made
    return FEW


AGAIN = "runs a second time while the first run goes on"


@row(
    "a task that runs longer than the visibility timeout",
    stock=AGAIN,
    ours=ONCE,
    queues={"visibility_timeout": 3},
    transport={"visibility_timeout": 3},
)
def long_task(run: Run) -> str:
    run.start_warm()
    id_ = run.project.send("work", 8)
    wait_until(lambda: run.project.events(id_, "end"), PATIENCE, "the end")
    starts = run.project.events(id_, "start")
    return ONCE if len(starts) == 1 else AGAIN


# Time -----------------------------------------------------------------------------------------


@row(
    "a countdown longer than the visibility timeout",
    stock=MORE_THAN_ONCE,
    ours=ONCE,
    queues={"visibility_timeout": 3},
    transport={"visibility_timeout": 3},
)
def countdown(run: Run) -> str:
    run.start_warm()
    id_ = run.project.send("work", countdown=8)
    wait_until(lambda: run.project.events(id_, "end"), PATIENCE, "the end")
    # Its copies wait for the same moment.
    again = run.happens(lambda: run.starts(id_) > 1, 2)
    return MORE_THAN_ONCE if again else ONCE


@row(
    "a task that fails once (`autoretry_for`)",
    stock=NEW,
    ours=SAME,
)
def retry(run: Run) -> str:
    run.start_warm()
    id_ = run.project.send("autoretry")
    run.project.wait_for_end(id_)
    assert run.starts(id_) == 2
    if run.faults.calls["SendMessage"]:
        return NEW
    assert run.faults.calls["ChangeMessageVisibilityBatch"] == 1
    return SAME


@row(
    "a task that fails each time",
    stock=NO_WORD,
    ours=NOTED,
    queues={"visibility_timeout": 2, "max_receive_count": 6},
    transport={"max_receive_count": 6},
)
def failure(run: Run) -> str:
    run.start_warm()
    id_ = run.project.send("fail", 99)
    wait_until(run.project.queues.dead_letters, PATIENCE, "a dead letter")
    note = run.note()
    if note is None:
        return NO_WORD
    assert (note["error"], note["message_id"], note["deliveries"]) == ("ValueError", id_, 3)
    return NOTED


# The tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest) -> Iterator[dict[str, tuple[str, str]]]:
    """What was observed in this run, printed after it."""
    rows: dict[str, tuple[str, str]] = {}
    yield rows
    plugins = request.config.pluginmanager
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        sys.stdout.write("\n\n" + table((name, *cells) for name, cells in rows.items()))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_this_broker_keeps_a_promise_that_stock_breaks(
    make_queues: MakeQueues,
    sqs_server: SqsServer,
    tmp_path: Path,
    seen: dict[str, tuple[str, str]],
    row: Row,
) -> None:
    queues = {side: make_queues(**row.queues) for side in SIDES}

    with ThreadPoolExecutor(len(SIDES)) as at_once:
        running = {
            side: at_once.submit(observe, row, tmp_path / side, queues[side], side)
            for side in SIDES
        }
    observed = {side: each.result() for side, each in running.items()}
    seen[row.name] = (observed[STOCK], observed[CURL])

    assert observed == {STOCK: row.stock, CURL: row.ours, BOTO3: row.ours}


def test_the_page_holds_every_row_and_the_version_they_were_seen_on() -> None:
    assert (ROOT / "docs" / "behaviour.md").read_text() == page(), (
        "write it anew: python -m tests.acceptance.test_against_stock > docs/behaviour.md"
    )


def test_the_version_observed_is_the_one_that_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()

    assert {f"kombu=={version('kombu')}", f"celery=={version('celery')}"} <= set(pins)


def test_no_cell_of_a_row_says_the_same_of_both() -> None:
    assert [row.name for row in ROWS if row.stock == row.ours] == []


def observe(row: Row, directory: Path, queues: Queues, side: str) -> str:
    """Run one project behind a proxy of its own and look at it."""
    kind = StockProject if side == STOCK else ProbeProject
    own = row.stock_transport if side == STOCK else {**row.transport, "client": side}
    with proxy.running(queues.endpoint_url) as (faults, url):
        limits = {"task_soft_time_limit": None, "task_time_limit": PATIENCE}
        project = kind(
            directory,
            queues,
            transport={"endpoint_url": url, **own},
            celery={**limits, **row.celery},
        )
        try:
            return row.observe(Run(project, faults, project.start))
        finally:
            project.close()


def table(rows: Any) -> str:
    """The rows as Markdown."""
    lines = ["| what | kombu's SQS transport | this broker |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/behaviour.md."""
    return f"""# Behaviour

This page compares this broker with the SQS transport of kombu, which Celery uses for `sqs://`. The
behaviour was observed on kombu {version("kombu")} and celery {version("celery")}.

Both transports ran the same project with the same Celery settings. kombu's transport was set up as
its documentation recommends: named queues, long polls, `polling_interval` 0 (except for the row
"default settings"), `task_acks_late` and a redrive policy.

{table((row.name, row.stock, row.ours) for row in ROWS)}
`tests/acceptance/test_against_stock.py` runs each row on both transports. It fails if a
transport does something else, also if kombu's transport improves. To generate this page again:
`python -m tests.acceptance.test_against_stock > docs/behaviour.md`.
"""


if __name__ == "__main__":
    sys.stdout.write(page())
